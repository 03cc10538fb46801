"""A real vLLM server in a process group of its own, for tests and benchmarks."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx

_START_S = 300
_VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # offers to forget prefixes
    "HF_HUB_OFFLINE": "1",
}


class VLLMProcess:
    """A server on a free port; it forks, so it is stopped by its group.

    Args:
        python: Interpreter that has vLLM.
        model: Folder.
        log: File for what it says.
        options: More of its command line.
        api_key: That it asks for.
        threads: That it computes with.
    """

    def __init__(self, python: str, model: Path, log: Path, *options: str, api_key: str = "", threads: int = 1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        # As a module: the `vllm` command looks for a distribution of that name, which the CPU build's is not.
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", "float32"]
        command += ["--enforce-eager", "--host", "127.0.0.1", "--port", str(port), *options]
        command += ["--api-key", api_key] if api_key else []
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | _VARIABLES
        environment["OMP_NUM_THREADS"] = str(threads)
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command, cwd=log.parent, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def wait(self) -> None:
        """Return when it serves; fail with its log when it does not start."""
        deadline = time.monotonic() + _START_S
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        raise AssertionError(self._log.read_text(encoding="utf-8")[-3000:])

    def count(self, metric: str) -> float:
        """Return the sum of one of its counters."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{metric}{{"))

    def forget_prefixes(self) -> None:
        """Empty its prefix cache."""
        httpx.post(f"{self.url}/reset_prefix_cache", timeout=30).raise_for_status()

    def kill(self) -> None:
        """Stop it at once, with what it forked."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
