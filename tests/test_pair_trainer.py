"""The trainer through axolotl: its loss beside the stock one, its micro-batches, its live numbers."""

import json

import numpy as np
import pytest
from tiny_models import save_tiny_checkpoint
from workshop import (
    LIVE,
    LORA,
    PACKED,
    STEPS,
    Workshop,
    assert_scores_as_last_evaluated,
    losses,
    make_tokenizer,
    read_log,
    score,
    write_preferences,
)

EXPERTS = {"model_config_type": "mixtral", "gradient_checkpointing": False}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, axolotl_runs) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"), axolotl_runs)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("padded", {"gradient_accumulation_steps": 2}),
        ("packed", {**PACKED, "gradient_accumulation_steps": 2, "curriculum_sampling": True}),  # in the same order
        ("checkpointed", {"gradient_checkpointing": True}),
        ("adapted", LORA | {"peft_init_lora_weights": "olora"}),  # decided by the weights, not by random numbers
    ],
)
def test_the_pair_loss_on_hard_labels_trains_as_the_stock_loss_does(workshop, name, overrides):
    """axolotl's own strategy, trainer and loss against ours: same rows, same losses, same gradients' norms."""
    stock = workshop.train(f"{name}_stock", stock=True, **overrides)
    ours = workshop.train(f"{name}_ours", **overrides)
    assert losses(ours) == pytest.approx(losses(stock), rel=1e-5)
    norms = [[entry["grad_norm"] for entry in read_log(output)] for output in (ours, stock)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_mixture_of_experts_is_kept_in_balance_as_by_the_stock_loss(workshop):
    base = save_tiny_checkpoint(workshop.folder / "experts", "mixtral", make_tokenizer(), router_aux_loss_coef=0.5)
    stock, ours = (workshop.train(f"experts_{s}", stock=s, base_model=str(base), **EXPERTS) for s in (True, False))
    assert losses(ours) == pytest.approx(losses(stock), rel=1e-5)


@pytest.fixture(scope="module")
def voted(tmp_path_factory, axolotl_runs) -> Workshop:
    """A workshop whose 16 pairs carry shares of votes."""
    folder = tmp_path_factory.mktemp("voted")
    path = write_preferences(folder / "preferences.jsonl", pairs=16)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    shares = [0.2 * (number % 6) for number in range(len(rows))]
    lines = [json.dumps(row | {"prob_chosen": share}) + "\n" for row, share in zip(rows, shares, strict=True)]
    path.write_text("".join(lines), encoding="utf-8")
    return Workshop(folder, axolotl_runs, path)


@pytest.mark.parametrize(
    "batches",
    [{"micro_batch_size": 32}, {"micro_batch_size": 1, "sample_packing": True, "sequence_len": 4096}],
    ids=["padded", "packed"],
)
def test_loss_of_votes_smoothing_and_symmetry_is_the_one_computed_from_the_scorer(voted, batches):
    """One batch of all rows, before the first step: the base model's own numbers decide the loss."""
    output = voted.train(
        f"one_batch_{batches['micro_batch_size']}",
        **{"max_steps": 1, "save_steps": 1, "symmetry_weight": 2.0, "label_smoothing": 0.1, **batches},
    )
    (logged,) = read_log(output, steps=1)
    logprobs = score(voted.base, voted.prompts())
    prob_a = np.array([row["prob_a"] for row in voted.rows()]) * 0.9 + 0.05
    entropy = -(prob_a * logprobs[:, 0] + (1 - prob_a) * logprobs[:, 1]).mean()
    log_odds = (logprobs[:, 0] - logprobs[:, 1]).reshape(-1, 2)  # both orders of a pair stand side by side
    assert logged["loss"] == pytest.approx(entropy + 2 * (log_odds.sum(axis=1) ** 2).mean(), rel=1e-5)


@pytest.fixture(scope="module")
def tracked(workshop):
    """A run on one rank that is evaluated, and tracked by wandb and tensorboard."""
    folder = workshop.folder / "tracking"
    folder.mkdir()
    keys = {"wandb_mode": "offline", "use_wandb": True, "use_tensorboard": True, **workshop.evaluated}
    return workshop.train("tracked", environment={"WANDB_DIR": str(folder)}, **keys)


def test_without_label_only_logits_the_same_is_trained(workshop, tracked):
    assert losses(workshop.train("all_logits", label_only_logits=False)) == pytest.approx(losses(tracked), rel=1e-6)


def test_the_last_live_numbers_are_those_of_the_evaluation_script_on_the_saved_model(workshop, tracked):
    assert_scores_as_last_evaluated(tracked, workshop.held_out)


def test_so_are_those_of_two_ranks_that_train_on_packs(workshop):
    """13 held-out pairs fill neither the batches nor the ranks, and packed training drops what is not full."""
    keys = PACKED | {"eval_sample_packing": False, "eval_batch_size": 4}
    output = workshop.train("packed_ranks", ranks=2, **keys, **workshop.evaluated)
    assert_scores_as_last_evaluated(output, workshop.held_out)


def test_live_numbers_reach_wandb_tensorboard_and_the_state_file_alike(workshop, tracked):
    last = read_log(tracked, "eval_loss")[-1] | read_log(tracked)[-1]
    expected = {f"eval/{name}": last[f"eval_{name}"] for name in LIVE}
    expected |= {f"train/{name}": last[name] for name in ("label_loss", "label_accuracy")}
    (path,) = (workshop.folder / "tracking").glob("wandb/offline-run-*/run-*.wandb")
    assert read_wandb(path, expected) == pytest.approx(expected, rel=1e-6)
    (events,) = {path.parent for path in workshop.folder.glob("tracked/**/events.out.tfevents.*")}
    assert read_tensorboard(events, expected) == pytest.approx(expected, rel=1e-6)
    assert (tracked / "training_report.png").stat().st_size > 10_000
    final = json.loads((tracked / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert [entry["step"] for entry in final if "eval_loss" in entry][-1] == STEPS


def read_wandb(path, names) -> dict[str, float]:
    """Return the last value of each name in the history of an offline run."""
    from wandb.proto import wandb_internal_pb2

    found = {}
    for data in read_leveldb_log(path.read_bytes()[7:]):  # after wandb's own mark
        record = wandb_internal_pb2.Record.FromString(data)
        for item in record.history.item:
            found["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return {name: found.get(name) for name in names}


def read_leveldb_log(data: bytes):
    """Yield the records of a log: blocks of 32 KiB, in them parts with a checksum, a length and a kind before each."""
    block, first, whole = 32768, 7, b""  # the first block is shorter by the mark
    position = 0
    while position + 7 <= len(data):
        room = block - (position + first) % block
        if room < 7:  # filled up with zeros
            position += room
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def read_tensorboard(folder, names) -> dict[str, float]:
    """Return the last value of each name among the scalars."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: events.Scalars(name)[-1].value for name in names}
