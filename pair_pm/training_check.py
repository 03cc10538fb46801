"""Everything that would go wrong before the first step of a training run, without training; and what it would train on.

The config is loaded, checked and tokenised by axolotl and the plugin's own hooks, as a run does it. The token rows stay
in `dataset_prepared_path`, so that the run that follows tokenises nothing.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

import yaml

from pair_pm.config_check import explained, find_unknown_keys, load_config, read_config, refuse_missing
from pair_pm.errors import ConfigError, PairPMError
from pair_pm.old_config import replace_old_lines
from pair_pm.row_report import print_table, show_row
from pair_pm.row_survey import SourceRows, TokenRows, find_needed_lengths, survey_source_rows, survey_token_rows


def check_training(path: str, words: Sequence[str] = (), rows: int = 2, gpus: int = 1) -> int:
    """Check a training config, print what would be trained on, and return the exit code.

    Args:
        path: The config.
        words: Of the command line: top-level keys that stand in for the config's, as `read_overrides` takes them.
        rows: How many rows to show.
        gpus: How many processes would train, for the count of steps.
    """
    warnings: list[str] = []
    try:
        overrides = read_overrides(words)
        raw = read_config(path) | overrides
        if replacement := replace_old_lines(raw):
            print(replacement.to_yaml(), end="")
            raise ConfigError("\n".join([*replacement.problems, f"{path}: paste the lines above over its own"]))
        refuse_missing(raw)
        warnings += find_unknown_keys(raw)
        _report(path, raw, overrides, warnings, rows, gpus)
    except PairPMError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        for warning in dict.fromkeys(warnings):
            print(f"Warning: {warning}")
    return 0


def read_overrides(words: Sequence[str]) -> dict:
    """Return the keys of `--key value`, `--key=value` and `--key` (true), as axolotl's command line takes them.

    Raises:
        ConfigError: a word belongs to no key.
    """
    overrides, words = {}, list(words)
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("--"):
            raise ConfigError(f"command line: {name} belongs to no key; --key value is required")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        overrides[name[2:].replace("-", "_")] = yaml.safe_load(value)
    return overrides


def _report(path: str, raw: Mapping, overrides: Mapping, warnings: list[str], rows: int, gpus: int) -> None:
    """Do what a run does before its first step, and print what it would train on."""
    with contextlib.redirect_stdout(sys.stderr), _listening(warnings):
        cfg = load_config(path, raw, overrides)
        cfg.batch_size *= gpus
        with explained(path):
            splits, steps, tokenizer = _prepare(cfg)
        token_rows, source_rows = _survey(cfg, splits, tokenizer)
        _check_batches(cfg, splits, token_rows["datasets"])
    warnings += _compare(cfg, token_rows, source_rows)
    print(f"What {path} would train on")
    print_table(token_rows, source_rows, f"{steps:,} on {gpus} process{'es' * (gpus > 1)}")
    print(f"The rows are prepared in {cfg.dataset_prepared_path}")
    for number in range(min(rows, len(splits["datasets"]))):
        print(f"\nRow {number + 1}\n{show_row(tokenizer, splits['datasets'][number])}")
    problems = [line for key, found in token_rows.items() for line in _find_loss_problems(key, found)]
    if problems:
        raise ConfigError("\n".join(problems))


def _prepare(cfg) -> tuple[dict, int, object]:
    """Return the prepared rows by key, the steps of a run, and the tokenizer."""
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager
    from axolotl.loaders import load_tokenizer

    # It advises to prepare the rows beforehand, which is what happens here.
    logging.getLogger("axolotl.utils.data.sft").setLevel(logging.ERROR)
    PluginManager.get_instance().load_datasets(cfg, preprocess=False)
    meta = load_datasets(cfg=cfg, cli_args=TrainerCliArgs())
    found = {"datasets": meta.train_dataset, "test_datasets": meta.eval_dataset}
    return {key: rows for key, rows in found.items() if rows is not None}, meta.total_num_steps, load_tokenizer(cfg)


def _survey(cfg, splits: Mapping, tokenizer) -> tuple[dict[str, TokenRows], dict[str, SourceRows]]:
    from pair_pm.tokens import PromptEncoder

    label_a = PromptEncoder(tokenizer).labels.label_ids[0]
    token_rows = {key: survey_token_rows(rows, label_a) for key, rows in splits.items()}
    return token_rows, {key: survey_source_rows(cfg, key, tokenizer, found.pairs) for key, found in token_rows.items()}


def _check_batches(cfg, splits: Mapping, training: TokenRows) -> None:
    """Do what the trainer does with pairs before its first step: it refuses, or warns, where orders are missing."""
    from pair_pm.live_numbers import keep_whole_pairs
    from pair_pm.pair_batches import UnitMultipackSampler, pair_up

    if "test_datasets" in splits:
        keep_whole_pairs(splits["test_datasets"])
    if cfg.symmetry_weight:
        couples = pair_up(training.pairs)
        if cfg.sample_packing:
            real = (
                cfg.multipack_real_batches if cfg.multipack_real_batches is not None else not cfg.attn_supports_packing
            )
            room = cfg.sequence_len * (1 if real else cfg.micro_batch_size)
            UnitMultipackSampler(couples, training.lengths, cfg.seed, batch_size=1, batch_max_len=room, bin_size=1)


def _find_loss_problems(key: str, rows: TokenRows) -> Iterator[str]:
    if wrong := int((rows.loss_tokens != 1).sum()):
        yield (
            f"{key}: in {wrong:,} of {len(rows.lengths):,} rows {rows.loss_tokens.min()} to {rows.loss_tokens.max()} "
            "tokens bear loss; one, the label, is required"
        )


def _compare(cfg, token_rows: Mapping[str, TokenRows], source_rows: Mapping[str, SourceRows]) -> Iterator[str]:
    """Yield what the rows' numbers warn of."""
    from pair_pm.pair_rows import MANY_DROPPED, describe_dropped

    for key, source in source_rows.items():
        dropped, needed = len(source.dropped_lengths), find_needed_lengths(token_rows[key], source)
        sequence_len = (cfg.eval_sequence_len if key == "test_datasets" else None) or cfg.sequence_len
        if dropped > MANY_DROPPED * len(needed):
            yield describe_dropped(key, needed, dropped, sequence_len)
    if "test_datasets" in source_rows:
        held_out = source_rows["test_datasets"].openings
        if shared := len(held_out & source_rows["datasets"].openings):
            yield (
                f"test_datasets: {shared:,} of {len(held_out):,} first user messages also stand among the training "
                "rows; none is required for a fair evaluation; use process_pair_data.py --eval-fraction"
            )


@contextlib.contextmanager
def _listening(warnings: list[str]) -> Iterator[None]:
    """Add what the plugin and the trainer warn of to a list; axolotl's own log goes to stderr."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # What is dropped is counted for rows that were prepared before as well.
            if record.module != "pair_rows":
                warnings.append(record.getMessage())

    import axolotl.cli  # noqa: F401 - it sets up the logging

    logger, listener = logging.getLogger("axolotl.pair_pm"), Listener(logging.WARNING)
    for handler in logging.getLogger("axolotl").handlers + logging.root.handlers:
        if getattr(handler, "stream", None) in (sys.__stdout__, sys.stdout):
            handler.setStream(sys.stderr)
            handler.setLevel(os.environ.get("AXOLOTL_LOG_LEVEL", "WARNING").upper())
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)
