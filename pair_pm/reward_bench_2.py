"""The score of RewardBench 2: which of several completions is the best, and whether the right ones stand together.

The published scoring takes a reward of each completion. A pairwise model has none; here it is the Bradley-Terry
strength that makes the model's own verdicts likeliest, those on every pair of a row's completions in both orders. Like
a reward it is one number for each completion, in log-odds, so that the published scoring applies as it is.

Sources: Malik et al., RewardBench 2, arXiv:2506.01937; `rewardbench` 0.1.4, `reroll_and_score_dataset`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pair_pm.benchmark_rows import COMPLETION_SUBSETS, is_ties, read_group
from pair_pm.evaluation_report import Estimate
from pair_pm.intervals import PromptBootstrap, attach_interval
from pair_pm.predictions import Predictions
from pair_pm.reward_bench_ties import RatedRow, TiesReport, combine_ties, measure_ties, report_ties
from pair_pm.strengths import clip_shares, fit

_DECIMALS = 7  # the fit is no more exact, so strengths that differ by less are equal


@dataclass(frozen=True)
class RewardBench2Report:
    """The benchmark's own scores.

    Attributes:
        score: Mean of the six subsets; None unless all are there.
        subsets: The score of each that is there. A row scores 1 where its right completion is the strongest and 1 / k
            where k are equally strong; for Ties see `ties`.
        ties: What the score of Ties is made of; None without a row of it.
        missing: Subsets without a row.
        incomplete: Rows that are left out because some of their pairs could not be compared.
        comparisons: Verdicts that were asked for, in both orders.
        calls: Prompts fed for them.
        tokens: Of these prompts.
    """

    score: Estimate
    subsets: dict[str, Estimate]
    ties: TiesReport | None
    missing: list[str]
    incomplete: int
    comparisons: int
    calls: int
    tokens: int


def score_reward_bench_2(predictions: Predictions, resamples: int, seed: int) -> RewardBench2Report:
    """Return the scores of the predictions on all pairs of the completions.

    Args:
        predictions: As they came, without edits.
        resamples: Of the bootstrap, which draws prompts; in Ties it draws both rows of a number together.
        seed: To draw with.
    """
    rows, incomplete = rate_rows(predictions)
    ties = [row for row in rows if is_ties(row.subset)]
    subsets, score = _estimate_scores(rows, resamples, seed)
    missing = [subset for subset in COMPLETION_SUBSETS if subset not in subsets]
    return RewardBench2Report(
        score=Estimate(None, reason=f"no row of {', '.join(missing)}") if missing else score,
        subsets=subsets,
        ties=report_ties(ties) if ties else None,
        missing=missing,
        incomplete=incomplete,
        comparisons=len(predictions),
        calls=2 * len(predictions),
        tokens=sum(int(predictions[f"prompt_tokens_first_in_{slot}"].sum()) for slot in "ab"),
    )


def rate_rows(predictions: Predictions) -> tuple[list[RatedRow], int]:
    """Return the rows with the strengths of their completions, and how many are left out as they lack pairs."""
    prob_first, names = predictions.verdicts.prob_first, predictions["group"].astype(str)
    order = np.argsort(names, kind="stable")
    groups, starts = np.unique(names[order], return_index=True)
    rated, incomplete = [], 0
    for group, members in zip(groups, np.split(order, starts[1:]), strict=True):
        correct, n = read_group(group)
        if len(members) < n * (n - 1) // 2:
            incomplete += 1
            continue
        pairs = np.stack([predictions[column][members] for column in ("first_index", "second_index")], axis=1)
        strengths = fit(n, pairs, clip_shares(prob_first[members]), with_offset=False).strengths
        known = (predictions[column][members[0]] for column in ("id", "subset", "prompt_key"))
        rated.append(RatedRow(*known, np.round(strengths, _DECIMALS).tolist(), correct))
    return rated, incomplete


def credit_strongest(strengths: Sequence[float], correct: int) -> float:
    """Return the share of right completions, the first `correct`, among the strongest ones."""
    is_strongest = np.asarray(strengths) == np.max(strengths)
    return float(is_strongest[:correct].sum() / is_strongest.sum())


def _estimate_scores(rows: Sequence[RatedRow], resamples: int, seed: int) -> tuple[dict[str, Estimate], Estimate]:
    """Return the score of each subset that is there, and their mean."""
    summed = {subset: _sum_subset(subset, rows) for subset in sorted({row.subset for row in rows})}
    bootstrap = PromptBootstrap(np.array([key for keys, _ in summed.values() for key in keys]), resamples, seed)
    scores, resampled, start = {}, {}, 0
    for subset, (keys, sums) in summed.items():
        inside = slice(start, start := start + len(keys))
        columns = np.zeros((sum(len(keys) for keys, _ in summed.values()), sums.shape[1]))
        columns[inside] = sums
        [value] = _score_sums(subset, sums.sum(axis=0)[None])
        resampled[subset] = _score_sums(subset, bootstrap.sum(columns))
        scores[subset] = _estimate(value, sum(row.subset == subset for row in rows), len(set(keys)), resampled[subset])
    values = [np.nan if score.value is None else score.value for score in scores.values()]
    of_mean = np.mean(list(resampled.values()), axis=0) if resampled else np.empty(0)
    return scores, _estimate(np.mean(values) if values else np.nan, len(rows), bootstrap.prompts, of_mean)


def _sum_subset(subset: str, rows: Sequence[RatedRow]) -> tuple[list[str], np.ndarray]:
    """Return what is drawn together, and what each adds to the sums that the subset's score is taken from."""
    members = [row for row in rows if row.subset == subset]
    if is_ties(subset):
        measured = measure_ties(members)
        return [f"number {number}" for number in measured], np.array(list(measured.values()))
    credits = [[credit_strongest(row.strengths, row.correct), 1.0] for row in members]
    return [row.prompt_key for row in members], np.array(credits)


def _score_sums(subset: str, sums: np.ndarray) -> np.ndarray:
    if is_ties(subset):
        return combine_ties(sums)["score"]
    with np.errstate(invalid="ignore"):  # a resample may lack a whole subset
        return sums[:, 0] / sums[:, 1]


def _estimate(value: float, rows: int, prompts: int, resampled: np.ndarray) -> Estimate:
    if np.isnan(value):
        return Estimate(None, rows=rows, reason="no two rows of one number, a reference and one with several right")
    is_share = value in (0.0, 1.0)
    return attach_interval(float(value), rows, prompts, resampled[~np.isnan(resampled)], is_share=is_share)
