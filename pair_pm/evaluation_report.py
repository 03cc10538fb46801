"""The report of an evaluation as data: what `report.json` holds, and what `report.md` and `report.html` are made from.

Who computes what: `metrics` the numbers of rows, `intervals` how sure they are, `baselines` what length and words alone
reach, `calibration` and `temperature_fit` how far probabilities can be trusted, `distraction` and `model_difference`
what their names say, `reward_bench` and `reward_bench_2` the benchmarks' own scores; `evaluation` puts them together.
`report_tables`, `report_plots` and `report_page` show it; the plots want single rows too, which are in `predictions`.

A number that cannot be computed is None, with the reason beside it; it is never 0 and never NaN.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pair_pm.predictions import Origin
from pair_pm.row_writers import written_whole


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval.

    Attributes:
        value: None where it cannot be computed.
        low: Lower end of the interval, by a bootstrap that draws prompts; None where one prompt is all there is.
        high: Upper end.
        rows: How many rows it is of.
        reason: Why a value or an interval is None, or what is to be known of the interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    rows: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class PositionReport:
    """What the slots do.

    Attributes:
        consistency: Share of verdicts that survive the swap.
        accuracy_first_in_a: Accuracy of the one order with the better response in slot A.
        accuracy_first_in_b: The same with the better response in slot B.
        swap_gain: Accuracy of both orders averaged less the mean of the two single ones: what the swap buys.
        order_bias: Mean log-odds of "A" against "B", after temperature; 0 where no slot is preferred.
        prob_a: Share of the prompts that are answered "A".
    """

    consistency: Estimate
    accuracy_first_in_a: Estimate
    accuracy_first_in_b: Estimate
    swap_gain: Estimate
    order_bias: Estimate
    prob_a: Estimate


@dataclass(frozen=True)
class GroupReport:
    """The pairs of one subset, or all of them, whose label names a winner.

    Attributes:
        rows: How many.
        prompts: Different conversations among them.
        predicted_ties: Verdicts that name no winner; they count 0.5.
        accuracy: Share of verdicts for the better response.
        longer_wins: Accuracy of always preferring the longer response; equal lengths count 0.5.
        bag_of_words: Accuracy of a logistic regression on the words of the two responses, cross-fitted by prompt.
        close_calls: Share of pairs with |prob_first - 0.5| < 0.05.
        position: What the slots do.
    """

    rows: int
    prompts: int
    predicted_ties: int
    accuracy: Estimate
    longer_wins: Estimate
    bag_of_words: Estimate
    close_calls: Estimate
    position: PositionReport


@dataclass(frozen=True)
class TieReport:
    """The rows labelled a tie, which are in no accuracy.

    Attributes:
        rows: How many.
        distance: Mean |prob_first - 0.5| of them.
        distance_of_others: The same of the rows whose label names a winner.
        auc: Probability that a tie lies nearer to 0.5 than a row with a winner does.
    """

    rows: int
    distance: Estimate
    distance_of_others: Estimate
    auc: Estimate


@dataclass(frozen=True)
class ReliabilityBin:
    """The pairs of one bin of confidence, that is of the probability of the response that the verdict is for.

    Attributes:
        low: Least confidence in it.
        high: Greatest.
        confidence: Mean.
        accuracy: Share of right verdicts, with its interval.
    """

    low: float
    high: float
    confidence: float
    accuracy: Estimate


@dataclass(frozen=True)
class CalibrationReport:
    """How far the probabilities, averaged over both orders, can be trusted.

    Attributes:
        rows: That the label names a winner of.
        nll: Mean -ln of the probability of the better response, in nats; chance is ln 2.
        vote_nll: Cross-entropy against the shares of votes, in nats, over the rows that carry one.
        vote_entropy: What the best possible model would have there.
        brier: Mean squared distance from the label.
        ece: Expected calibration error: the mean gap of confidence and accuracy over the bins.
        debiased_error: Root mean squared gap, without what chance alone would add (Kumar et al., arXiv:1909.10155).
        bins: How the bins were made.
        reliability: Each bin.
    """

    rows: int
    nll: Estimate
    vote_nll: Estimate
    vote_entropy: Estimate
    brier: Estimate
    ece: Estimate
    debiased_error: Estimate
    bins: str
    reliability: list[ReliabilityBin] = field(default_factory=list)


@dataclass(frozen=True)
class TemperatureReport:
    """A temperature and an order offset fitted on one part of the prompts and judged on the other.

    Attributes:
        temperature: Fitted to the verdicts of both orders; None where the likelihood has no maximum.
        order_offset: Log-odds before temperature that slot A has too many; fitted to the single orders.
        reason: Why there is none.
        fitted_on: Rows of the one part.
        judged_on: Rows of the other.
        before: Calibration of the other part with the temperature that was in use.
        after: The same with the fitted one.
        nll_change: After less before, negative where the fit helps; against the votes where rows carry them.
        single_order_nll_before: Of single orders in the other part, with the fitted temperature and the offset in use.
        single_order_nll_after: With the fitted temperature and offset.
        single_order_nll_change: After less before.
        is_not_worse: Whether the likelihood of the other part is at least as high as before: only then is it saved.
        offset_is_not_worse: The same of single orders and the offset: otherwise the temperature is saved alone.
        saved_to: The card it was written into, None where it was not.
    """

    temperature: float | None
    order_offset: float | None
    reason: str | None
    fitted_on: int
    judged_on: int
    before: CalibrationReport | None = None
    after: CalibrationReport | None = None
    nll_change: Estimate | None = None
    single_order_nll_before: Estimate | None = None
    single_order_nll_after: Estimate | None = None
    single_order_nll_change: Estimate | None = None
    is_not_worse: bool = False
    offset_is_not_worse: bool = False
    saved_to: str | None = None


@dataclass(frozen=True)
class LengthBucket:
    """Pairs by how much longer the better response is.

    Attributes:
        low: Least difference in it, better less other, in characters.
        high: Greatest.
        difference: Mean.
        accuracy: Of the model there.
    """

    low: int
    high: int
    difference: float
    accuracy: Estimate


@dataclass(frozen=True)
class LengthReport:
    """What length does.

    Attributes:
        matched_accuracy: Where the shorter response has at least 0.9 of the longer one's characters.
        prefers_longer: Share of verdicts for the longer response, where lengths differ.
        longer_is_better: Share of labels for it: what an unbiased model would be near.
        buckets: Of about as many pairs each.
    """

    matched_accuracy: Estimate
    prefers_longer: Estimate
    longer_is_better: Estimate
    buckets: list[LengthBucket]


@dataclass(frozen=True)
class DistractionReport:
    """One kind of edit, made to the worse response of every pair.

    Attributes:
        edit: Its name, of `pair_pm.distraction.EDITS`.
        does: What it does, in words.
        right: Verdicts that were right without it, among the pairs that could be compared with it.
        flipped: Those that are not right with it.
        flip_rate: Their share.
        shift: Mean change of the log-odds of the better response: below 0 where the edit is liked.
    """

    edit: str
    does: str
    right: int
    flipped: int
    flip_rate: Estimate
    shift: Estimate


@dataclass(frozen=True)
class RowNote:
    """A row to be looked at.

    Attributes:
        row: Its place in the predictions, from 0.
        id: Its own.
        subset: Its own.
        prompt: The beginning of its last message.
        first: The beginning of the better response.
        second: The beginning of the other.
        numbers: What it is listed for.
    """

    row: int
    id: str
    subset: str
    prompt: str
    first: str
    second: str
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class OffFormatReport:
    """Whether the model answers with the labels at all.

    Attributes:
        label_mass: Mean probability of the two labels together, the smaller of both orders'.
        percentile_1: 1 pair of 100 has less.
        lowest: The least.
        rows_below_half: How many pairs have less than 0.5.
        listed: The lowest of these, at most `LISTED_ROWS`.
    """

    label_mass: Estimate
    percentile_1: float | None
    lowest: float | None
    rows_below_half: int
    listed: list[RowNote]


@dataclass(frozen=True)
class DifferenceReport:
    """Two models on the same rows.

    Attributes:
        model: The other one's name.
        rows: Pairs that both compared and whose label names a winner.
        unmatched: Pairs of the two that only one compared.
        accuracy: This model's there.
        accuracy_of_other: The other's.
        accuracy_difference: This less the other, paired.
        nll_difference: The same of the negative log-likelihood: below 0 where this one is better.
        consistency_difference: The same of the share of verdicts that survive the swap.
        subsets: Accuracy differences by subset.
        disagreements: Rows where the two probabilities lie farthest apart.
    """

    model: str
    rows: int
    unmatched: int
    accuracy: Estimate
    accuracy_of_other: Estimate
    accuracy_difference: Estimate
    nll_difference: Estimate
    consistency_difference: Estimate
    subsets: dict[str, Estimate]
    disagreements: list[RowNote]


@dataclass(frozen=True)
class EvaluationReport:
    """Everything.

    Attributes:
        command: The command line.
        origin: Model, data set and versions.
        seed: Of the bootstrap, the split and the folds.
        resamples: Of the bootstrap.
        summary: What a run prints: the numbers of `pair_pm.metrics.Metrics` and the first ones of each part.
        reward_bench_2: The benchmark's own scores, None for other data; comes first when shown.
        reward_bench: The same.
        overall: All pairs whose label names a winner.
        subsets: The same by subset, "" where rows name none.
        ties: Rows labelled a tie, None where there are none.
        calibration: With the temperature in use.
        temperature_fit: None where it was not asked for.
        length: What length does.
        distraction: One for each edit; empty where it was not asked for.
        off_format: Label mass.
        difference: Against another model; None where none was given.
    """

    command: str
    origin: Origin
    seed: int
    resamples: int
    summary: dict
    overall: GroupReport
    subsets: dict[str, GroupReport]
    ties: TieReport | None
    calibration: CalibrationReport
    length: LengthReport
    off_format: OffFormatReport
    temperature_fit: TemperatureReport | None = None
    distraction: list[DistractionReport] = field(default_factory=list)
    difference: DifferenceReport | None = None
    reward_bench_2: object | None = None  # a dataclass of pair_pm.reward_bench_2
    reward_bench: object | None = None  # a dataclass of pair_pm.reward_bench

    def to_dict(self) -> dict:
        """Return the fields as JSON can hold them."""
        return dataclasses.asdict(self)


def write_report(path: Path, report: EvaluationReport) -> None:
    """Write `report.json`, whole or not at all."""
    with written_whole(path) as fresh:
        # NaN would be no JSON: a number that cannot be computed is None by then.
        fresh.write_text(json.dumps(report.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n", "utf-8")
