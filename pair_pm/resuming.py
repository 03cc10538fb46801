"""Which checkpoint a run resumes from, and whether it can write any.

    torchrun … -m axolotl.cli.train config/gemma-2b-it.yml --auto-resume-from-checkpoints true

A run that was killed while it saved leaves a checkpoint that is not whole, with the highest number of all. The card
`pair_pm.json` is written last, so a checkpoint that has one is whole.
"""

import logging
import os
import shutil
import tempfile
from pathlib import Path

from pair_pm.errors import CheckpointError
from pair_pm.recipe import CARD_NAME

logger = logging.getLogger("axolotl.pair_pm")


def resume_from_whole_checkpoint(cfg) -> None:
    """Replace axolotl's choice, the checkpoint with the highest number, by the last one that is whole."""
    if not cfg.auto_resume_from_checkpoints or cfg.resume_from_checkpoint:
        return
    found = [path for path in Path(cfg.output_dir).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    found.sort(key=lambda path: int(path.name.rpartition("-")[2]))
    whole = [path for path in found if (path / CARD_NAME).exists()]
    for path in found:
        if path not in whole:
            logger.warning("%s: has no %s, so it was not written to its end; it is removed", path, CARD_NAME)
            if is_main_process():
                shutil.rmtree(path)
    cfg.resume_from_checkpoint = str(whole[-1]) if whole else None
    cfg.auto_resume_from_checkpoints = False
    logger.info("Resuming from %s", whole[-1]) if whole else logger.info("No whole checkpoint: starting anew")


def check_output_dir(cfg) -> None:
    """Refuse an output folder that cannot be written, before the run has cost anything.

    Raises:
        CheckpointError: it cannot be made, or a file in it cannot.
    """
    try:
        Path(cfg.output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cfg.output_dir) as file:
            file.write(b"x")
    except OSError as error:
        raise CheckpointError(
            f"output_dir {cfg.output_dir}: {error}; a folder that can be written is required"
        ) from error


def is_main_process() -> bool:
    """Return whether this is rank 0 by torchrun's environment, which is there before a process group and after it."""
    return int(os.environ.get("RANK", "0")) == 0
