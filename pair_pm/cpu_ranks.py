"""A second, small axolotl plugin: several torchrun ranks on a machine without an accelerator.

`config/tiny-cpu.yml` alone names it. On a machine with an accelerator, or with one rank, it does nothing.
"""

import os

import torch
from axolotl.integrations.base import BasePlugin


class CPURanksPlugin(BasePlugin):
    """Makes axolotl, accelerate, DeepSpeed and FSDP2 agree on the CPU and gloo."""

    def register(self, cfg: dict) -> None:
        """Settle the process group's backend; runs before anything asks for it."""
        if not _has_only_cpu_ranks():
            return
        # A rank calls its device "cpu:0", and resuming asks torch to load optimizer state there; torch knows "cpu".
        torch.serialization.register_package(100, lambda _: None, _leave_on_numbered_cpu)
        if cfg.get("deepspeed"):
            os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
            _answer_gloo("NO")
        elif cfg.get("fsdp_config"):
            # Accelerate shards for kinds of accelerators alone: one of those, on this device all the same.
            os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
            _answer_gloo("MULTI_GPU")
        else:
            os.environ.setdefault("ACCELERATE_USE_CPU", "true")

    def load_datasets(self, cfg, preprocess: bool = False) -> None:
        """Put the model on the CPU: axolotl would place it on the accelerator of the rank's number."""
        if not _has_only_cpu_ranks():
            return
        cfg.device_map = {"": "cpu"}
        if cfg.fsdp_version == 2:
            # For the number axolotl opens a mesh of CUDA devices. The text means the same version to it, and leaves
            # the mesh to FSDP, which takes the devices that there are.
            cfg.fsdp_version = "2"


def _has_only_cpu_ranks() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()


def _leave_on_numbered_cpu(storage, location: str):
    return storage if location.startswith("cpu:") else None


def _answer_gloo(distributed_type: str) -> None:
    """Have accelerate open a gloo group for DeepSpeed or FSDP, where it would find no backend and count one process.

    With ACCELERATE_USE_CPU accelerate picks plain data parallelism and ignores both; without it, it knows no backend
    for a machine without an accelerator. No setting asks for gloo in a way that survives transformers, which resets
    the state once. accelerate is pinned, and a test holds this function to that version.

    Args:
        distributed_type: What accelerate is to take the ranks for, by the name of its `DistributedType`.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    original = PartialState._prepare_backend

    def prepare_backend(self, *args, **kwargs):
        backend, found = original(self, *args, **kwargs)
        return (backend, found) if backend else ("gloo", DistributedType(distributed_type))

    PartialState._prepare_backend = prepare_backend
    PartialState()
