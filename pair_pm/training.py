"""The axolotl plugin that every training config names.

    plugins:
      - pair_pm.training.PairPMPlugin

Before the first step it refuses a tokenizer or chat template that would train something else than what is served.
`python -m pair_pm.training check CONFIG` says beforehand what it would refuse, and shows what would be trained on.
At every save it writes `pair_pm.json`, and after training it reloads the saved model and scores probe prompts with
it, so that weights which were not saved whole are noticed while the run is still at hand.
"""

import argparse
import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, Field

from pair_pm.errors import ConfigError
from pair_pm.old_config import find_type_problems
from pair_pm.recipe import describe_run, write_recipe
from pair_pm.tokens import PromptEncoder, refuse_forgeable_text

# A child of axolotl's logger, so that it goes where the rest of the run's log goes.
logger = logging.getLogger("axolotl.pair_pm")


class PairPMArgs(BaseModel):
    """The keys that the plugin adds to a training config."""

    accept_control_text: bool = Field(
        default=False, description="Train although content can forge some special token or turn mark; the card says so."
    )
    label_only_logits: bool = Field(
        default=True, description="Compute the logits of the labels' positions alone: same loss, less memory and time."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, le=1, description="Share of each target that is spread evenly over A and B."
    )
    symmetry_weight: float = Field(
        default=0.0, ge=0, description="Weight of (d_AB + d_BA)², the log-odds' sum over the orders of a pair."
    )


class PairPMPlugin(BasePlugin):
    """Checks before training, float32 weights for FSDP, and the recipe card after it."""

    def get_input_args(self) -> str:
        """Return where axolotl finds the plugin's config keys."""
        return "pair_pm.training.PairPMArgs"

    def load_datasets(self, cfg, preprocess: bool = False) -> None:
        """Check what the run is made of before anything is tokenised; axolotl then loads the data."""
        from axolotl.loaders import load_tokenizer

        from pair_pm.prepared_rows import separate_prepared_rows
        from pair_pm.resuming import check_output_dir, resume_from_whole_checkpoint

        check_config(cfg)
        check_output_dir(cfg)
        tokenizer = load_tokenizer(cfg)
        check_tokenizer(cfg, tokenizer)
        separate_prepared_rows(cfg, PromptEncoder(tokenizer))
        resume_from_whole_checkpoint(cfg)

    def post_model_load(self, cfg, model) -> None:
        """Give FSDP float32 weights to train where all of a model is trained; an adapter's are float32 already.

        Under `bf16` axolotl loads bfloat16 weights, and FSDP2 keeps gradients and AdamW's moments in the type of the
        weights that it is handed: most updates of a small learning rate would round to nothing. It computes in
        bfloat16 all the same, by its mixed precision.
        """
        if cfg.fsdp_config and not cfg.adapter:
            model.float()

    def get_trainer_cls(self, cfg) -> type:
        """Return the trainer with the pair loss."""
        from pair_pm.pair_trainer import PairTrainer

        return PairTrainer

    def post_train_unload(self, cfg) -> None:
        """Verify the model that the run saved, and give it its card."""
        from pair_pm.resuming import is_main_process

        if is_main_process():
            finish_run(cfg)


def check_config(cfg) -> None:
    """Refuse a config that would train on something else than the label, or that could not be evaluated.

    Raises:
        ConfigError: a data set's type is another, or rows for evaluation are cut from the training rows; each problem
            has a line.
    """
    if problems := [*find_type_problems(cfg), *_find_setting_problems(cfg)]:
        raise ConfigError("\n".join(problems))


def _find_setting_problems(cfg) -> Iterator[str]:
    for key in ("rl", "streaming", "skip_prepare_dataset"):
        if cfg[key]:
            yield f"{key}: {cfg[key]}; rows that are tokenised before training are required; leave it out"
    if cfg.val_set_size:
        yield (
            f"val_set_size {cfg.val_set_size}: it holds out single rows, whose prompts and other orders stay among the "
            "training rows; 0 is required; use process_pair_data.py --eval-fraction, and test_datasets"
        )
    if cfg.test_datasets and cfg.sample_packing and cfg.eval_sample_packing is not False:
        yield "eval_sample_packing: packs that are not full would be left out of the evaluation; false is required"
    if (cfg.context_parallel_size or 1) > 1:
        yield f"context_parallel_size {cfg.context_parallel_size}: the label of a row must be on one GPU; 1 is required"
    if cfg.symmetry_weight and cfg.group_by_length:
        yield "group_by_length with symmetry_weight: both orders of a pair share a micro-batch; false is required"
    if cfg.symmetry_weight and not cfg.sample_packing and cfg.micro_batch_size % 2:
        yield (
            f"micro_batch_size {cfg.micro_batch_size} with symmetry_weight: both orders of a pair share a micro-batch; "
            "an even one is required"
        )


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
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        logger.warning(
            "tokenizer of %s: its pad token is its end-of-sequence token %r, so that tools which mask padding mask the "
            "ends of turns too; run prepare_model.py, which gives it a pad token of its own",
            *(tokenizer.name_or_path, tokenizer.eos_token),
        )
    for dataset in [*(cfg.datasets or []), *(cfg.test_datasets or [])]:
        if get_chat_template_from_config(cfg, dataset, tokenizer) != tokenizer.chat_template:
            raise ConfigError(
                f"dataset {dataset.get('path')}: is rendered with a chat template that is not saved with the model; "
                "the tokenizer's own is required; set chat_template at the top level of the config instead"
            )


def finish_run(cfg) -> None:
    """Load the saved model as a scorer will, and write its card.

    Raises:
        CheckpointError: the weights are missing, of the wrong shape, or give no number.
    """
    from pair_pm.checkpoint import load_tokenizer
    from pair_pm.saved_model import verify_saved_model

    output = str(cfg.output_dir)
    probes = verify_saved_model(output, cfg.base_model if cfg.adapter else None)
    encoder = PromptEncoder(load_tokenizer(output))
    recipe = replace(describe_run(cfg, encoder), probe_logprobs=tuple(map(tuple, probes)))
    path = write_recipe(Path(output), encoder, recipe)
    label_mass = min(sum(map(math.exp, labels)) for labels in probes)
    logger.info(
        "The saved model loads whole; on probe prompts A and B hold %.4f of the probability. Wrote %s", label_mass, path
    )


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the parsed command line, and the words that belong to the config's keys."""
    parser = argparse.ArgumentParser(prog="python -m pair_pm.training", description="Before a training run.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check",
        allow_abbrev=False,
        help="say what would go wrong before the first step, and show what would be trained on",
        epilog="Any top-level key of the config can follow, as for training: --sequence_len 2048",
    )
    check.add_argument("config", help="the axolotl config")
    check.add_argument("--rows", type=int, default=2, metavar="N", help="show the first N training rows (default: 2)")
    check.add_argument("--gpus", type=int, default=1, metavar="N", help="count the steps of N processes (default: 1)")
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Check a config, and print what would be trained on."""
    from pair_pm.training_check import check_training

    arguments, words = parse_arguments(argv)
    return check_training(arguments.config, words, arguments.rows, arguments.gpus)


if __name__ == "__main__":
    sys.exit(main())
