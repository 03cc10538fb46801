"""The score of RewardBench: accuracy by section, its subsets weighted as published, and the mean of the sections.

Sources: Lambert et al., RewardBench, arXiv:2403.13787; `rewardbench` 0.1.4, `calculate_scores_per_section`. It counts a
predicted tie as wrong, here it counts 0.5.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pair_pm.benchmark_rows import SECTIONS
from pair_pm.evaluation_report import Estimate
from pair_pm.intervals import PromptBootstrap, attach_interval

Weights = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class RewardBenchReport:
    """The benchmark's own scores.

    Attributes:
        score: Mean of the sections; None unless every subset is there.
        sections: By name; the score of one is of those of its subsets that are there, None where none is.
        missing: Subsets without a row.
        other_rows: Rows of subsets that are not the benchmark's; they are in no section.
    """

    score: Estimate
    sections: dict[str, Estimate]
    missing: list[str]
    other_rows: int


def score_reward_bench(
    subsets: np.ndarray, right: np.ndarray, bootstrap: PromptBootstrap, weights: Weights = SECTIONS
) -> RewardBenchReport:
    """Return the scores of verdicts.

    Args:
        subsets: Of the rows, shape (rows,).
        right: 1 where the verdict is for the better response, 0.5 where it is a tie, 0 elsewhere, shape (rows,).
        bootstrap: Of the rows.
        weights: Of the subsets of each section.
    """
    names = [subset for of_section in weights.values() for subset in of_section]
    members = subsets[:, None] == np.array(names, dtype=object)
    counts = members.sum(axis=0)
    sums = np.concatenate([members * right[:, None], members], axis=1).astype(float)
    section_scores = [_score_sections(part, weights) for part in (sums.sum(axis=0)[None], bootstrap.sum(sums))]
    section_of = np.repeat(np.arange(len(weights)), [len(of_section) for of_section in weights.values()])
    sections = {}
    for number, section in enumerate(weights):
        inside = members[:, section_of == number].any(axis=1)
        sections[section] = _estimate(*(scores[:, number] for scores in section_scores), inside, bootstrap)
    missing = [name for name, count in zip(names, counts, strict=True) if not count]
    inside = members.any(axis=1)
    if missing:
        score = Estimate(None, reason=f"no row of {', '.join(missing)}")
    else:
        score = _estimate(*(scores.mean(axis=1) for scores in section_scores), inside, bootstrap)
    return RewardBenchReport(score, sections, missing, int((~inside).sum()))


def _score_sections(sums: np.ndarray, weights: Weights) -> np.ndarray:
    """Return the sections' scores, NaN where one has no row.

    Args:
        sums: What is right in each subset and, beside it, how many rows that is of, shape (resamples, 2 * subsets).
        weights: Of the subsets.
    Returns: Shape (resamples, sections).
    """
    right, counts = np.split(sums, 2, axis=1)
    scores, start = [], 0
    with np.errstate(invalid="ignore"):
        accuracies = right / counts
        for of_section in weights.values():
            columns = slice(start, start := start + len(of_section))
            present = (counts[:, columns] > 0) * np.array(list(of_section.values()), dtype=float)
            scores.append(np.nansum(accuracies[:, columns] * present, axis=1) / present.sum(axis=1))
    return np.stack(scores, axis=1)


def _estimate(value: np.ndarray, resampled: np.ndarray, inside: np.ndarray, bootstrap: PromptBootstrap) -> Estimate:
    if np.isnan(value[0]):
        return Estimate(None, reason="no row of any of its subsets")
    prompts = bootstrap.count_prompts(inside)
    is_share = value[0] in (0.0, 1.0)
    rows = int(inside.sum())
    return attach_interval(float(value[0]), rows, prompts, resampled[~np.isnan(resampled)], is_share=is_share)
