"""How far the ways of scoring lie apart: each beside one prompt at a time through the model as transformers runs it.

    python benchmarks/exactness.py
    python benchmarks/exactness.py --model outputs/my-judge --vllm-python .venv-vllm/bin/python

Tiny models of random weights, one for each architecture (sliding windows of Mistral and Gemma-2 shorter than any
prompt), and a trained one where there is one (`make demo` leaves the quickstart's), on both orders of real pairs and a
ranking:

    batched    the same prompts in another order, so that each has other company
    padded     padded batches, what models whose layers cannot branch are fed
    shared     each shared prefix once: what is served
    merged     a LoRA adapter merged into the model, beside PEFT running it unmerged
    vllm       vLLM's server on the CPU (`--vllm-python`); the trained model alone, because its CPU attention takes no
               heads as small as those of the others

float32: the largest difference in log-odds. bfloat16, beside float32 with the same rounded weights: the 99th percentile
of the difference in log-odds, verdicts that flip among those with |log-odds| over 0.25, ties among log-odds that
float32 tells apart, and log-odds that are bfloat16 numbers; then the same for the model's own head in bfloat16.

The table is Markdown. The last line on stdout is one JSON object: `max_log_odds_difference_float32` over all models and
ways, `p99_log_odds_difference_bfloat16` (the largest), `flips_bfloat16`, `false_ties_bfloat16`, `on_grid_bfloat16`.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]  # runs from a clean clone

FAMILIES = ("llama", "gemma", "gemma2", "mistral", "qwen2", "qwen3")
DECIDED = 0.25
WAYS = ("batched", "padded", "shared", "merged", "vllm")

Prompts = list[list[int]]


def choose_prompts(encoder, pairs: int) -> Prompts:
    """Return both orders of pairs, and all ordered comparisons of four responses."""
    from scoring import read_pairs

    from pair_pm.scoring import render_both_orders

    rows = [row for row in read_pairs("hh-rlhf.test") if sum(map(len, row[1:])) + len(row[0][-1]["content"]) < 400]
    messages, responses = rows[0][0], [row[1] for row in rows[:4]]
    ranked = [(messages, one, other) for one in responses for other in responses if one != other]
    texts = [text for item in rows[:pairs] for text in render_both_orders(*item)]
    prompts = encoder.encode(texts + [render_both_orders(*item)[0] for item in ranked])
    return [ids for ids in prompts if len(ids) < 1000]


def score_alone(model, prompts: Prompts, label_ids: Sequence[int]) -> np.ndarray:
    """Return the log-odds of A against B, each prompt alone through the model's own forward pass."""
    import torch

    with torch.inference_mode():
        logits = [model(torch.tensor([ids])).logits[0, -1].double() for ids in prompts]
    return np.array([float(row[label_ids[0]] - row[label_ids[1]]) for row in logits])


def score(engine, prompts: Prompts) -> np.ndarray:
    """Return the log-odds that an engine gives."""
    logprobs = engine.label_logprobs(prompts)
    return logprobs[:, 0] - logprobs[:, 1]


def add_adapter(folder: Path, adapter: Path):
    """Write a LoRA adapter of random weights for a checkpoint, and return PEFT's model that runs it unmerged."""
    import torch
    from peft import LoraConfig, get_peft_model

    from pair_pm.checkpoint import load_model

    torch.manual_seed(1)
    model = get_peft_model(
        load_model(str(folder), device="cpu"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    model.save_pretrained(adapter)
    return model.eval()


def measure_float32(folder: Path, prompts: Prompts, label_ids, vllm_python: str | None) -> dict[str, float | None]:
    """Return the largest difference in log-odds of each way."""
    from pair_pm.checkpoint import load_model
    from pair_pm.engines.transformers_engine import TransformersEngine

    def load(**options):
        return load_model(str(folder), device="cpu", **options)

    alone = score_alone(load(), prompts, label_ids)
    assert np.ptp(alone) > 0.5, np.ptp(alone)  # prompts are told apart, or differences would say nothing
    shared = TransformersEngine(load(), label_ids)
    assert shared.shares_prefixes, folder
    padded = TransformersEngine(load(), label_ids, share_prefixes=False)
    order = np.random.default_rng(0).permutation(len(prompts))
    batched = np.empty(len(prompts))
    batched[order] = np.concatenate([score(padded, [prompts[i] for i in part]) for part in np.array_split(order, 7)])
    with tempfile.TemporaryDirectory() as adapter:
        unmerged = score_alone(add_adapter(folder, Path(adapter)), prompts, label_ids)
        merged = score(TransformersEngine(load(adapter=adapter), label_ids), prompts)
    assert np.abs(unmerged - alone).max() > 0.1  # the adapter does something
    served = None
    if vllm_python:
        served = np.abs(score_by_vllm(folder, prompts, vllm_python) - alone).max()
    found = {
        "batched": np.abs(batched - alone).max(),
        "padded": np.abs(score(padded, prompts) - alone).max(),
        "shared": np.abs(score(shared, prompts) - alone).max(),
        "merged": np.abs(merged - unmerged).max(),
        "vllm": served,
    }
    return {way: None if value is None else float(value) for way, value in found.items()}


def score_by_vllm(folder: Path, prompts: Prompts, python: str) -> np.ndarray:
    """Return the log-odds that a real server gives."""
    from vllm_process import VLLMProcess

    from pair_pm.scoring import PairScorer

    with tempfile.TemporaryDirectory() as logs:
        server = VLLMProcess(python, folder, Path(logs) / "vllm.log", "--max-model-len", "1024")
        try:
            server.wait()
            return score(PairScorer.from_pretrained(str(folder), engine=server.url).engine, prompts)
        finally:
            server.kill()


def measure_bfloat16(folder: Path, prompts: Prompts, label_ids) -> dict:
    """Return how far bfloat16 is from float32 with the same rounded weights."""

    from pair_pm.checkpoint import load_model
    from pair_pm.engines.transformers_engine import TransformersEngine

    own = load_model(str(folder), device="cpu", dtype="bfloat16")
    exact = score_alone(load_model(str(folder), device="cpu", dtype="bfloat16").float(), prompts, label_ids)
    found = score(TransformersEngine(load_model(str(folder), device="cpu", dtype="bfloat16"), label_ids), prompts)
    own_head = score_alone(own, prompts, label_ids)
    return {
        "decided": int((np.abs(exact) > DECIDED).sum()),
        **{name: compare(odds, exact) for name, odds in (("served", found), ("own_head", own_head))},
    }


def compare(found: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Return how far log-odds are from the exact ones."""
    import torch

    decided = np.abs(exact) > DECIDED
    return {
        "p99": float(np.percentile(np.abs(found - exact), 99)),
        "flips": int((np.sign(found) != np.sign(exact))[decided].sum()),
        "ties": count_ties(found, exact),
        "on_grid": int((torch.tensor(found).bfloat16().double().numpy() == found).sum()),
    }


def count_ties(found: np.ndarray, exact: np.ndarray) -> int:
    """Return how many log-odds equal another prompt's though the exact ones differ, or are 0 though they are not."""
    distinct = len(set(exact.tolist()))
    return distinct - len(set(found.tolist())) + int(((found == 0) & (exact != 0)).sum())


def main() -> None:
    """Print the tables, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trained = ROOT / "examples" / "quickstart" / "run" / "model"
    parser.add_argument("--model", type=Path, default=trained if trained.exists() else None, help="a trained one")
    parser.add_argument("--vllm-python", metavar="FILE", help="the interpreter of an environment that has vLLM")
    parser.add_argument("--pairs", type=int, default=60)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"

    from tiny_models import save_tiny_checkpoint

    from pair_pm.checkpoint import load_tokenizer
    from pair_pm.tokens import PromptEncoder

    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: save_tiny_checkpoint(Path(temporary) / name, name) for name in FAMILIES}
        if arguments.model:
            folders["trained"] = arguments.model
        else:
            print("there is no trained model: `make demo` makes the quickstart's", file=sys.stderr)
        for name, folder in folders.items():
            encoder = PromptEncoder(load_tokenizer(str(folder)))
            prompts, label_ids = choose_prompts(encoder, arguments.pairs), encoder.labels.label_ids
            rows[name] = (
                measure_float32(folder, prompts, label_ids, arguments.vllm_python if name == "trained" else None),
                measure_bfloat16(folder, prompts, label_ids),
            )
    columns = ("p99", "flips", "ties", "on_grid")
    print("| model | prompts over 0.25 | " + " | ".join([*WAYS, *columns, *(f"own head: {c}" for c in columns)]) + " |")
    print("|---|---|" + "---|" * (len(WAYS) + 2 * len(columns)))
    for name, (exact, rounded) in rows.items():
        cells = ["" if exact[way] is None else f"{exact[way]:.0e}" for way in WAYS]
        cells += [f"{rounded[head][column]:.3g}" for head in ("served", "own_head") for column in columns]
        print(f"| {name} | {rounded['decided']} | " + " | ".join(cells) + " |")
    served = [rounded["served"] for _, rounded in rows.values()]
    differences = [value for exact, _ in rows.values() for value in exact.values() if value is not None]
    figures = {
        "max_log_odds_difference_float32": max(differences),
        "p99_log_odds_difference_bfloat16": max(found["p99"] for found in served),
        "flips_bfloat16": sum(found["flips"] for found in served),
        "false_ties_bfloat16": sum(found["ties"] for found in served),
        "on_grid_bfloat16": sum(found["on_grid"] for found in served),
    }
    print(json.dumps({name: float(f"{value:.3g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main()
