"""The HTTP service beside the offline path: pairs a second, latency, failures, memory.

    make demo && python benchmarks/service.py
    python benchmarks/service.py --repeats 1 --seconds 5

Two models on this machine's CPU: a Gemma of 30 million random parameters with 14,000 tokens of vocabulary (`gemma`),
and the quickstart's of 0.3 million (`tiny`), where HTTP, JSON and tokenising are a quarter of the work. The small one
comes twice: with all cores for its forward passes, which HTTP and the clients then take from them, and with one thread
for them (`tiny_one_thread`), offline as well, so that they do not. A real server process answers closed-loop clients
over sockets of the loopback: each sends one comparison, waits for the verdict, and sends the next. In turn,
`--repeats` times:

    offline   `serve_pair_rm.py score` on the rows, timed by its own summary, which leaves out loading
    service   1, 8 and 32 clients on the same rows
    engine    bare calls of the engine in this process, one pair each, with ids ready

The last line on stdout is one JSON object: `ratio_to_offline` (pairs a second of 32 clients over `score`'s),
`latency_ratio_one_client` (median latency of one client, less the batch window, over the median of a bare call),
`p99_ms_32`, `failed` (requests not answered 200, of all), `memory_growth` (resident memory of the server after all
turns over that before them, less 1), each of the Gemma; the same with `tiny_` and `tiny_one_thread_` before them.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]  # runs from a clean clone

from scoring import read_pairs, save_checkpoint  # noqa: E402
from service_process import run_service  # noqa: E402

QUICKSTART = ROOT / "examples/quickstart"
CASES = ("gemma", "tiny", "tiny_one_thread")
CLIENTS = (1, 8, 32)
LONGEST_PAIR = 1200  # characters, so that a row is like another and a turn takes seconds
WINDOW_MS = 3.0
HEAD = b"POST /v1/compare HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@dataclass
class Turns:
    """What was measured of one model, a number a turn."""

    offline: list[float] = field(default_factory=list)
    service: dict[int, list[float]] = field(default_factory=dict)
    latencies: dict[int, list[float]] = field(default_factory=dict)
    engine_ms: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    failed: int = 0


async def run_clients(port: int, bodies: list[bytes], clients: int) -> tuple[float, list[float], int]:
    """Return the seconds that clients take for all bodies, each request's latency in ms, and how many failed."""
    waiting = iter(bodies)
    latencies: list[float] = []
    failed = 0

    async def ask() -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in waiting:
            started = time.perf_counter()
            writer.write(b"%sContent-Length: %d\r\n\r\n%s" % (HEAD, len(body), body))
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", answer)[1]))
            latencies.append(1000 * (time.perf_counter() - started))
            failed += not answer.startswith(b"HTTP/1.1 200 ")
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(clients)))
    return time.perf_counter() - started, latencies, failed


def score_offline(model: Path, rows: Path, folder: Path) -> float:
    """Return the pairs a second of `serve_pair_rm.py score`."""
    command = [sys.executable, str(ROOT / "serve_pair_rm.py"), "score", "--model", str(model), "--overwrite"]
    done = subprocess.run(
        [*command, "--input", str(rows), "--output", str(folder / "scored.jsonl")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    summary = json.loads(done.stdout)
    return summary["rows"] / summary["seconds"]


def time_engine(scorer, pairs: list) -> float:
    """Return the median milliseconds of an engine call for one pair."""
    times = []
    for pair in pairs:
        [prompts] = scorer.encode_each([pair])
        ids = [prompt.ids for prompt in prompts]
        started = time.perf_counter()
        scorer.engine.label_logprobs(ids)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Let this process and those that it starts compute on so many cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        del os.environ["OMP_NUM_THREADS"]


def measure(model: Path, pairs: list, repeats: int, seconds: float, folder: Path) -> Turns:
    """Return what the turns measured."""
    from pair_pm import PairScorer
    from pair_pm.command_line import keep_freed_memory

    keep_freed_memory()  # as the commands do that it is compared with
    scorer = PairScorer.from_pretrained(str(model))
    pairs = [pair for pair in pairs if scorer.fits(*pair)]
    rate = len(pairs[:16]) / _time(lambda: scorer.compare_many(pairs[:16]))
    pairs = (pairs * 100)[: max(64, int(rate * seconds))]
    rows = folder / "rows.jsonl"
    records = [{"messages": messages, "responses": [one, other]} for messages, one, other in pairs]
    rows.write_text("".join(json.dumps(record) + "\n" for record in records))
    bodies = [json.dumps(record).encode() for record in records]
    turns = Turns(service={n: [] for n in CLIENTS}, latencies={n: [] for n in CLIENTS})
    with run_service(model, folder / "log", "--batch-window-ms", str(WINDOW_MS)) as service:
        port = urlsplit(service.url).port
        asyncio.run(run_clients(port, bodies, 32))  # what grows once
        turns.resident.append(service.read_resident_bytes())
        for _ in range(repeats):
            turns.offline.append(score_offline(model, rows, folder))
            for clients in reversed(CLIENTS):
                share = bodies if clients > 1 else bodies[: len(bodies) // 4]
                took, latencies, failed = asyncio.run(run_clients(port, share, clients))
                turns.service[clients].append(len(share) / took)
                turns.latencies[clients] += latencies
                turns.failed += failed
            turns.engine_ms.append(time_engine(scorer, pairs[: max(16, len(pairs) // 4)]))
        turns.resident.append(service.read_resident_bytes())
    return turns


def _time(call) -> float:
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def percentile(values: list[float], share: float) -> float:
    """Return the value below which a share of them lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def report(name: str, turns: Turns) -> dict[str, float]:
    """Print a table of the turns, and return the figures."""
    offline, engine_ms = statistics.median(turns.offline), statistics.median(turns.engine_ms)
    print(f"\n{name}: score {offline:.1f} pairs/s; engine {engine_ms:.2f} ms a pair")
    print(f"  {'clients':>7} {'pairs/s':>9} {'of score':>9} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8}")
    ratios = {}
    for clients in CLIENTS:
        by_turn = [speed / offline for speed, offline in zip(turns.service[clients], turns.offline, strict=True)]
        ratios[clients] = statistics.median(by_turn)
        shown = [percentile(turns.latencies[clients], share) for share in (0.5, 0.95, 0.99)]
        print(
            f"  {clients:>7} {statistics.median(turns.service[clients]):>9.1f} {ratios[clients]:>9.2f} "
            + " ".join(f"{value:>8.1f}" for value in shown)
            + f"   ({min(by_turn):.2f} to {max(by_turn):.2f})"
        )
    first, last = (turns.resident[place] / 2**20 for place in (0, -1))
    print(f"  resident {first:.0f} MB, after all {last:.0f} MB; failed {turns.failed}")
    one = statistics.median(turns.latencies[1])
    return {
        "ratio_to_offline": round(ratios[32], 3),
        "latency_ratio_one_client": round((one - WINDOW_MS) / engine_ms, 3),
        "p99_ms_32": round(percentile(turns.latencies[32], 0.99), 1),
        "failed": turns.failed,
        "memory_growth": round(last / first - 1, 4),
    }


def main() -> None:
    """Measure the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="turns (default: 3)")
    parser.add_argument("--seconds", type=float, default=15, help="of offline work a turn (default: 15)")
    parser.add_argument("--only", choices=CASES, help="one case alone")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = [pair for pair in read_pairs("hh-rlhf.test") if len(json.dumps(pair)) < LONGEST_PAIR]
        for case in [arguments.only] if arguments.only else CASES:
            model = save_checkpoint("fifth", folder / case) if case == "gemma" else QUICKSTART / "run/model"
            with use_threads(1 if case == "tiny_one_thread" else os.cpu_count()):
                turns = measure(model, pairs, arguments.repeats, arguments.seconds, folder)
            prefix = "" if case == "gemma" else f"{case}_"
            figures |= {f"{prefix}{name}": value for name, value in report(case, turns).items()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
