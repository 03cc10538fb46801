"""What the engine costs beside a vLLM server, and what the server's prefix cache gives rankings.

    make test-vllm && python benchmarks/vllm.py --vllm-python .venv-vllm/bin/python
    python benchmarks/vllm.py --vllm-python .venv-vllm/bin/python --pairs 100 --repeats 1

A server on the CPU answers in turn

    score   `serve_pair_rm.py score --engine URL` on labelled pairs: reading, rendering, tokenising, verdicts, journal;
            timed by its own summary, which leaves out the loading of libraries and tokenizer
    bare    a client that has the same requests ready as bytes and sends as many at once, as fast as it can

once with a model of 26 million random parameters, whose compute counts, and on ten times the pairs with the
quickstart's model of 0.3 million, which `make demo` leaves: there server and client do little but text and HTTP, on the
same cores. The verdicts of `score` are compared with those in process. The larger model, served with and without prefix
caching, also ranks candidates that share a long conversation, every pair in both orders.

The last line on stdout is one JSON object: `ratio_to_bare_client` (pairs a second, the median of the turns),
`pairs_a_second`, `max_log_odds_difference`, the same with `quickstart_` before them,
`ranking_speedup_by_prefix_caching`, `cached_share` (of the prompt tokens of the rankings).
"""

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "examples/quickstart")]  # runs from a clean clone

from vllm_process import VLLMProcess  # noqa: E402

QUICKSTART_MODEL = ROOT / "examples/quickstart/run/model"
SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
POSITIONS = 1024
CANDIDATES = 8
CONTEXT_ROWS = 12  # of the quickstart, for one conversation of about 500 tokens


@contextmanager
def serve(python: str, folder: Path, *servers: tuple[Path, str]) -> Iterator[list[VLLMProcess]]:
    """Start servers of models, each with an option, side by side, and stop them."""
    options = ["--max-model-len", str(POSITIONS)]
    started = [
        VLLMProcess(python, model, folder / f"{number}.log", *options, option)
        for number, (model, option) in enumerate(servers)
    ]
    try:
        for server in started:
            server.wait()
        yield started
    finally:
        for server in started:
            server.kill()


def write_pairs(path: Path, pairs: int, seed: int) -> Path:
    """Write labelled pairs."""
    import conversations

    draw = random.Random(seed)
    rows = (conversations.draw_row(draw, held_out=True) for _ in range(pairs))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def time_score(model: Path, input: Path, output: Path, url: str) -> float:
    """Return the seconds that the command takes for the rows of a file."""
    command = [sys.executable, str(ROOT / "serve_pair_rm.py"), "score", "--model", str(model), "--engine", url]
    command += ["--input", str(input), "--output", str(output), "--overwrite"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)["seconds"]


def time_bare(bodies: list[bytes], url: str) -> float:
    """Return the seconds that a client takes which does nothing but send requests."""
    from pair_pm.engines.vllm_engine import REQUESTS_AT_ONCE
    from pair_pm.engines.vllm_server import COMPLETIONS

    waiting: SimpleQueue[bytes] = SimpleQueue()
    for body in bodies:
        waiting.put(body)

    def send() -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        while True:
            try:
                body = waiting.get_nowait()
            except Empty:
                return connection.close()
            connection.request("POST", COMPLETIONS, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status == 200, said

    threads = [threading.Thread(target=send) for _ in range(REQUESTS_AT_ONCE)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - started


def make_bodies(model: Path, scorer, input: Path) -> list[bytes]:
    """Return the requests that `score` makes of a file."""
    from pair_pm.engines.dispatch import split_neighbours
    from pair_pm.engines.vllm_engine import PROMPTS_A_REQUEST, TOKENS_A_REQUEST
    from pair_pm.engines.vllm_server import ask_for_labels
    from pair_pm.score_file import ROWS_A_BLOCK
    from pair_pm.scoring import render_both_orders

    items, bodies = read_items(input), []
    for start in range(0, len(items), ROWS_A_BLOCK):
        texts = [text for item in items[start : start + ROWS_A_BLOCK] for text in render_both_orders(*item)]
        prompts = list(dict.fromkeys(map(tuple, scorer.encoder.encode(texts))))
        for batch in split_neighbours(prompts, PROMPTS_A_REQUEST, TOKENS_A_REQUEST):
            question = ask_for_labels(str(model), [prompts[index] for index in batch], scorer.encoder.labels.label_ids)
            bodies.append(json.dumps(question).encode())
    return bodies


def read_items(input: Path) -> list[tuple]:
    """Return conversation and responses of the pairs of a file."""
    from pair_pm.labelled_source import read_labelled_pairs

    return [(pair.messages, pair.first, pair.second) for pair in read_labelled_pairs(str(input)).pairs]


def compare_clients(model: Path, url: str, folder: Path, pairs: int, repeats: int) -> dict[str, float]:
    """Measure both clients in turn, print their seconds, and compare the verdicts with those in process."""
    import numpy as np

    from pair_pm import PairScorer

    scorer = PairScorer.from_pretrained(str(model))
    seconds: dict[str, list[float]] = {"score": [], "bare": []}
    time_bare(make_bodies(model, scorer, write_pairs(folder / "warm.jsonl", 32, seed=-1)), url)
    for repeat in range(repeats):
        input, output = write_pairs(folder / f"{repeat}.jsonl", pairs, seed=repeat), folder / f"{repeat}.scored.jsonl"
        bodies = make_bodies(model, scorer, input)
        for name in ("score", "bare") if repeat % 2 else ("bare", "score"):
            taken = time_score(model, input, output, url) if name == "score" else time_bare(bodies, url)
            seconds[name].append(taken)
            print(f"turn {repeat + 1}   {name:5} {pairs} pairs in {taken:6.2f} s")
    found = [json.loads(line)["log_odds_of_a"] for line in output.read_text(encoding="utf-8").splitlines()]
    expected = [verdict.log_odds_of_a for verdict in scorer.compare_many(read_items(input))]
    ratios = [bare / score for score, bare in zip(*seconds.values(), strict=True)]
    return {
        "ratio_to_bare_client": statistics.median(ratios),
        "pairs_a_second": pairs / statistics.median(seconds["score"]),
        "max_log_odds_difference": float(np.abs(np.subtract(found, expected)).max()),
    }


def write_larger_model(folder: Path) -> Path:
    """Write a Llama of random weights with the quickstart's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART_MODEL)
    torch.manual_seed(0)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = LlamaConfig(
        **SHAPE, **special, vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, tie_word_embeddings=True
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def draw_candidates(seed: int) -> tuple[list[dict], list[str]]:
    """Return a long conversation and responses to it."""
    import conversations

    draw = random.Random(seed)
    messages: list[dict] = []
    for _ in range(CONTEXT_ROWS):
        messages += conversations.draw_row(draw, held_out=True)["chosen"][-2:]
    responses = [conversations.draw_row(draw, held_out=True)["chosen"][-1]["content"] for _ in range(CANDIDATES)]
    return messages[:-1], responses


def compare_caching(model: Path, cached: VLLMProcess, plain: VLLMProcess, repeats: int) -> dict[str, float]:
    """Rank the same candidates on both servers in turn."""
    from pair_pm import PairScorer

    seconds: dict[str, list[float]] = {"with": [], "without": []}
    scorers = {
        name: PairScorer.from_pretrained(str(model), engine=server.url)
        for name, server in (("with", cached), ("without", plain))
    }
    for repeat in range(repeats):
        messages, responses = draw_candidates(repeat)
        for name, scorer in scorers.items():
            started = time.monotonic()
            scorer.rank(messages, responses)
            seconds[name].append(time.monotonic() - started)
            print(f"turn {repeat + 1}   ranking of {CANDIDATES} {name} prefix caching {seconds[name][-1]:6.2f} s")
    return {
        "ranking_speedup_by_prefix_caching": statistics.median(
            slow / fast for fast, slow in zip(*seconds.values(), strict=True)
        ),
        "cached_share": cached.count("prefix_cache_hits_total") / cached.count("prefix_cache_queries_total"),
    }


def main() -> None:
    """Print the measurements, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", required=True, metavar="PATH", help="interpreter that has vLLM")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    python, pairs, repeats = str(Path(arguments.vllm_python).absolute()), arguments.pairs, arguments.repeats
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_larger_model(folder / "larger")
        servers = [(model, "--enable-prefix-caching"), (model, "--no-enable-prefix-caching")]
        with serve(python, folder, *servers) as [cached, plain]:
            figures = compare_caching(model, cached, plain, repeats)
            figures |= compare_clients(model, cached.url, folder, pairs, repeats)
        with serve(python, folder, (QUICKSTART_MODEL, "--enable-prefix-caching")) as [server]:
            found = compare_clients(QUICKSTART_MODEL, server.url, folder, 10 * pairs, repeats)
            figures |= {f"quickstart_{name}": value for name, value in found.items()}
    print(json.dumps({name: float(f"{value:.3g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main()
