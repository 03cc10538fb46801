"""Predictions on labelled pairs -> the report: how good the model is, how sure that is, and where it is biased."""

from dataclasses import asdict, dataclass, replace

import numpy as np

from pair_pm.baselines import judge_by_words, prefer_longer, report_lengths
from pair_pm.benchmark_rows import COMPLETIONS, REWARD_BENCH
from pair_pm.calibration import calibrate
from pair_pm.distraction import report_distraction
from pair_pm.evaluation_report import (
    Estimate,
    EvaluationReport,
    GroupReport,
    OffFormatReport,
    PositionReport,
    TieReport,
)
from pair_pm.intervals import NO_ROWS, RESAMPLES, PromptBootstrap
from pair_pm.metrics import compute_metrics
from pair_pm.model_difference import compare_models, note_row
from pair_pm.predictions import Predictions
from pair_pm.reward_bench import score_reward_bench
from pair_pm.reward_bench_2 import score_reward_bench_2
from pair_pm.temperature_fit import fit_and_judge

CLOSE_CALL = 0.05
LOW_LABEL_MASS = 0.5
LISTED_ROWS = 50
_SHARES = (
    *("accuracy", "longer_wins", "bag_of_words", "close_calls"),
    *("consistency", "accuracy_first_in_a", "accuracy_first_in_b", "prob_a"),
)


@dataclass(frozen=True)
class EvaluationOptions:
    """What is to be computed.

    Attributes:
        command: The command line, to be reported.
        seed: Of the bootstrap, of the split that a temperature is fitted on, and of the folds of the regression.
        resamples: Of the bootstrap.
        fit_temperature: Fit a temperature and an order offset.
    """

    command: str = ""
    seed: int = 0
    resamples: int = RESAMPLES
    fit_temperature: bool = False


def evaluate(
    predictions: Predictions, options: EvaluationOptions, other: Predictions | None = None
) -> EvaluationReport:
    """Return the report on a model's predictions, and how far they are from another model's.

    Raises:
        DataError: the other model's are of other data.
    """
    seed, resamples = options.seed, options.resamples
    unedited, format = predictions.unedited, predictions.origin.dataset_format
    decided = unedited.where(unedited.is_decided)
    by_words = judge_by_words(decided["first"], decided["second"], decided["prompt_key"], seed)
    bootstrap = PromptBootstrap(decided["prompt_key"], resamples, seed)
    subsets = {}
    for subset in sorted(set(unedited["subset"])):
        inside = decided["subset"] == subset
        part = decided.where(inside)
        subsets[subset] = report_group(part, by_words[inside], PromptBootstrap(part["prompt_key"], resamples, seed))
    report = EvaluationReport(
        command=options.command,
        origin=predictions.origin,
        seed=seed,
        resamples=resamples,
        summary={},
        overall=report_group(decided, by_words, bootstrap),
        subsets=subsets,
        ties=report_ties(unedited, resamples, seed),
        calibration=calibrate(decided.verdicts, bootstrap),
        length=report_lengths(decided.verdicts.right, decided.count_characters(), bootstrap),
        off_format=report_off_format(unedited, resamples, seed),
        temperature_fit=fit_and_judge(decided, resamples, seed) if options.fit_temperature else None,
        distraction=report_distraction(predictions, resamples, seed),
        difference=compare_models(unedited, other.unedited, resamples, seed) if other else None,
        reward_bench_2=score_reward_bench_2(unedited, resamples, seed) if format == COMPLETIONS else None,
        reward_bench=(
            score_reward_bench(decided["subset"], decided.verdicts.right, bootstrap) if format == REWARD_BENCH else None
        ),
    )
    return replace(report, summary=summarise(unedited, report))


def summarise(unedited: Predictions, report: EvaluationReport) -> dict:
    """Return the metrics of the pairs whose label names a winner, and the first numbers of each part of a report.

    Args:
        unedited: The predictions.
        report: On them.
    """
    overall, fit, difference = report.overall, report.temperature_fit, report.difference
    summary = asdict(compute_metrics(unedited.where(unedited.is_decided).verdicts))
    summary |= {
        "accuracy_interval": [overall.accuracy.low, overall.accuracy.high],
        "longer_wins": overall.longer_wins.value,
        "bag_of_words": overall.bag_of_words.value,
        "nll": report.calibration.nll.value,
        "ece": report.calibration.ece.value,
        "labelled_ties": int(unedited.is_labelled_tie.sum()),
        "skipped": dict(unedited.origin.skipped),
    }
    if report.reward_bench_2:
        scores = {"score": report.reward_bench_2.score, **report.reward_bench_2.subsets}
        summary["reward_bench_2"] = {name: score.value for name, score in scores.items()}
    if report.reward_bench:
        scores = {"score": report.reward_bench.score, **report.reward_bench.sections}
        summary["reward_bench"] = {name: score.value for name, score in scores.items()}
    if report.distraction:
        summary["flip_rates"] = {edit.edit: edit.flip_rate.value for edit in report.distraction}
    if fit:
        change = fit.nll_change and asdict(fit.nll_change)
        found = {name: getattr(fit, name) for name in ("temperature", "order_offset", "reason", "is_not_worse")}
        summary["temperature_fit"] = found | {"nll_change": change}
    if difference:
        summary["difference"] = {"model": difference.model, **asdict(difference.accuracy_difference)}
    return summary


def report_group(decided: Predictions, by_words: np.ndarray, bootstrap: PromptBootstrap) -> GroupReport:
    """Return the numbers of pairs whose label names a winner, of one subset or all of them.

    Args:
        decided: The pairs.
        by_words: What `judge_by_words` says of them, shape (rows,).
        bootstrap: Of them.
    """
    verdicts = decided.verdicts
    right_in_a, right_in_b = verdicts.right_in_each.T
    columns = {
        "accuracy": verdicts.right,
        "longer_wins": prefer_longer(decided.count_characters()),
        "bag_of_words": by_words,
        "close_calls": np.abs(verdicts.prob_first - 0.5) < CLOSE_CALL,
        "consistency": verdicts.is_consistent,
        "accuracy_first_in_a": right_in_a,
        "accuracy_first_in_b": right_in_b,
        "swap_gain": verdicts.right - (right_in_a + right_in_b) / 2,
        "order_bias": verdicts.log_odds.mean(axis=1),
        "prob_a": verdicts.answers_a.mean(axis=1),
    }
    estimates = bootstrap.estimate(columns, shares=_SHARES)
    in_group = ("accuracy", "longer_wins", "bag_of_words", "close_calls")
    return GroupReport(
        rows=len(decided),
        prompts=bootstrap.prompts,
        predicted_ties=int((verdicts.right == 0.5).sum()),
        **{name: estimates[name] for name in in_group},
        position=PositionReport(**{name: e for name, e in estimates.items() if name not in in_group}),
    )


def report_ties(unedited: Predictions, resamples: int, seed: int) -> TieReport | None:
    """Return how the rows labelled a tie differ from those with a winner; None where no row is labelled a tie."""
    is_tie = unedited.is_labelled_tie
    if not is_tie.any():
        return None
    labelled = unedited.where(is_tie | unedited.is_decided)
    is_tie = labelled.is_labelled_tie
    bootstrap = PromptBootstrap(labelled["prompt_key"], resamples, seed)
    distance = np.abs(labelled.verdicts.prob_first - 0.5)
    columns = {
        "distance": np.where(is_tie, distance, np.nan),
        "distance_of_others": np.where(is_tie, np.nan, distance),
    }
    nothing_to_tell_from = Estimate(None, reason="no row whose label names a winner")
    auc = nothing_to_tell_from if is_tie.all() else bootstrap.estimate_auc(-distance, is_tie)
    return TieReport(int(is_tie.sum()), **bootstrap.estimate(columns), auc=auc)


def report_off_format(unedited: Predictions, resamples: int, seed: int) -> OffFormatReport:
    """Return how much probability the two labels hold, and the rows where that is little."""
    mass = unedited["label_mass"]
    if not len(mass):
        return OffFormatReport(Estimate(None, reason=NO_ROWS), None, None, 0, [])
    low = np.flatnonzero(mass < LOW_LABEL_MASS)
    lowest = low[np.argsort(mass[low], kind="stable")][:LISTED_ROWS]
    bootstrap = PromptBootstrap(unedited["prompt_key"], resamples, seed)
    return OffFormatReport(
        **bootstrap.estimate({"label_mass": mass}),
        percentile_1=float(np.percentile(mass, 1)),
        lowest=float(mass.min()),
        rows_below_half=len(low),
        listed=[note_row(unedited, int(row), {"label_mass": float(mass[row])}) for row in lowest],
    )
