"""Does a model that training saved load whole and give numbers? Asked in a process of its own.

    python -m pair_pm.saved_model outputs/gemma-2b-it
    python -m pair_pm.saved_model outputs/my-adapter --base-model google/gemma-2b-it

A training process cannot ask it: under ZeRO-3 axolotl replaces a function of transformers for good, so that
whatever that process loads is sharded over ranks that are gone.
"""

import argparse
import json
import os
import subprocess
import sys

from pair_pm.errors import CheckpointError, PairPMError
from pair_pm.tokens import PROBE_PROMPTS, PromptEncoder

# What torchrun and accelerate leave in the environment; with it the child would wait for other ranks.
_RUN_VARIABLES = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "MASTER_")
_RANK_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK"}


def verify_saved_model(output: str, base_model: str | None = None) -> list[list[float]]:
    """Load a saved model in a new process, and return the labels' log-probabilities after each probe prompt.

    Args:
        output: Folder of the model, or of an adapter.
        base_model: What an adapter belongs to.
    Raises:
        CheckpointError: the weights are missing, of the wrong shape, or give no number.
    """
    command = [sys.executable, "-m", "pair_pm.saved_model", output]
    command += ["--base-model", base_model] if base_model else []
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_RUN_VARIABLES) and name not in _RANK_VARIABLES
    }
    # On the CPU: the accelerators still hold the trainer's memory.
    environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it ended without a word"]
        raise CheckpointError(
            f"{output}: the saved model does not load whole: {lines[-1]}; whole weights are required; the checkpoints "
            "in it may have them"
        )
    return json.loads(done.stdout.splitlines()[-1])["probe_logprobs"]


def score_probes(output: str, base_model: str | None = None) -> list[list[float]]:
    """Return the log-probabilities of A and B after each probe prompt.

    Raises:
        CheckpointError: the weights are not whole, or give no number.
    """
    import numpy as np

    from pair_pm.checkpoint import load_model, load_tokenizer
    from pair_pm.engines.transformers_engine import TransformersEngine

    encoder = PromptEncoder(load_tokenizer(output))
    model = load_model(base_model or output, adapter=output if base_model else None, device="cpu", dtype="auto")
    logprobs = TransformersEngine(model, encoder.labels.label_ids).label_logprobs(encoder.encode(PROBE_PROMPTS))
    if not np.isfinite(logprobs).all():
        raise CheckpointError(
            f"{output}: A and B have the log-probabilities {logprobs.tolist()} after probe prompts; "
            "finite ones are required"
        )
    return logprobs.tolist()


def main(argv: list[str] | None = None) -> int:
    """Print what a saved model gives the labels after probe prompts, as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a saved model or adapter")
    parser.add_argument("--base-model", metavar="NAME_OR_PATH", help="what an adapter belongs to")
    arguments = parser.parse_args(argv)
    from pair_pm.command_line import quieten_libraries

    quieten_libraries()
    try:
        logprobs = score_probes(arguments.model, arguments.base_model)
    except PairPMError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"probe_logprobs": logprobs}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
