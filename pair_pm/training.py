"""The axolotl plugin that every training config names.

    plugins:
      - pair_pm.training.PairPMPlugin

Before the first step it refuses a tokenizer or chat template that would train something else than what is served.
At every save it writes `pair_pm.json`, and after training it reloads the saved model and scores probe prompts with
it, so that weights which were not saved whole are noticed while the run is still at hand.
"""

import logging
import os
from pathlib import Path

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, Field
from transformers import TrainerCallback

from pair_pm.errors import ConfigError
from pair_pm.recipe import Recipe, write_recipe
from pair_pm.tokens import PromptEncoder, find_forgeable_text, refuse_forgeable_text

# A child of axolotl's logger, so that it goes where the rest of the run's log goes.
logger = logging.getLogger("axolotl.pair_pm")


class PairPMArgs(BaseModel):
    """The keys that the plugin adds to a training config."""

    accept_control_text: bool = Field(
        default=False, description="Train although content can forge some special token or turn mark; the card says so."
    )


class PairPMPlugin(BasePlugin):
    """Checks before training, and the recipe card after it."""

    def get_input_args(self) -> str:
        """Return where axolotl finds the plugin's config keys."""
        return "pair_pm.training.PairPMArgs"

    def load_datasets(self, cfg, preprocess: bool = False) -> None:
        """Check the tokenizer and chat template before anything is tokenised with them; axolotl loads the data."""
        from axolotl.loaders import load_tokenizer

        check_tokenizer(cfg, load_tokenizer(cfg))

    def add_callbacks_post_trainer(self, cfg, trainer) -> list[TrainerCallback]:
        """Return the callback that puts a card into each checkpoint."""
        return [_CardInCheckpoints(cfg)]

    def post_train_unload(self, cfg) -> None:
        """Verify the model that the run saved, and give it its card."""
        if _is_main_process():
            finish_run(cfg)


class _CardInCheckpoints(TrainerCallback):
    def __init__(self, cfg):
        self._cfg = cfg

    def on_save(self, args, state, control, processing_class=None, **kwargs) -> None:
        """Write the card beside the weights that were just saved."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            encoder = PromptEncoder(processing_class)
            write_recipe(folder, encoder, describe_run(self._cfg, encoder, step=state.global_step))


def check_tokenizer(cfg, tokenizer) -> None:
    """Refuse a tokenizer or chat template with which training and serving would part.

    Raises:
        TemplateError: today's date in the prompt, labels of more than one token, or control text that escapes.
        ConfigError: a data set is tokenised with another chat template than the one that is saved with the model.
    """
    from axolotl.utils.chat_templates import get_chat_template_from_config

    PromptEncoder(tokenizer)
    if not cfg.accept_control_text:
        refuse_forgeable_text(tokenizer)
    for dataset in [*(cfg.datasets or []), *(cfg.test_datasets or [])]:
        if get_chat_template_from_config(cfg, dataset, tokenizer) != tokenizer.chat_template:
            raise ConfigError(
                f"dataset {dataset.get('path')}: is rendered with a chat template that is not saved with the model; "
                "the tokenizer's own is required; set chat_template at the top level of the config instead"
            )


def describe_run(cfg, encoder: PromptEncoder, **training) -> Recipe:
    """Return what the card says of a run: `training` joins the fields that inform."""
    return Recipe(
        sequence_len=cfg.sequence_len,
        accepted_control_text=tuple(find_forgeable_text(encoder.tokenizer)) if cfg.accept_control_text else (),
        training={
            "base_model": cfg.base_model,
            "datasets": [dataset.get("path") for dataset in cfg.datasets or []],
            **training,
        },
    )


def finish_run(cfg) -> None:
    """Load the saved model as a scorer will, and write its card.

    Raises:
        CheckpointError: the weights are missing, of the wrong shape, or give no number.
    """
    from pair_pm.checkpoint import load_tokenizer
    from pair_pm.saved_model import verify_saved_model

    output = str(cfg.output_dir)
    label_mass = verify_saved_model(output, cfg.base_model if cfg.adapter else None)
    encoder = PromptEncoder(load_tokenizer(output))
    path = write_recipe(Path(output), encoder, describe_run(cfg, encoder))
    logger.info(
        "The saved model loads whole; on probe prompts A and B hold %.4f of the probability. Wrote %s", label_mass, path
    )


def _is_main_process() -> bool:
    # The process group is gone by then, torchrun's environment is not.
    return int(os.environ.get("RANK", "0")) == 0
