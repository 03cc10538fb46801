"""A second, small axolotl plugin: several torchrun ranks on a machine without an accelerator.

`config/tiny-cpu.yml` alone names it. On a machine with an accelerator, or with one rank, it does nothing.
"""

import os

import torch
from axolotl.integrations.base import BasePlugin


class CPURanksPlugin(BasePlugin):
    """Makes axolotl, accelerate and DeepSpeed agree on the CPU and gloo."""

    def register(self, cfg: dict) -> None:
        """Settle the process group's backend; runs before anything asks for it."""
        if not _has_only_cpu_ranks():
            return
        if cfg.get("deepspeed"):
            _answer_gloo()
        else:
            os.environ.setdefault("ACCELERATE_USE_CPU", "true")

    def load_datasets(self, cfg, preprocess: bool = False) -> None:
        """Put the model on the CPU: axolotl would place it on the accelerator of the rank's number."""
        if _has_only_cpu_ranks():
            cfg.device_map = {"": "cpu"}


def _has_only_cpu_ranks() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()


def _answer_gloo() -> None:
    """Have accelerate open a gloo group for DeepSpeed, where it would find no backend and count one process.

    With ACCELERATE_USE_CPU accelerate picks plain data parallelism and ignores DeepSpeed; without it, it knows no
    backend for a machine without an accelerator. No setting asks for gloo in a way that survives transformers, which
    resets the state once. accelerate is pinned, and a test holds this function to that version.
    """
    from accelerate.state import PartialState

    original = PartialState._prepare_backend

    def prepare_backend(self, *args, **kwargs):
        backend, distributed_type = original(self, *args, **kwargs)
        return backend or "gloo", distributed_type

    PartialState._prepare_backend = prepare_backend
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState()
