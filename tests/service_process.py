"""A real `serve_pair_rm.py serve` in a process of its own, on a port that it finds free, for tests and benchmarks."""

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# It loads torch, and the machine may be busy.
_START_S = 300
_STOP_S = 180


@dataclass(frozen=True)
class ServiceProcess:
    """A service that listens.

    Attributes:
        url: Where, without a slash at the end.
        process: The process, to be sent signals to.
        log: File that holds what it has said on stdout and stderr.
    """

    url: str
    process: subprocess.Popen
    log: Path

    def read_resident_bytes(self) -> int:
        """Return how much memory it has in RAM."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()


@contextmanager
def run_service(model: Path, log: Path, *options: str, api_key: str = "") -> Iterator[ServiceProcess]:
    """Start a service on a model, wait until it listens, give it, and stop it.

    Args:
        model: Checkpoint with its card.
        log: File to write what it says to.
        options: More of its command line; a `--port` of them takes the place of the free one.
        api_key: That its environment holds; "" for none, whatever this process has.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PAIR_PM_API_KEY"}
    environment |= {"PAIR_PM_API_KEY": api_key} if api_key else {}
    command = [sys.executable, str(ROOT / "serve_pair_rm.py"), "serve", "--model", str(model), "--port", "0", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield ServiceProcess(_wait_for_address(process, log), process, log)
    finally:
        process.terminate()  # nothing, where it has ended
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _wait_for_address(process: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        has_ended = process.poll() is not None
        said = log.read_text(encoding="utf-8", errors="replace")
        if found := re.search(r" at (http://\S+:\d+): a page", said):
            return found[1]
        if has_ended:
            break
        time.sleep(0.05)
    raise AssertionError(f"no service: {log.read_text(encoding='utf-8', errors='replace')[-3000:]}")
