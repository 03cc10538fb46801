"""What the scripts share on the command line: quiet libraries, and the arguments that name a trained model."""

import argparse
import ctypes
import logging
import os
import sys
from pathlib import Path

from pair_pm.scoring import PairScorer

# Their numbers in glibc's malloc.h; sizes in bytes, the last at its highest. Two arenas, because each keeps its own.
_MALLOC_OPTIONS = {
    "M_TRIM_THRESHOLD": (-1, 2**30),
    "M_TOP_PAD": (-2, 2**28),
    "M_MMAP_THRESHOLD": (-3, 2**25),
    "M_ARENA_MAX": (-8, 2),
}


def quieten_libraries() -> None:
    """Send our own warnings to stderr and keep other libraries to errors; call before they are imported."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.ERROR)
    logging.getLogger("pair_pm").setLevel(logging.WARNING)
    for talkative in ("torch.utils._pytree", "transformers", "DeepSpeed"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def add_model_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the arguments that `load_scorer` reads."""
    add = parser.add_argument
    add("--model", required=required, metavar="NAME_OR_PATH", help="trained checkpoint: a folder or a hub name")
    add("--adapter", metavar="NAME_OR_PATH", help="PEFT adapter to merge into it")
    add("--engine", metavar="URL[,URL]",
        help="score on these vLLM servers of the model (default: in this process; --model then still names its "
        "tokenizer, chat template and card); an API key is taken from PAIR_PM_ENGINE_API_KEY")  # fmt: skip
    add("--engine-timeout-s", type=float, metavar="S",
        help="give up when no server has answered for so long (default: 600)")  # fmt: skip
    add("--profile", choices=("native", "rlhflow"), default="native",
        help="rlhflow: a checkpoint of the published training, which saw no BOS")  # fmt: skip
    add("--temperature", type=float, help="divides the log-odds (default: the model card's, else 1)")
    add("--device", help="for example cuda:1 (default: cuda where there is one, else cpu)")
    add("--dtype", choices=("float32", "bfloat16", "float16"),
        help="default: the checkpoint's own on a GPU, float32 on a CPU")  # fmt: skip
    add("--attn-implementation", help="for example flash_attention_2 (default: transformers' choice)")
    add("--max-batch-tokens", type=int, help="most tokens scored at once (default: what suits the device)")
    add("--accept-control-text", action="store_true",
        help="serve a model whose special tokens or turn marks content could forge")  # fmt: skip


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where its C library is glibc; elsewhere nothing is done.

    A forward pass on the CPU takes and frees the same megabytes again and again. glibc gives them back to the kernel in
    between, or not, by what happens to lie behind them, and the kernel clears each page anew: 600 faults a pair, which
    cost a small model a sixth of its speed in one process and nothing in the next.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: 0)
    for option, value in _MALLOC_OPTIONS.values():
        mallopt(option, value)


def load_scorer(arguments: argparse.Namespace) -> PairScorer:
    """Return the scorer that the arguments name; the process is set up to compute with it."""
    keep_freed_memory()
    return PairScorer.from_pretrained(
        arguments.model,
        adapter=arguments.adapter,
        engine=arguments.engine,
        engine_timeout_s=arguments.engine_timeout_s,
        profile=arguments.profile,
        temperature=arguments.temperature,
        device=arguments.device,
        dtype=arguments.dtype,
        attn_implementation=arguments.attn_implementation,
        max_batch_tokens=arguments.max_batch_tokens,
        accept_control_text=arguments.accept_control_text,
    )


def identify_model(arguments: argparse.Namespace) -> dict[str, object]:
    """Return what the arguments say of a model's verdicts, as JSON can hold it: what a resumed run must repeat.

    Where it runs is no part: a run may go on at other addresses of `--engine`, on another device, or on servers after
    it began in this process. dtype, attention and batch size are, though servers take none of them: they decide last
    digits, so a run that chose them goes on in this process, with the same.
    """
    names = ("profile", "temperature", "dtype", "attn_implementation", "max_batch_tokens")
    described = {name: getattr(arguments, name) for name in names}
    for name in ("model", "adapter"):
        value = getattr(arguments, name)
        described[name] = str(Path(value).resolve()) if value and Path(value).exists() else value
    return described
