"""Training for real, small: axolotl on one rank and two, plainly, with each DeepSpeed stage and FSDP2; by torchrun."""

import gzip
import json
import os
import socket
import subprocess
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import LLAMA3_TEMPLATE, ROOT, make_small_tokenizer, with_chat_template
from tiny_models import LLAMA3_MARKS, save_tiny_checkpoint
from workshop import (
    ENVIRONMENT,
    STEPS,
    Workshop,
    assert_scores_as_last_evaluated,
    launch_line,
    losses,
    make_tokenizer,
    read_log,
    score,
)

DATED_TEMPLATE = "{{ strftime_now('%Y-%m-%d') }}" + LLAMA3_TEMPLATE


def split_at_label(row: dict) -> tuple[tuple[int, ...], int]:
    """Return the ids before the one token that bears loss, and that token."""
    (position,) = (index for index, label in enumerate(row["labels"]) if label != -100)
    return tuple(row["input_ids"][:position]), row["labels"][position]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, axolotl_runs) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"), axolotl_runs)


@pytest.fixture(scope="module")
def plain_ranks(workshop) -> Path:
    return workshop.train("two_ranks", ranks=2, **workshop.evaluated)


def test_two_ranks_follow_the_loss_of_one_rank_that_accumulates_twice(workshop, plain_ranks):
    one_rank = workshop.train("one_rank", gradient_accumulation_steps=2)
    assert losses(plain_ranks) == pytest.approx(losses(one_rank), rel=1e-4)
    assert losses(plain_ranks)[-1] < losses(plain_ranks)[0]


def test_both_ranks_train_their_own_rows_one_label_each(plain_ranks):
    assert [entry["tokens/trainable"] for entry in read_log(plain_ranks)] == [8 * step for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_over_two_ranks_trains_and_saves_as_plain_ranks_do(workshop, plain_ranks, stage):
    train = workshop.launch if stage == 3 else workshop.train  # by the launch line of the README once
    output = train(f"zero_{stage}", ranks=2, deepspeed=stage, **workshop.evaluated)
    assert losses(output) == pytest.approx(losses(plain_ranks), rel=1e-3)
    assert [entry["tokens/trainable"] for entry in read_log(output)][-1] == 8 * STEPS
    np.testing.assert_allclose(*(score(model, workshop.prompts()[:20]) for model in (output, plain_ranks)), atol=1e-3)
    assert_scores_as_last_evaluated(output, workshop.held_out)


def test_zero_3_saves_whole_models_at_every_epoch_and_every_few_steps(workshop, plain_ranks):
    """No save has to be timed before the end: each is the model of its step."""
    prompts, zero_3 = workshop.prompts()[:20], workshop.folder / "zero_3"
    for name in ("checkpoint-3", "checkpoint-6"):
        np.testing.assert_allclose(score(zero_3 / name, prompts), score(plain_ranks / name, prompts), atol=1e-3)
    epochs = {"max_steps": None, "num_epochs": 2, "save_steps": None, "save_strategy": "epoch", "micro_batch_size": 16}
    output = workshop.train("zero_3_epochs", ranks=2, deepspeed=3, **epochs)
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    last, first = score(output / "checkpoint-8", prompts), score(output / "checkpoint-4", prompts)
    np.testing.assert_allclose(score(output, prompts), last, atol=1e-6)
    assert np.abs(last - first).max() > 0.01


def test_fsdp2_over_two_ranks_trains_and_saves_as_plain_ranks_do(workshop, plain_ranks):
    """By the very keys of the GPU config, in float32: there is no bfloat16 training on a CPU."""
    config = yaml.safe_load((ROOT / "config/llama3-8b-it-fsdp2.yml").read_text(encoding="utf-8"))
    sharding = {key: config[key] for key in ("fsdp_version", "fsdp_config", "accelerator_config", "save_only_model")}
    output = workshop.train("fsdp2", ranks=2, **sharding, **workshop.evaluated)
    assert_scores_as_last_evaluated(output, workshop.held_out)
    # What is logged where label_only_logits fails.
    assert "computes logits of shape" not in output.with_suffix(".log").read_text(encoding="utf-8")
    assert (output / f"checkpoint-{STEPS}/pytorch_model_fsdp.bin").exists()  # what FSDP alone writes, to resume from
    assert losses(output) == pytest.approx(losses(plain_ranks), rel=1e-4)
    assert [entry["tokens/trainable"] for entry in read_log(output)][-1] == 8 * STEPS
    np.testing.assert_allclose(*(score(model, workshop.prompts()[:20]) for model in (output, plain_ranks)), atol=1e-3)


def test_two_torchrun_agents_that_meet_by_c10d_train_one_model(workshop, plain_ranks):
    """Two machines in small: an agent each, one rank each, and a rendezvous on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    options = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "pairs"]
    command = launch_line(workshop.write_config("two_agents"), *options, "--rdzv_endpoint", meeting)
    # torchrun takes the machine's name for its address, which a machine without a network cannot look up.
    command[3:3] = ["--local-addr", "127.0.0.1"]
    logs = [workshop.folder / f"agent_{number}.log" for number in range(2)]
    agents = []
    for log in logs:
        with log.open("w") as file:
            agents.append(subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT))
    codes = [agent.wait(timeout=300) for agent in agents]
    assert codes == [0, 0], logs[0].read_text()[-3000:] + logs[1].read_text()[-3000:]
    output = workshop.folder / "two_agents"
    assert losses(output) == pytest.approx(losses(plain_ranks), rel=1e-5)
    np.testing.assert_allclose(*(score(model, workshop.prompts()[:20]) for model in (output, plain_ranks)), atol=1e-5)


def test_after_preprocessing_training_tokenises_nothing(workshop):
    keys = {"dataset_prepared_path": str(workshop.folder / "ahead"), **workshop.evaluated}
    before = workshop.run("ahead_of_time", command="preprocess", **keys)
    assert before.returncode == 0, before.stdout[-3000:]
    assert "Tokenizing pairs" in before.stdout
    prepared = {path: path.stat().st_mtime_ns for path in (workshop.folder / "ahead").rglob("*.arrow")}
    assert len(prepared) == 2
    after = workshop.run("ahead_of_time", **keys)
    assert after.returncode == 0, after.stdout[-3000:]
    assert "Tokenizing pairs" not in after.stdout
    assert {path: path.stat().st_mtime_ns for path in (workshop.folder / "ahead").rglob("*.arrow")} == prepared


def test_every_save_carries_a_card_that_its_own_tokenizer_confirms(plain_ranks):
    from pair_pm.checkpoint import load_tokenizer
    from pair_pm.recipe import read_recipe
    from pair_pm.tokens import PromptEncoder

    for folder in (plain_ranks, plain_ranks / f"checkpoint-{STEPS // 2}", plain_ranks / f"checkpoint-{STEPS}"):
        recipe = read_recipe(folder / "pair_pm.json", PromptEncoder(load_tokenizer(str(folder))))
        assert recipe.sequence_len == 1024
        assert recipe.versions["axolotl"]


def test_card_of_a_finished_run_says_what_its_weights_give_the_labels(plain_ranks):
    from pair_pm.checkpoint import load_tokenizer
    from pair_pm.recipe import read_recipe
    from pair_pm.saved_model import score_probes
    from pair_pm.tokens import PromptEncoder

    recipe = read_recipe(plain_ranks / "pair_pm.json", PromptEncoder(load_tokenizer(str(plain_ranks))))
    np.testing.assert_allclose(recipe.probe_logprobs, score_probes(str(plain_ranks)), rtol=1e-4)


def test_a_model_trained_on_real_conversations_compares_new_ones_with_the_ids_it_was_trained_on(
    shared_dir, tmp_path_factory, axolotl_runs
):
    """Everything through the scripts' own code; the ids from the very rows that axolotl packed for this run."""
    import datasets

    from pair_pm import PairScorer

    folder = tmp_path_factory.mktemp("real")
    with gzip.open(shared_dir / "data/hh-rlhf.train.jsonl.gz", "rt", encoding="utf-8") as file:
        (folder / "preferences.jsonl").write_text("".join(islice(file, 400)), encoding="utf-8")
    output = Workshop(folder, axolotl_runs, folder / "preferences.jsonl").train("model")
    scorer = PairScorer.from_pretrained(str(output))

    (prepared,) = (path for path in (folder / "tokenized").glob("rows-*/*") if path.is_dir())
    packed = dict(map(split_at_label, datasets.load_from_disk(str(prepared))))
    lines = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    served = scorer.encoder.encode([line["messages"][0]["content"] for line in lines])
    answers = [scorer.encoder.labels.label_ids["AB".index(line["messages"][1]["content"])] for line in lines]
    assert {tuple(ids): answer for ids, answer in zip(served, answers, strict=True)} == packed

    with gzip.open(shared_dir / "data/hh-rlhf.test.jsonl.gz", "rt", encoding="utf-8") as file:
        short = (line for line in file if len(line) < 1200)  # the small tokenizer makes a token of every other letter
        rows = [json.loads(line) for line in islice(short, 4)]
    for row in rows:
        comparison = scorer.compare(row["chosen"][:-1], row["chosen"][-1]["content"], row["rejected"][-1]["content"])
        assert 0 < comparison.prob_first < 1


# ---- refusals, in process -------------------------------------------------------------------------------------------


def check(tokenizer, **keys):
    from axolotl.utils.dict import DictDefault

    from pair_pm.training import check_tokenizer

    check_tokenizer(DictDefault(keys), tokenizer)


def test_a_template_with_todays_date_is_refused_before_training():
    from pair_pm.errors import TemplateError

    with pytest.raises(TemplateError, match="today's date"):
        check(with_chat_template(make_tokenizer(), DATED_TEMPLATE))


def test_a_token_that_content_can_forge_is_refused_unless_the_config_accepts_it():
    from pair_pm.errors import TemplateError

    tokenizer = make_small_tokenizer(LLAMA3_TEMPLATE, (*LLAMA3_MARKS, "<strange>"), split="llama3")
    with pytest.raises(TemplateError, match="<strange>"):
        check(tokenizer)
    check(tokenizer, accept_control_text=True)


def test_the_card_records_what_control_text_was_accepted():
    from axolotl.utils.dict import DictDefault

    from pair_pm.recipe import describe_run
    from pair_pm.tokens import PromptEncoder

    encoder = PromptEncoder(make_small_tokenizer(LLAMA3_TEMPLATE, (*LLAMA3_MARKS, "<strange>"), split="llama3"))
    accepted = describe_run(DictDefault(accept_control_text=True), encoder).accepted_control_text
    assert accepted == ("<strange>",)


def test_a_data_set_with_a_chat_template_of_its_own_is_refused():
    from pair_pm.errors import ConfigError

    with pytest.raises(ConfigError, match=r"pairs\.jsonl: is rendered with a chat template that is not saved"):
        check(make_tokenizer(), datasets=[{"path": "pairs.jsonl", "chat_template": "chatml"}])


# ---- float32 weights, in process ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({"fsdp_config": {"reshard_after_forward": True}}, "float32"),
        ({"fsdp_config": {"reshard_after_forward": True}, "adapter": "lora"}, "bfloat16"),
        ({"deepspeed": "deepspeed_configs/deepspeed_3.json"}, "bfloat16"),
        ({}, "bfloat16"),
    ],
    ids=["fsdp", "fsdp-lora", "deepspeed", "plain"],
)
def test_fsdp_trains_float32_weights_where_all_of_a_model_is_trained(keys, dtype):
    import torch
    from axolotl.utils.dict import DictDefault

    from pair_pm.training import PairPMPlugin

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2)).bfloat16()
    PairPMPlugin().post_model_load(DictDefault(keys), model)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


# ---- what was saved -------------------------------------------------------------------------------------------------


def test_a_model_that_was_saved_without_its_weights_is_noticed(tmp_path):
    from safetensors.torch import load_file, save_file

    from pair_pm.errors import CheckpointError
    from pair_pm.saved_model import score_probes, verify_saved_model

    folder = save_tiny_checkpoint(tmp_path / "model", tokenizer=make_tokenizer())
    found = np.array(verify_saved_model(str(folder)))
    assert found.shape == (2, 2)
    assert found == pytest.approx(np.array(score_probes(str(folder))), rel=1e-4)
    weights = load_file(folder / "model.safetensors")
    emptied = {name: weight[:0].clone() if "mlp" in name else weight for name, weight in weights.items()}
    save_file(emptied, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="does not load whole"):
        verify_saved_model(str(folder))


def test_a_model_whose_weights_are_not_numbers_is_noticed(tmp_path):
    from safetensors.torch import load_file, save_file

    from pair_pm.errors import CheckpointError
    from pair_pm.saved_model import score_probes

    folder = save_tiny_checkpoint(tmp_path / "model", tokenizer=make_tokenizer())
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="finite ones are required"):
        score_probes(str(folder))


# ---- several ranks without an accelerator ---------------------------------------------------------------------------


def test_the_one_function_of_accelerate_that_is_replaced_is_the_one_it_was_written_for():
    """`cpu_ranks._answer_gloo` leans on this private method: look at it again before raising the pin."""
    import inspect

    import accelerate
    from accelerate.state import PartialState

    assert accelerate.__version__ == "1.13.0"
    parameters = list(inspect.signature(PartialState._prepare_backend).parameters)
    assert parameters == ["self", "cpu", "sagemaker_dp", "backend"]


def test_one_rank_leaves_the_config_and_accelerate_alone(monkeypatch):
    from accelerate.state import PartialState
    from axolotl.utils.dict import DictDefault

    from pair_pm.cpu_ranks import CPURanksPlugin

    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    before, cfg = PartialState._prepare_backend, DictDefault(deepspeed="deepspeed_configs/deepspeed_1.json")
    CPURanksPlugin().register(cfg)
    CPURanksPlugin().load_datasets(cfg)
    assert PartialState._prepare_backend is before
    assert "ACCELERATE_USE_CPU" not in os.environ
    assert cfg.device_map is None
