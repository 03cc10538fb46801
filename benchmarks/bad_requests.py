"""Ten thousand bad requests to the HTTP service: what they are answered with, and what they cost good ones and memory.

    make demo && python benchmarks/bad_requests.py
    python benchmarks/bad_requests.py --requests 1000 --clients 8

A real server process serves the quickstart's model on the loopback. A good client sends comparisons over one
connection, first alone; then beside `--clients` that send the requests of `tests/bad_requests.py`, drawn from a seed:
what is wrong with a body, with HTTP, and with the client. An answer counts as wrong where it is not of the statuses
that the request may have, or not a problem in the documented form.

The last line on stdout is one JSON object: `requests`; `server_errors` (answers of 500 and more but for 503, which
says when to come back); `hangs` (neither an answer nor an end of the connection within 20 s); `wrong` (of `requests`,
server errors and hangs included); `good_failed` (of the good client's); `memory_growth` (resident memory of the server
at the end over that after the first tenth, less 1); `latency_factor` (p95 of the good client beside the bad ones over
that alone). It fails where any count of faults is not 0, memory grew by over 10%, or a request was not answered.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]  # not this folder: the module of the same name is meant

import bad_requests  # noqa: E402
from service_process import ServiceProcess, run_service  # noqa: E402

MODEL = ROOT / "examples/quickstart/run/model"
ALONE = 500
MOST_GROWTH = 0.10


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="a model with its card (default: the quickstart's)")
    parser.add_argument("--requests", type=int, default=10_000, help="(default: 10000)")
    parser.add_argument("--clients", type=int, default=4, help="that send them at a time (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the requests (default: 0)")
    return parser.parse_args()


async def run(process: ServiceProcess, arguments: argparse.Namespace) -> dict:
    """Return what the last line says."""
    port = urlsplit(process.url).port
    alone = bad_requests.GoodClient(port)
    await alone.compare(ALONE)
    requests = list_by_tenth(arguments.requests)
    made = bad_requests.make_bad_requests(arguments.requests, arguments.seed)
    resident, attacks = [], []
    for count in requests:
        part = (request for _, request in zip(range(count), made, strict=False))
        attacks.append(await bad_requests.attack(port, part, arguments.clients))
        resident.append(process.read_resident_bytes())
        print(
            f"{sum(sum(one.statuses.values()) for one in attacks)} requests, {resident[-1] / 2**20:.0f} MiB", flush=True
        )
    statuses: dict[int, int] = {}
    for status, count in (pair for one in attacks for pair in one.statuses.items()):
        statuses[status] = statuses.get(status, 0) + count
    print("answers by status, 0 for none:", json.dumps(dict(sorted(statuses.items()))))
    for fault in [fault for one in attacks for fault in one.faults][:20]:
        print("wrong:", fault)
    beside = sorted(seconds for one in attacks for seconds in one.good.seconds)
    before = sorted(alone.seconds)
    for name, seconds in (("alone", before), ("beside", beside)):
        shares = (1000 * seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.95, 0.99, 1))
        print(f"good requests {name}: {len(seconds)}; p50, p95, p99, slowest, ms:", *(f"{ms:.1f}" for ms in shares))
    return {
        "requests": sum(statuses.values()),
        "server_errors": sum(count for status, count in statuses.items() if status >= 500 and status != 503),
        "hangs": sum(one.hangs for one in attacks),
        "wrong": sum(len(one.faults) for one in attacks),
        "good_failed": sum(len(one.good.failures) for one in attacks) + len(alone.failures),
        "memory_growth": round(resident[-1] / resident[0] - 1, 3),
        "latency_factor": round(beside[int(0.95 * len(beside))] / before[int(0.95 * len(before))], 1),
    }


def list_by_tenth(count: int) -> list[int]:
    """Return the sizes of ten parts of a number."""
    return [count * (place + 1) // 10 - count * place // 10 for place in range(10)]


def main() -> int:
    """Run, and print one JSON object last."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder, run_service(arguments.model, Path(folder) / "log") as process:
        result = asyncio.run(run(process, arguments))
        said = (Path(folder) / "log").read_text(encoding="utf-8")
        is_alive = process.process.poll() is None
    print("in the log: tracebacks or defects:", said.count("Traceback") + said.count("a defect"))
    print(json.dumps(result))
    is_clean = not any(result[name] for name in ("server_errors", "hangs", "wrong", "good_failed"))
    is_whole = is_alive and result["requests"] == arguments.requests
    return 0 if is_clean and is_whole and result["memory_growth"] <= MOST_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
