"""Training runs in processes forked from one that has imported axolotl already: ten seconds less for each run.

    python tests/axolotl_runs.py        then one JSON line a run on stdin, one JSON line with exit codes on stdout

What a fork runs is what `torchrun -m axolotl.cli.train CONFIG` runs in each rank, or axolotl.cli.preprocess, with the
variables that torchrun sets. The tests of torchrun itself start torchrun.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class AxolotlRuns:
    """The process that forks runs; started by the first run, ended by `close`."""

    def __init__(self):
        self._process: subprocess.Popen | None = None

    def run(
        self, config: Path, ranks: int = 1, environment: dict | None = None, command: str = "train"
    ) -> subprocess.CompletedProcess:
        """Train a config on one rank or several, or "preprocess", and return the exit code, all output in `stdout`."""
        if self._process is None:
            one_thread = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, __file__], cwd=ROOT, env=one_thread,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        log = Path(config).with_suffix(".log")
        asked = {"config": str(config), "ranks": ranks, "log": str(log), "environment": environment or {}}
        asked["command"] = command
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        codes = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(str(config), max(map(abs, codes)), stdout=log.read_text(errors="replace"))

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.stdin.close()
            self._process.wait(timeout=30)


def fork_rank(asked: dict, rank: int, port: int) -> int:
    """Fork a process that trains as one rank, and return its process id."""
    if child := os.fork():
        return child
    code = 1
    try:
        with open(asked["log"], "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        ranks = str(asked["ranks"])
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **asked["environment"]}
        module = f"axolotl.cli.{asked['command']}"
        sys.argv = [module, asked["config"]]
        importlib.import_module(module).do_cli(asked["config"])
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def serve() -> None:
    """Fork the runs that stdin asks for, one after the other."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints on import is no answer
    import axolotl.cli.train
    import axolotl.core.builders.causal
    import axolotl.train  # noqa: F401

    import pair_pm.pair_trainer  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        Path(asked["log"]).unlink(missing_ok=True)
        children = [fork_rank(asked, rank, port) for rank in range(asked["ranks"])]
        codes = []
        while children:
            child, status = os.wait()
            if child in children:
                children.remove(child)
                codes.append(os.waitstatus_to_exitcode(status))
                if codes[-1]:  # as torchrun does: the others would wait for it
                    for other in children:
                        os.kill(other, signal.SIGKILL)
        print(json.dumps(codes), file=answers, flush=True)


if __name__ == "__main__":
    serve()
