"""Training for real, small: axolotl under torchrun, with one rank and two, plainly and with each DeepSpeed stage."""

import gzip
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import LLAMA3_TEMPLATE, ROOT, make_small_tokenizer, with_chat_template
from tiny_models import LLAMA3_MARKS, save_tiny_checkpoint

STEPS = 6
DATED_TEMPLATE = "{{ strftime_now('%Y-%m-%d') }}" + LLAMA3_TEMPLATE


def make_tokenizer():
    return make_small_tokenizer(LLAMA3_TEMPLATE, LLAMA3_MARKS, split="llama3")


def write_preferences(path: Path, pairs: int = 64) -> Path:
    rows = []
    for number in range(pairs):
        context = [{"role": "user", "content": f"Say {number} kindly."}]
        sides = {"chosen": f"Gladly: {number}.", "rejected": "No, " + "never " * (number % 7)}
        rows.append({k: [*context, {"role": "assistant", "content": v}] for k, v in sides.items()})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Workshop:
    """A tiny base model and A/B data, and runs of config/tiny-cpu.yml on them."""

    def __init__(self, folder: Path, preferences: Path, max_length: int = 1024):
        from pair_pm.pair_conversion import ConversionOptions
        from pair_pm.pair_dataset import build_pair_dataset

        self.folder = folder
        self.base = save_tiny_checkpoint(folder / "base", tokenizer=make_tokenizer())
        options = ConversionOptions(both_orders=True, tokenizer=str(self.base), max_length=max_length)
        build_pair_dataset([str(preferences)], str(folder / "pairs.jsonl"), options)

    def train(self, name: str, ranks: int = 1, deepspeed: int | None = None, **overrides) -> Path:
        """Train in a process group of its own, and return the output folder."""
        config = yaml.safe_load((ROOT / "config/tiny-cpu.yml").read_text(encoding="utf-8"))
        stanza = config["datasets"][0] | {"path": str(self.folder / "pairs.jsonl")}
        output = self.folder / name
        config |= {
            "base_model": str(self.base),
            "datasets": [stanza],
            "dataset_prepared_path": str(self.folder / "tokenized"),
            "output_dir": str(output),
            "sequence_len": 1024,
            "max_steps": STEPS,
            "micro_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "save_strategy": "steps",
            "save_steps": STEPS // 2,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            **overrides,
        }
        path = self.folder / f"{name}.yml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        command += ["-m", "axolotl.cli.train", str(path)]
        if deepspeed:
            command += ["--deepspeed", f"deepspeed_configs/deepspeed_{deepspeed}.json"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return output


def read_log(output: Path) -> list[dict]:
    """Return what the trainer logged at each step."""
    state = json.loads((output / f"checkpoint-{STEPS}/trainer_state.json").read_text(encoding="utf-8"))
    return [entry for entry in state["log_history"] if "loss" in entry]


def losses(output: Path) -> list[float]:
    return [entry["loss"] for entry in read_log(output)]


def score(output: Path) -> np.ndarray:
    """Return the label log-probabilities of a saved model on prompts of its own training data."""
    from pair_pm import PairScorer

    scorer = PairScorer.from_pretrained(str(output))
    lines = (output.parent / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    prompts = [json.loads(line)["messages"][0]["content"] for line in lines]
    return scorer.engine.label_logprobs(scorer.encoder.encode(prompts))


def split_at_label(row: dict) -> tuple[tuple[int, ...], int]:
    """Return the ids before the one token that bears loss, and that token."""
    (position,) = (index for index, label in enumerate(row["labels"]) if label != -100)
    return tuple(row["input_ids"][:position]), row["labels"][position]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    return Workshop(folder, write_preferences(folder / "preferences.jsonl"))


@pytest.fixture(scope="module")
def plain_ranks(workshop) -> Path:
    return workshop.train("two_ranks", ranks=2)


def test_two_ranks_follow_the_loss_of_one_rank_that_accumulates_twice(workshop, plain_ranks):
    one_rank = workshop.train("one_rank", gradient_accumulation_steps=2)
    assert losses(plain_ranks) == pytest.approx(losses(one_rank), rel=1e-4)
    assert losses(plain_ranks)[-1] < losses(plain_ranks)[0]


def test_both_ranks_train_their_own_rows_one_label_each(plain_ranks):
    assert [entry["tokens/trainable"] for entry in read_log(plain_ranks)] == [8 * step for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_over_two_ranks_trains_and_saves_as_plain_ranks_do(workshop, plain_ranks, stage):
    output = workshop.train(f"zero_{stage}", ranks=2, deepspeed=stage)
    assert losses(output) == pytest.approx(losses(plain_ranks), rel=1e-3)
    assert [entry["tokens/trainable"] for entry in read_log(output)][-1] == 8 * STEPS
    np.testing.assert_allclose(score(output), score(plain_ranks), atol=1e-3)


def test_every_save_carries_a_card_that_its_own_tokenizer_confirms(plain_ranks):
    from pair_pm.checkpoint import load_tokenizer
    from pair_pm.recipe import read_recipe
    from pair_pm.tokens import PromptEncoder

    for folder in (plain_ranks, plain_ranks / f"checkpoint-{STEPS // 2}", plain_ranks / f"checkpoint-{STEPS}"):
        recipe = read_recipe(folder / "pair_pm.json", PromptEncoder(load_tokenizer(str(folder))))
        assert recipe.sequence_len == 1024
        assert recipe.versions["axolotl"]


def test_a_model_trained_on_real_conversations_compares_new_ones_with_the_ids_it_was_trained_on(
    shared_dir, tmp_path_factory
):
    """Everything through the scripts' own code; the ids from the very rows that axolotl packed for this run."""
    import datasets

    from pair_pm import PairScorer

    folder = tmp_path_factory.mktemp("real")
    with gzip.open(shared_dir / "data/hh-rlhf.train.jsonl.gz", "rt", encoding="utf-8") as file:
        (folder / "preferences.jsonl").write_text("".join(islice(file, 400)), encoding="utf-8")
    output = Workshop(folder, folder / "preferences.jsonl").train("model")
    scorer = PairScorer.from_pretrained(str(output))

    (prepared,) = (path for path in (folder / "tokenized").iterdir() if path.is_dir())
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

    from pair_pm.tokens import PromptEncoder
    from pair_pm.training import describe_run

    encoder = PromptEncoder(make_small_tokenizer(LLAMA3_TEMPLATE, (*LLAMA3_MARKS, "<strange>"), split="llama3"))
    accepted = describe_run(DictDefault(accept_control_text=True), encoder).accepted_control_text
    assert accepted == ("<strange>",)


def test_a_data_set_with_a_chat_template_of_its_own_is_refused():
    from pair_pm.errors import ConfigError

    with pytest.raises(ConfigError, match=r"pairs\.jsonl: is rendered with a chat template that is not saved"):
        check(make_tokenizer(), datasets=[{"path": "pairs.jsonl", "chat_template": "chatml"}])


# ---- what was saved -------------------------------------------------------------------------------------------------


def test_a_model_that_was_saved_without_its_weights_is_noticed(tmp_path):
    from safetensors.torch import load_file, save_file

    from pair_pm.errors import CheckpointError
    from pair_pm.saved_model import probe_label_mass, verify_saved_model

    folder = save_tiny_checkpoint(tmp_path / "model", tokenizer=make_tokenizer())
    assert verify_saved_model(str(folder)) == pytest.approx(probe_label_mass(str(folder)), rel=1e-4)
    weights = load_file(folder / "model.safetensors")
    emptied = {name: weight[:0].clone() if "mlp" in name else weight for name, weight in weights.items()}
    save_file(emptied, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="does not load whole"):
        verify_saved_model(str(folder))


def test_a_model_whose_weights_are_not_numbers_is_noticed(tmp_path):
    from safetensors.torch import load_file, save_file

    from pair_pm.errors import CheckpointError
    from pair_pm.saved_model import probe_label_mass

    folder = save_tiny_checkpoint(tmp_path / "model", tokenizer=make_tokenizer())
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="finite ones are required"):
        probe_label_mass(str(folder))


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
