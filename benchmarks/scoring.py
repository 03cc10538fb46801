"""Pairs a second of the in-process engine, beside the published loop, what a competent user writes, and vLLM.

    python benchmarks/scoring.py
    python benchmarks/scoring.py --repeats 1 --vllm-python .venv-vllm/bin/python

Two Gemma shapes of random weights, float32, the same body of 30 million parameters in both:

    fifth   a head that holds a fifth of the parameters, as in Gemma-2B (the headline)
    256k    a vocabulary of 256,000: the head is four fifths of the model

Three kinds of work, each prompt in both orders:

    pairs   single-turn rows of hh-rlhf.test
    long    rows of dpo-demo-en whose context is at least four times as long as their two responses together
    rank8   all 56 ordered comparisons of 8 responses to one conversation of hh-rlhf.test

The ways take turns on the same prompts, at 1 to `--repeats`; ratios are medians over turns, of neighbours in time:

    loop        the published way: one prompt at a time, all logits
    competent   batches of 8 prompts of like length, padded on the left, logits of the last position alone
    ours        `TransformersEngine`: each shared prefix once, the head at the last positions
    vllm        vLLM's server on the CPU with prefix caching, all prompts sent at once (`--vllm-python`)

Beside each ratio to the loop stands what operation counts alone allow: the loop's multiplications over those of the
prefix tree with the head at the ends of the prompts. Where the shared data is missing, rows are generated.

The last line on stdout is one JSON object: `pairs_ratio_fifth`, `pairs_ratio_256k`, `long_context_ratio`,
`rank8_ratio`, each with its `…_ops_ratio`, `ratio_to_competent`, `ratio_to_vllm` (null where it is not installed),
`tokens_over_tree` (tokens computed over those of the prefix tree, padding included, the largest of all kinds of
work), `max_log_odds_difference` (to the loop).
"""

import argparse
import gzip
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# Runs from a clean clone, without installation.
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "quickstart"), str(ROOT / "tests")]
DATA = ROOT.parent / "shared" / "data"

VOCABULARIES = {"fifth": 14_000, "256k": 256_000}
BODY = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 7, "num_attention_heads": 8}
BODY |= {"num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 4096, "initializer_range": 0.05}
CANDIDATES = 8
MOST_PROMPT_TOKENS = 1500

Prompts = list[list[int]]
Pair = tuple[list[dict], str, str]


# ---- work -----------------------------------------------------------------------------------------------------------


def read_pairs(name: str) -> list[Pair]:
    """Return (messages, one response, the other) of a shared file, or of generated rows where it is missing."""
    path = DATA / f"{name}.jsonl.gz"
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
    else:
        from conversations import draw_row

        print(f"{path.name} is missing: generated rows stand in for it", file=sys.stderr)
        rng = random.Random(name)
        rows = [draw_row(rng, held_out=False) for _ in range(2000)]
    return [(row["chosen"][:-1], row["chosen"][-1]["content"], row["rejected"][-1]["content"]) for row in rows]


def measure_context(pair: Pair) -> int:
    """Return its characters."""
    return sum(len(message["content"]) for message in pair[0])


def choose_work(encoder, pairs: int) -> dict[str, Prompts]:
    """Return the token ids of each kind of work."""
    rng = random.Random(0)
    rows = read_pairs("hh-rlhf.test")
    single = rng.sample([pair for pair in rows if len(pair[0]) == 1], pairs)
    behind = [pair for pair in read_pairs("dpo-demo-en") if measure_context(pair) >= 4 * len(pair[1] + pair[2])]
    if not behind:  # generated conversations are short: the question of many stands before each pair
        long = [{"role": "user", "content": " ".join(pair[0][-1]["content"] for pair in rows[:60])}]
        behind = [(long, *pair[1:]) for pair in single[:8]]
    messages = single[0][0]
    responses = [pair[1] for pair in rng.sample(rows, CANDIDATES)]
    ranked = [(messages, one, other) for one in responses for other in responses if one != other]
    chosen = {"pairs": both_orders(encoder, single), "long": both_orders(encoder, behind)}
    from pair_pm.scoring import render_both_orders

    chosen["rank8"] = encoder.encode([render_both_orders(*item)[0] for item in ranked])
    return {name: [ids for ids in prompts if len(ids) <= MOST_PROMPT_TOKENS] for name, prompts in chosen.items()}


def both_orders(encoder, pairs: Sequence[Pair]) -> Prompts:
    """Return two prompts for each pair."""
    from pair_pm.scoring import render_both_orders

    return encoder.encode([prompt for pair in pairs for prompt in render_both_orders(*pair)])


def save_checkpoint(shape: str, folder: Path) -> Path:
    """Write a Gemma of random weights with a tokenizer trained on hh-rlhf.test's text."""
    import torch
    from base_model import CHAT_TEMPLATE, train_tokenizer
    from transformers import GemmaConfig, GemmaForCausalLM

    texts = (text for messages, *pair in read_pairs("hh-rlhf.test") for text in (messages[-1]["content"], *pair))
    tokenizer = train_tokenizer(texts, VOCABULARIES["fifth"], ["<|pad|>"])
    tokenizer.pad_token, tokenizer.chat_template = "<|pad|>", CHAT_TEMPLATE
    torch.manual_seed(0)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    GemmaForCausalLM(GemmaConfig(**BODY, **ids, vocab_size=VOCABULARIES[shape])).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---- operation counts -----------------------------------------------------------------------------------------------


def count_loop(prompts: Prompts, vocabulary: int) -> float:
    """Return the multiplications of the published loop: every token of every prompt, and its logits."""
    tokens = sum(map(len, prompts))
    attended = sum(len(ids) * (len(ids) + 1) // 2 for ids in prompts)
    return count_body(tokens, attended) + tokens * BODY["hidden_size"] * vocabulary


def count_tree(prompts: Prompts, vocabulary: int) -> float:
    """Return those of the prefix tree, with the head at the end of each prompt."""
    nodes = dict.fromkeys(range(max(map(len, prompts))), 0)
    for ids, shared in new_tokens(prompts):
        for position in range(shared, len(ids)):
            nodes[position] += 1
    attended = sum((position + 1) * count for position, count in nodes.items())
    return count_body(sum(nodes.values()), attended) + len(prompts) * BODY["hidden_size"] * vocabulary


def count_body(tokens: int, attended: int) -> float:
    """Return the multiplications of the layers; `attended` counts the pairs of a token and one that it sees."""
    hidden, size, heads = BODY["hidden_size"], BODY["head_dim"], BODY["num_attention_heads"]
    projections = 2 * hidden * size * (heads + BODY["num_key_value_heads"]) + 3 * hidden * BODY["intermediate_size"]
    return BODY["num_hidden_layers"] * (tokens * projections + attended * 2 * heads * size)


def new_tokens(prompts: Prompts) -> Iterator[tuple[list[int], int]]:
    """Yield each distinct prompt with the length of its longest prefix that came before: the nodes of a trie."""
    seen: dict = {}
    for ids in prompts:
        node, shared = seen, None
        for position, token in enumerate(ids):
            if token not in node and shared is None:
                shared = position
            node = node.setdefault(token, {})
        yield ids, len(ids) if shared is None else shared


# ---- ways -----------------------------------------------------------------------------------------------------------


def load(folder: Path):
    """Return the checkpoint as every way loads it."""
    from pair_pm.checkpoint import load_model

    return load_model(str(folder), device="cpu")


def make_loop(folder: Path, label_ids: Sequence[int]) -> Callable[[Prompts], np.ndarray]:
    """Return the published way: prompts to log-odds of A against B."""
    import torch

    model = load(folder)

    @torch.inference_mode()
    def loop(prompts: Prompts) -> np.ndarray:
        odds = []
        for ids in prompts:
            last = model(torch.tensor([ids])).logits[0, -1]
            odds.append((last[label_ids[0]] - last[label_ids[1]]).item())
        return np.array(odds)

    return loop


def make_competent(folder: Path, label_ids: Sequence[int], rows: int = 8) -> Callable[[Prompts], np.ndarray]:
    """Return length-sorted batches, padded on the left so that the last position is every prompt's own."""
    import torch

    model = load(folder)

    @torch.inference_mode()
    def competent(prompts: Prompts) -> np.ndarray:
        odds = np.empty(len(prompts))
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for start in range(0, len(order), rows):
            batch = order[start : start + rows]
            width = max(len(prompts[index]) for index in batch)
            ids = torch.tensor([[0] * (width - len(prompts[index])) + prompts[index] for index in batch])
            mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in batch])
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=1).logits[:, -1]
            odds[batch] = (logits[:, label_ids[0]] - logits[:, label_ids[1]]).numpy()
        return odds

    return competent


def make_ours(folder: Path, label_ids: Sequence[int], compiled: bool = False, dtype: str = "float32"):
    """Return the engine, and its way from prompts to log-odds."""
    import torch

    from pair_pm.checkpoint import load_model
    from pair_pm.engines.transformers_engine import TransformersEngine

    engine = TransformersEngine(load_model(str(folder), device="cpu", dtype=dtype), label_ids)
    if compiled:
        engine.model.forward = torch.compile(engine.model.forward, dynamic=True)

    def ours(prompts: Prompts) -> np.ndarray:
        logprobs = engine.label_logprobs(prompts)
        return logprobs[:, 0] - logprobs[:, 1]

    return engine, ours


# ---- measuring ------------------------------------------------------------------------------------------------------


def take_turns(
    ways: dict[str, Callable], prompts: Prompts, repeats: int, title: str, base: str = "loop"
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Return the seconds of each way in each turn, and its log-odds."""
    from tqdm import tqdm

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    odds = {name: way(prompts[:2]) for name, way in ways.items()}  # warms up
    for _ in tqdm(range(repeats), desc=title, disable=None):
        for name, way in ways.items():
            started = time.perf_counter()
            odds[name] = way(prompts)
            seconds[name].append(time.perf_counter() - started)
    for name, measured in seconds.items():
        rate = [len(prompts) / 2 / second for second in measured]
        print(
            f"{title:12} {name:10} {statistics.median(rate):7.2f} pairs/s ({min(rate):.2f} to {max(rate):.2f})   "
            f"{ratio(seconds, base, name):5.2f} times {base}"
        )
    return seconds, odds


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> float:
    """Return how many times the pairs a second of `one` the way `other` makes: of neighbours in time."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def measure(shape: str, work: dict[str, Prompts], folder: Path, label_ids, repeats: int, more: dict) -> dict[str, dict]:
    """Return the figures of each kind of work on one shape."""
    engine, ours = make_ours(folder, label_ids)
    assert engine.shares_prefixes
    ways = {"loop": make_loop(folder, label_ids), "competent": make_competent(folder, label_ids), "ours": ours, **more}
    found = {}
    for name, prompts in work.items():
        seconds, odds = take_turns(ways, prompts, repeats, f"{shape} {name}")
        engine.tokens_computed = 0
        ours(prompts)
        tree = sum(len(ids) - shared for ids, shared in new_tokens(prompts))
        found[name] = {
            "ratio": ratio(seconds, "loop", "ours"),
            "ops": count_loop(prompts, VOCABULARIES[shape]) / count_tree(prompts, VOCABULARIES[shape]),
            "competent": ratio(seconds, "competent", "ours"),
            "vllm": ratio(seconds, "vllm", "ours") if "vllm" in seconds else None,
            "tokens": engine.tokens_computed / tree,
            "difference": float(np.abs(odds["ours"] - odds["loop"]).max()),
        }
        print(
            f"{'':12} ours {found[name]['ratio']:.2f} times the loop, of {found[name]['ops']:.2f} by operation counts; "
            f"{found[name]['competent']:.2f} times the competent way; {found[name]['tokens']:.3f} of the tree's tokens"
        )
    return found


def print_additions(prompts: Prompts, folder: Path, label_ids: Sequence[int], repeats: int) -> None:
    """Print what bfloat16 and torch.compile add to our way."""
    ways = {
        "ours": make_ours(folder, label_ids)[1],
        "bfloat16": make_ours(folder, label_ids, dtype="bfloat16")[1],
        "compiled": make_ours(folder, label_ids, compiled=True)[1],
    }
    for way in ways.values():
        way(prompts)  # each length may compile anew
    seconds, _ = take_turns(ways, prompts, repeats, "additions", "ours")
    print(", ".join(f"{name}: {ratio(seconds, 'ours', name):.2f} times as fast" for name in list(ways)[1:]))


def start_vllm(python: str, folder: Path, threads: int):
    """Return a server of the checkpoint with prefix caching, and its way from prompts to log-odds."""
    from vllm_process import VLLMProcess

    from pair_pm.scoring import PairScorer

    server = VLLMProcess(python, folder, folder / "vllm.log", threads=threads)
    server.wait()
    engine = PairScorer.from_pretrained(str(folder), engine=server.url).engine

    def vllm(prompts: Prompts) -> np.ndarray:
        server.forget_prefixes()  # of the turn before: they would make it a lookup
        logprobs = engine.label_logprobs(prompts)
        return logprobs[:, 0] - logprobs[:, 1]

    return server, vllm


def main() -> None:
    """Print the measurements, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--vllm-python", metavar="FILE", help="the interpreter of an environment that has vLLM")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from pair_pm.checkpoint import load_tokenizer
    from pair_pm.command_line import quieten_libraries
    from pair_pm.tokens import PromptEncoder

    quieten_libraries()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folders = {shape: save_checkpoint(shape, Path(temporary) / shape) for shape in VOCABULARIES}
        encoder = PromptEncoder(load_tokenizer(str(folders["fifth"])))
        label_ids, work = encoder.labels.label_ids, choose_work(encoder, arguments.pairs)
        for name, prompts in work.items():
            print(f"{name}: {len(prompts)} prompts of {sum(map(len, prompts)) / len(prompts):.0f} tokens on average")
        more, server = {}, None
        if arguments.vllm_python:
            server, more["vllm"] = start_vllm(arguments.vllm_python, folders["fifth"], arguments.threads)
        try:
            fifth = measure("fifth", work, folders["fifth"], label_ids, arguments.repeats, more)
        finally:
            if server:
                server.kill()
        large = measure("256k", {"pairs": work["pairs"]}, folders["256k"], label_ids, arguments.repeats, {})
        print_additions(work["pairs"], folders["fifth"], label_ids, arguments.repeats)
    kinds = {
        "pairs_ratio_fifth": fifth["pairs"],
        "pairs_ratio_256k": large["pairs"],
        "long_context_ratio": fifth["long"],
        "rank8_ratio": fifth["rank8"],
    }
    figures = {name: found["ratio"] for name, found in kinds.items()}
    figures |= {name.replace("ratio", "ops_ratio"): found["ops"] for name, found in kinds.items()}
    figures |= {
        "ratio_to_competent": fifth["pairs"]["competent"],
        "ratio_to_vllm": fifth["pairs"]["vllm"],
        "tokens_over_tree": max(found["tokens"] for found in kinds.values()),
        "max_log_odds_difference": max(found["difference"] for found in kinds.values()),
    }
    print(json.dumps({name: value if value is None else float(f"{value:.3g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main()
