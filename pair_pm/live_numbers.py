"""The live numbers of a run: which held-out rows they are taken from, and what they are."""

import logging
from dataclasses import asdict

import numpy as np
from transformers import EvalPrediction

from pair_pm.errors import ConfigError
from pair_pm.metrics import Verdicts, compute_metrics
from pair_pm.pair_batches import find_orders

logger = logging.getLogger("axolotl.pair_pm")


def keep_whole_pairs(dataset):
    """Return the rows of held-out pairs that are there in both orders, each order once, the longest first.

    The longest first, so that memory runs out at once or never, and batches need little padding.
    """
    pairs, ids = pairs_of(dataset), dataset["input_ids"]
    seen: dict[tuple, int] = {}
    for row, (pair, row_ids) in enumerate(zip(pairs, ids, strict=True)):
        seen.setdefault((pair, tuple(row_ids)), row)
    distinct = list(seen.values())
    both, alone = find_orders([pairs[row] for row in distinct])
    if not both:
        raise ConfigError(
            f"test_datasets: none of its {len(dataset)} rows has its other order beside it; held-out pairs in both "
            "orders are required; give its stanza type: pair_pm.both_orders"
        )
    if alone:
        logger.warning("test_datasets: %d pairs fit into sequence_len in one order only, and are left out", len(alone))
    rows = [distinct[place] for couple in both for place in couple]
    return dataset.select(sorted(rows, key=lambda row: -len(ids[row])))


def compute_eval_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Return the metrics of held-out rows, as `evaluate_pair_rm.py` computes them; the trainer adds "eval_".

    Args:
        prediction: Log-probabilities of "A" and "B", shape (rows, 2); each row's pair, whether it is labelled "A", and
            its target, each of shape (rows,).
    """
    logprobs = prediction.predictions.astype(np.float64)
    pair, is_a, prob_a = prediction.label_ids
    # The chosen response is "first": it stands in slot A in the row labelled A, and in slot B in the other.
    order = np.lexsort((~is_a.astype(bool), pair))
    pair, logprobs, prob_first = pair[order].reshape(-1, 2), logprobs[order].reshape(-1, 2, 2), prob_a[order][::2]
    assert (pair[:, 0] == pair[:, 1]).all(), "an order of a pair is missing"
    # A target of one half is a tie: nobody won, and the evaluation script keeps it apart too.
    decided = prob_first != 0.5
    if not decided.any():
        return {}
    logprobs = logprobs[decided]
    label_mass = np.exp(logprobs).sum(axis=2).min(axis=1)
    verdicts = Verdicts(logprobs[:, :, 0] - logprobs[:, :, 1], label_mass, prob_first[decided].astype(np.float64))
    metrics = asdict(compute_metrics(verdicts))
    names = ("position_consistency", "label_loss", "label_mass", "prob_a", "order_bias")
    return {"pair_accuracy": metrics["accuracy"], **{name: metrics[name] for name in names}}


def pairs_of(dataset) -> list[int]:
    """Return the number of each row's pair.

    Raises:
        ConfigError: the rows were not made by this project's strategies.
    """
    if "pair" not in dataset.column_names:
        raise ConfigError(
            f"data set with the columns {', '.join(dataset.column_names)}: pair and prob_a are not among them; give "
            "its stanza type: pair_pm.pair_rows, and test_datasets type: pair_pm.both_orders"
        )
    return [pair for (pair,) in dataset["pair"]]
