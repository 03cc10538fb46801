"""How far probabilities can be trusted: likelihood, Brier, calibration errors and the data of a reliability diagram.

Which response stands first is an accident, so bins are of confidence, the probability of the response that the verdict
is for, from 0.5 to 1; the share of verdicts that are right should be equal to it in each.
"""

import numpy as np

from pair_pm.evaluation_report import CalibrationReport, Estimate, ReliabilityBin
from pair_pm.intervals import NO_ROWS, PromptBootstrap
from pair_pm.metrics import Verdicts

BINS = 15
_RESAMPLED_GAPS = "no interval: resampling adds to a gap what chance adds to it"


def calibrate(verdicts: Verdicts, bootstrap: PromptBootstrap) -> CalibrationReport:
    """Return how well the probabilities averaged over both orders fit labels for the first response.

    Votes count where a row's target lies between 0 and 1; then rows with a target of 0 or 1 were unanimous.
    """
    confidence, right = np.maximum(verdicts.prob_first, 1 - verdicts.prob_first), verdicts.right
    codes = cut_into_bins(confidence, BINS)
    has_votes = bool(((verdicts.targets > 0) & (verdicts.targets < 1)).any())
    of_votes = {
        "vote_nll": verdicts.losses(verdicts.targets),
        "vote_entropy": _entropy(verdicts.targets),
    }
    means = bootstrap.estimate(
        {"nll": verdicts.losses(), "brier": (1 - verdicts.prob_first) ** 2}
        | {name: column if has_votes else np.full(len(right), np.nan) for name, column in of_votes.items()}
    )
    if not has_votes:
        means |= dict.fromkeys(of_votes, Estimate(None, reason="no row carries shares of votes"))
    return CalibrationReport(
        rows=len(right),
        **means,
        ece=compute_ece(confidence, right, codes),
        debiased_error=compute_debiased_error(confidence, right, codes),
        bins=f"{codes.max(initial=-1) + 1} bins of confidence with about as many pairs each",
        reliability=_describe_bins(confidence, right, codes, bootstrap),
    )


def cut_into_bins(values: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each value, from 0: as many values in each as can be where equal ones stay together.

    No bin is empty, so there are fewer where there are few different values.
    """
    if not len(values):
        return np.empty(0, dtype=int)
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    codes = np.searchsorted(edges, values, side="left")
    return np.unique(codes, return_inverse=True)[1]


def compute_ece(confidence: np.ndarray, right: np.ndarray, codes: np.ndarray) -> Estimate:
    """Return the expected calibration error: the gaps of confidence and accuracy, weighted by the rows of each bin.

    Args:
        confidence: Shape (rows,).
        right: 0, 0.5 or 1, shape (rows,).
        codes: Bins, shape (rows,).
    """
    if not len(right):
        return Estimate(None, reason=NO_ROWS)
    counts, gaps = _find_gaps(confidence, right, codes)
    return Estimate(float(np.abs(gaps) @ counts / len(right)), rows=len(right), reason=_RESAMPLED_GAPS)


def compute_debiased_error(confidence: np.ndarray, right: np.ndarray, codes: np.ndarray) -> Estimate:
    """Return the root mean squared gap without what chance adds to it; 0 where chance would add more than is there.

    Of the squared gap of n rows with accuracy a, chance is a (1 - a) / (n - 1) in expectation. Bins of one row say
    nothing about chance and are left out.

    Args:
        confidence: Shape (rows,).
        right: 0, 0.5 or 1, shape (rows,).
        codes: Bins, shape (rows,).
    Source: Kumar, Liang and Ma, Verified Uncertainty Calibration, arXiv:1909.10155, definition 4.2.
    """
    counts, gaps = _find_gaps(confidence, right, codes)
    usable = counts > 1
    if not usable.any():
        return Estimate(None, rows=len(right), reason="no bin has two rows")
    mean = np.bincount(codes, right, len(counts))[usable] / counts[usable]
    mean_square = np.bincount(codes, right**2, len(counts))[usable] / counts[usable]
    variance_of_mean = (mean_square - mean**2) / (counts[usable] - 1)
    squared = (gaps[usable] ** 2 - variance_of_mean) @ counts[usable] / counts[usable].sum()
    return Estimate(float(np.sqrt(max(squared, 0.0))), rows=int(counts[usable].sum()), reason=_RESAMPLED_GAPS)


def _find_gaps(confidence: np.ndarray, right: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts = np.bincount(codes)
    return counts, (np.bincount(codes, right) - np.bincount(codes, confidence)) / counts


def _describe_bins(confidence, right, codes, bootstrap: PromptBootstrap) -> list[ReliabilityBin]:
    bins = range(codes.max(initial=-1) + 1)
    columns = {str(number): np.where(codes == number, right, np.nan) for number in bins}
    accuracies = bootstrap.estimate(columns, shares=tuple(columns)) if columns else {}
    described = []
    for number in bins:
        inside = confidence[codes == number]
        extent = float(inside.min()), float(inside.max()), float(inside.mean())
        described.append(ReliabilityBin(*extent, accuracies[str(number)]))
    return described


def _entropy(targets: np.ndarray) -> np.ndarray:
    from scipy.special import entr

    return entr(targets) + entr(1 - targets)
