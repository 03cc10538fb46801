"""Training runs in processes forked from one that has imported axolotl already: ten seconds less for each rank.

    python tests/axolotl_runs.py        then one JSON line a run on stdin, two on stdout: process ids, exit codes

What a fork runs is what `torchrun -m axolotl.cli.train CONFIG --key value` runs in each rank, or axolotl.cli.preprocess
and merge_lora, with the variables that torchrun sets. The tests of torchrun itself start torchrun.
"""

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]


class AxolotlRuns:
    """The process that forks runs; started by the first run, ended by `close`."""

    def __init__(self):
        self._process: subprocess.Popen | None = None

    def run(self, config: Path, *given, **options) -> subprocess.CompletedProcess:
        """Run as `start` does, and return the exit code, with all output in `stdout`."""
        run = self.start(config, *given, **options)
        return subprocess.CompletedProcess(str(config), run.wait(), stdout=run.output())

    def start(
        self, config: Path, ranks: int = 1, environment: dict | None = None, command: str = "train", **options
    ) -> "ForkedRun":
        """Start to train a config on one rank or several, or "preprocess", "merge_lora"; with options as `--key value`.

        One run at a time: the next one starts when this one has been waited for.
        """
        if self._process is None:
            one_thread = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, __file__], cwd=ROOT, env=one_thread,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        log = Path(config).with_suffix(".log")
        asked = {"config": str(config), "ranks": ranks, "log": str(log), "environment": environment or {}}
        asked |= {"command": command, "options": options}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        return ForkedRun(self._process.stdout, log)

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.stdin.close()
            self._process.wait(timeout=30)


class ForkedRun:
    """A run that can be looked at while it goes on."""

    def __init__(self, answers, log: Path):
        self._answers, self._log = answers, log
        self._code: int | None = None
        self.workers: list[int] = json.loads(answers.readline())

    def is_alive(self) -> bool:
        """Return whether its first rank is there."""
        return Path(f"/proc/{self.workers[0]}").exists()

    def kill(self) -> None:
        """End all of it at once, as a power cut would."""
        for worker in self.workers:
            os.kill(worker, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Return its exit code: 0, or the largest of its ranks'."""
        if self._code is None:
            self._code = max(map(abs, json.loads(self._answers.readline())))
        return self._code

    def output(self) -> str:
        """Return all that it said."""
        return self._log.read_text(errors="replace")


def fork_rank(asked: dict, rank: int, port: int) -> int:
    """Fork a process that trains as one rank, and return its process id."""
    if child := os.fork():
        return child
    code = 1
    try:
        with open(asked["log"], "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if rank == 0 and asked["command"] == "train":
            check_saved_models_in_a_fork()
        ranks = str(asked["ranks"])
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **asked["environment"]}
        module = f"axolotl.cli.{asked['command']}"
        sys.argv = [module, asked["config"]]
        importlib.import_module(module).do_cli(asked["config"], **asked["options"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def check_saved_models_in_a_fork() -> None:
    """Have `verify_saved_model` ask a process that is forked here, where it would start one: six seconds less.

    It is a process of its own that knows nothing of the run, as the other is; the launched runs start the other.
    """
    from pair_pm import saved_model

    ours, theirs = multiprocessing.Pipe()
    if os.fork():
        theirs.close()

        def ask(command: list[str], **_) -> subprocess.CompletedProcess:
            ours.send(command)
            return subprocess.CompletedProcess(command, *ours.recv())

        saved_model.subprocess = SimpleNamespace(run=ask)
        return
    ours.close()
    code, out, err = 1, io.StringIO(), io.StringIO()
    try:
        _python, _m, module, *arguments = theirs.recv()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = importlib.import_module(module).main(arguments)
    except EOFError:
        os._exit(0)  # the run ended before it had a model to verify
    except BaseException:
        err.write(traceback.format_exc())
    theirs.send((code, out.getvalue(), err.getvalue()))
    os._exit(0)


def serve() -> None:
    """Fork the runs that stdin asks for, one after the other."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints on import is no answer
    import axolotl.cli.merge_lora
    import axolotl.cli.train
    import axolotl.core.builders.causal
    import axolotl.train  # noqa: F401
    import datasets
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401

    import pair_pm.pair_trainer  # noqa: F401

    save = datasets.Dataset.save_to_disk
    # In this process: with the number of processes that axolotl passes, saving starts a new interpreter.
    datasets.Dataset.save_to_disk = lambda rows, path, **_: save(rows, path)
    for line in sys.stdin:
        asked = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        Path(asked["log"]).unlink(missing_ok=True)
        children = [fork_rank(asked, rank, port) for rank in range(asked["ranks"])]
        print(json.dumps(children), file=answers, flush=True)
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
