"""A tiny base model and A/B data, and training runs of config/tiny-cpu.yml on them."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from axolotl_runs import AxolotlRuns
from conftest import LLAMA3_TEMPLATE, ROOT, make_small_tokenizer
from tiny_models import LLAMA3_MARKS, save_tiny_checkpoint

STEPS = 6
# What axolotl makes of the same rows without the plugin: its own strategy, trainer and loss.
STOCK_STANZA = {
    "type": "chat_template",
    "field_messages": "messages",
    "roles_to_train": ["assistant"],
    "train_on_eos": "none",
}
LIVE = ("pair_accuracy", "position_consistency", "label_loss", "label_mass", "prob_a", "order_bias")
PLUGIN, CPU_RANKS = "pair_pm.training.PairPMPlugin", "pair_pm.cpu_ranks.CPURanksPlugin"
PACKED = {"sample_packing": True, "pad_to_sequence_len": True, "micro_batch_size": 2, "sequence_len": 512}

# axolotl picks Triton kernels for an adapter unless it is told not to; they need a GPU.
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True} | {
    f"lora_{part}_kernel": False for part in ("mlp", "qkv", "o")
}


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def launch_line(config: Path, *options: str) -> list[str]:
    """Return torchrun's command for a config."""
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "axolotl.cli.train", str(config)]


def name_deepspeed_file(stage: int) -> str:
    """Return what `--deepspeed` takes."""
    return f"deepspeed_configs/deepspeed_{stage}.json"


def make_tokenizer():
    return make_small_tokenizer(LLAMA3_TEMPLATE, LLAMA3_MARKS, split="llama3")


def write_preferences(path: Path, pairs: int = 64, start: int = 0) -> Path:
    rows = []
    for number in range(start, start + pairs):
        context = [{"role": "user", "content": f"Say {number} kindly."}]
        sides = {"chosen": f"Gladly: {number}.", "rejected": "No, " + "never " * (number % 7)}
        rows.append({k: [*context, {"role": "assistant", "content": v}] for k, v in sides.items()})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Workshop:
    """A tiny base model and A/B data, and runs of config/tiny-cpu.yml on them."""

    def __init__(self, folder: Path, runs: AxolotlRuns, preferences: Path | None = None, max_length: int = 1024):
        from pair_pm.pair_conversion import ConversionOptions
        from pair_pm.pair_dataset import build_pair_dataset

        self.folder = folder
        self.runs = runs
        preferences = preferences or write_preferences(folder / "preferences.jsonl")
        self.base = save_tiny_checkpoint(folder / "base", tokenizer=make_tokenizer())
        options = ConversionOptions(both_orders=True, tokenizer=str(self.base), max_length=max_length)
        build_pair_dataset([str(preferences)], str(folder / "pairs.jsonl"), options)
        # 13 pairs: neither ranks nor batches divide them.
        self.held_out = write_preferences(folder / "held_out.jsonl", pairs=13, start=1000)
        build_pair_dataset([str(self.held_out)], str(folder / "pairs.eval.jsonl"), ConversionOptions())

    def train(self, name: str, ranks: int = 1, **given) -> Path:
        """Train, and return the output folder."""
        done = self.run(name, ranks, **given)
        assert done.returncode == 0, done.stdout[-5000:]
        return self.folder / name

    def run(
        self,
        name: str,
        ranks: int = 1,
        deepspeed: int | None = None,
        environment: dict | None = None,
        command: str = "train",
        **overrides,
    ) -> subprocess.CompletedProcess:
        """Train, or "preprocess", and return how it ended, with all that it said in `stdout`."""
        options = {"deepspeed": name_deepspeed_file(deepspeed)} if deepspeed else {}
        return self.runs.run(self.write_config(name, **overrides), ranks, environment, command, **options)

    def launch(
        self, name: str, ranks: int = 1, deepspeed: int | None = None, environment: dict | None = None, **overrides
    ) -> Path:
        """Train with torchrun, as the README says, and return the output folder; what it said is in `<name>.log`."""
        arguments = ["--deepspeed", name_deepspeed_file(deepspeed)] if deepspeed else []
        command = launch_line(self.write_config(name, **overrides), "--standalone", "--nproc_per_node", str(ranks))
        variables = ENVIRONMENT | (environment or {})
        done = subprocess.run(
            [*command, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600, check=False
        )
        (self.folder / f"{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return self.folder / name

    def write_config(self, name: str, stock: bool = False, **overrides) -> Path:
        """Write config/tiny-cpu.yml for this folder's model and data, with overrides; `stock` leaves the plugin out."""
        config = yaml.safe_load((ROOT / "config/tiny-cpu.yml").read_text(encoding="utf-8"))
        stanza = config["datasets"][0] | {"path": str(self.folder / "pairs.jsonl")} | (STOCK_STANZA if stock else {})
        config |= {
            "base_model": str(self.base),
            "test_datasets": None,
            "evals_per_epoch": None,
            "plugins": [CPU_RANKS] if stock else [PLUGIN, CPU_RANKS],
            "datasets": [stanza],
            "dataset_prepared_path": str(self.folder / "tokenized"),
            "output_dir": str(self.folder / name),
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
        given = {key: value for key, value in config.items() if value is not None}
        path.write_text(yaml.safe_dump(given), encoding="utf-8")
        return path

    def rows(self) -> list[dict]:
        """Return the training rows, both orders of a pair side by side."""
        lines = (self.folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def prompts(self) -> list[str]:
        """Return the prompts of the training rows."""
        return [row["messages"][0]["content"] for row in self.rows()]

    @property
    def evaluated(self) -> dict:
        """The keys that evaluate on the held-out pairs, of which the file holds one order each."""
        path = str(self.folder / "pairs.eval.jsonl")
        return {"test_datasets": [{"path": path, "ds_type": "json", "type": "pair_pm.both_orders"}], "eval_steps": 4}


def read_log(output: Path, key: str = "loss", steps: int = STEPS) -> list[dict]:
    """Return what the trainer logged at each step, or with "eval_loss" at each evaluation."""
    state = json.loads((output / f"checkpoint-{steps}/trainer_state.json").read_text(encoding="utf-8"))
    return [entry for entry in state["log_history"] if key in entry]


def losses(output: Path, steps: int = STEPS) -> list[float]:
    return [entry["loss"] for entry in read_log(output, steps=steps)]


def score(model: Path, prompts: list[str], **options) -> np.ndarray:
    """Return a model's label log-probabilities after prompts."""
    from pair_pm import PairScorer

    scorer = PairScorer.from_pretrained(str(model), **options)
    return scorer.engine.label_logprobs(scorer.encoder.encode(prompts))


def assert_scores_as_last_evaluated(output: Path, held_out: Path, base: Path | None = None) -> None:
    """Compare what evaluate_pair_rm.py prints for a model, or adapter of `base`, with the run's last live numbers."""
    import evaluate_pair_rm

    last, printed = read_log(output, "eval_loss")[-1], io.StringIO()
    assert last["step"] == STEPS
    model = ["--model", str(base), "--adapter", str(output)] if base else ["--model", str(output)]
    with contextlib.redirect_stdout(printed):
        assert evaluate_pair_rm.main([*model, "--dataset", str(held_out)]) == 0
    report = json.loads(printed.getvalue())
    assert report["pairs"] == 13
    for name in LIVE:
        assert abs(last[f"eval_{name}"] - report[name.removeprefix("pair_")]) < 1e-4, name
