"""Time and memory of a training step: the stock loss, TRL's chunked loss and the pair loss, on the same rows.

    python benchmarks/training.py
    python benchmarks/training.py --repeats 1 --threads 2

Two Gemma shapes of random weights, float32, 4 rows of 512 tokens with one label each, forward, backward and AdamW:

    256k     30 million parameters in the body and a vocabulary of 256,000: the head is four fifths of the model
    gemma2b  the same body and a head that holds a fifth of the parameters, as in Gemma-2B

The three ways take turns, each in a process of its own; the first step warms up and gives the peak of memory above the
loaded model, the next ones are timed. Then stock and ours train a small model from the same weights for 50 steps, and
their loss curves are compared. On a GPU, compare with Liger's fused linear cross-entropy and Cut Cross Entropy as well:
both are axolotl integrations, and both need Triton.

The last line on stdout is one JSON object: `step_ratio_256k` and `step_ratio_gemma2b` (stock's time over ours),
`peak_ratio_256k` (our peak over stock's), `time_over_trl` and `peak_over_trl` (ours over TRL's, the larger of the two
shapes), `max_relative_loss_difference`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not this folder, whose vllm.py TRL would take for the package
ROWS, LENGTH = 4, 512
LABEL_IDS = (235280, 235305)
WAYS = ("stock", "trl", "ours")
_BODY = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 7, "num_attention_heads": 8}
_BODY |= {"num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 1024}
SHAPES = {
    "256k": {**_BODY, "vocab_size": 256_000},
    "gemma2b": {**_BODY, "vocab_size": 14_000},
    "curve": {**_BODY, "vocab_size": 8_000, "num_hidden_layers": 2},
}
_TIMED_STEPS = {"256k": 1, "gemma2b": 3}  # a step of the former takes long enough to be timed alone


def make_model(shape: str):
    """Return a Gemma of random weights, its head tied to its embedding as Gemma's is."""
    import torch
    from transformers import GemmaConfig, GemmaForCausalLM

    torch.manual_seed(0)
    return GemmaForCausalLM(GemmaConfig(**SHAPES[shape], use_cache=False)).train()


def make_rows(shape: str, seed: int = 0):
    """Return input ids, and labels that are -100 but for the last token but one: "A" or "B"."""
    import torch

    vocabulary = SHAPES[shape]["vocab_size"]
    label_ids = torch.tensor([label % vocabulary for label in LABEL_IDS])
    ids = torch.randint(0, vocabulary, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))
    labels = torch.full_like(ids, -100)
    ids[:, -2] = labels[:, -2] = label_ids[torch.arange(ROWS) % 2]
    return ids, labels, label_ids


def make_loss(way: str, model):
    """Return the function from rows to loss that a way computes."""
    if way == "ours":
        return make_pair_loss(model)
    if way == "trl":
        from trl.trainer.sft_trainer import _patch_chunked_ce_lm_head

        _patch_chunked_ce_lm_head(model, chunk_size=256)  # as its trainer does for `loss_type="chunked_nll"`
    return lambda ids, labels, label_ids: model(input_ids=ids, labels=labels).loss


def make_pair_loss(model):
    """Return the pair loss, as `pair_pm.pair_trainer` computes it."""
    import torch

    from pair_pm.pair_loss import LabelOnlyHead, Targets, compute_pair_loss, find_label_positions

    head = LabelOnlyHead(model)

    def loss(ids, labels, label_ids):
        positions = find_label_positions(labels)
        answers = labels.flatten()[positions + 1]
        targets = Targets((answers == label_ids[0]).float(), torch.arange(len(positions)))
        with head.at(positions):
            logits = model(input_ids=ids).logits[0]
        return compute_pair_loss(logits, label_ids, targets).rows.mean()

    return loss


def measure_steps(way: str, shape: str, threads: int) -> dict:
    """Return the seconds of a step and the peak of memory above the loaded model, in bytes."""
    import torch

    torch.set_num_threads(threads)
    model = make_model(shape)
    compute_loss, rows = make_loss(way, model), make_rows(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> float:
        optimizer.zero_grad()
        loss = compute_loss(*rows)
        loss.backward()
        optimizer.step()
        return loss.item()

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    loaded = read_memory("VmRSS")
    loss = step()
    peak = read_memory("VmHWM") - loaded
    seconds = []
    for _ in range(_TIMED_STEPS[shape]):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds), "peak": peak, "loss": loss}


def read_memory(name: str) -> int:
    """Return a figure of this process's memory in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return 1024 * int(line.split()[1])


def train_curve(way: str, threads: int, steps: int = 50) -> list[float]:
    """Return the losses of a small model over some steps, other rows in each."""
    import torch

    torch.set_num_threads(threads)
    model = make_model("curve")
    compute_loss = make_loss(way, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for number in range(steps):
        optimizer.zero_grad()
        loss = compute_loss(*make_rows("curve", seed=number))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def run_child(*arguments: str, threads: int):
    """Return what a measurement in a process of its own prints."""
    command = [sys.executable, __file__, "--threads", str(threads), "--child", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def compare_steps(shape: str, repeats: int, threads: int) -> dict[str, float]:
    """Measure the three ways in turn, print their medians and spreads, and return ours over the others'."""
    from tqdm import tqdm

    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    for _ in tqdm(range(repeats), desc=shape, disable=None):
        for way in WAYS:
            found[way].append(run_child("step", way, shape, threads=threads))
    for way, measured in found.items():
        seconds, peaks = ([entry[key] for entry in measured] for key in ("seconds", "peak"))
        print(
            f"{shape:8} {way:6} {statistics.median(seconds):7.2f} s ({min(seconds):.2f} to {max(seconds):.2f})   "
            f"{statistics.median(peaks) / 1e9:6.2f} GB above the model   loss {measured[0]['loss']:.6f}"
        )

    def ratio(key: str, way: str) -> float:
        # Of neighbours in time, because the machine's pace drifts.
        return statistics.median(ours[key] / other[key] for ours, other in zip(found["ours"], found[way], strict=True))

    return {f"{key}_{way}": ratio(key, way) for key in ("seconds", "peak") for way in ("stock", "trl")}


def main() -> None:
    """Print the measurements, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, *rest = arguments.child
        print(json.dumps((measure_steps if kind == "step" else train_curve)(*rest, threads=arguments.threads)))
        return
    large, small = (compare_steps(shape, arguments.repeats, arguments.threads) for shape in ("256k", "gemma2b"))
    stock, ours = (run_child("curve", way, threads=arguments.threads) for way in ("stock", "ours"))
    print(
        f"curve    stock {stock[0]:.6f} -> {stock[-1]:.6f}, ours {ours[0]:.6f} -> {ours[-1]:.6f} over {len(ours)} steps"
    )
    figures = {
        "step_ratio_256k": 1 / large["seconds_stock"],
        "peak_ratio_256k": large["peak_stock"],
        "step_ratio_gemma2b": 1 / small["seconds_stock"],
        "time_over_trl": max(large["seconds_trl"], small["seconds_trl"]),
        "peak_over_trl": max(large["peak_trl"], small["peak_trl"]),
        "max_relative_loss_difference": max(abs(a - b) / abs(b) for a, b in zip(ours, stock, strict=True)),
    }
    print(json.dumps({name: float(f"{value:.3g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main()
