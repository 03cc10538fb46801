"""RewardBench 2: Ties by hand and beside `rewardbench`'s own function, the best of several, and both from verdicts."""

import dataclasses
import math

import numpy as np
import pytest
from published_scoring import load_published_scoring
from simulated import RuleEngine, make_scorer, write_lines

from pair_pm.evaluation import EvaluationOptions, evaluate
from pair_pm.evaluation_report import write_report
from pair_pm.labelled_source import read_labelled_pairs
from pair_pm.prediction_run import predict
from pair_pm.predictions import Origin
from pair_pm.reward_bench_2 import credit_strongest, rate_rows, score_reward_bench_2
from pair_pm.reward_bench_ties import RatedRow, report_ties


def rate(id: str, *strengths: float, correct: int = 1) -> RatedRow:
    return RatedRow(id, "Ties", id, strengths, correct)


# ---- Ties -----------------------------------------------------------------------------------------------------------


def test_ties_by_hand():
    rows = [
        rate("ref:0", 3.0, 1.0, 0.0),  # margin 2
        rate("tied:0", 4.0, 3.0, 0.0, correct=2),  # margin 3, spread 1: both preferences; tanh(2 / 1 - 1)
        rate("ref:1", 1.5, 1.0),  # margin 0.5
        rate("tied:1", 5.0, 4.0, 2.0, correct=2),  # margin 2, spread 1: prefers, but 0.5 < 1; tanh(0.5 - 1)
        rate("ref:2", 0.0, 1.0),  # wrong
        rate("tied:2", 3.0, 1.0, 2.0, correct=2),  # wrong: margin -1, spread 2; tanh(-0.5 - 1)
        rate("ref:3", 2.0, 1.0),  # without a tied row
    ]
    report = report_ties(rows)
    assert (report.reference_accuracy, report.tied_accuracy) == pytest.approx((3 / 4, 2 / 3))
    assert (report.prefers_right, report.prefers_right_in_both) == pytest.approx((2 / 3, 1 / 3))
    margin = (math.tanh(1) + math.tanh(-0.5) + math.tanh(-1.5)) / 3
    assert report.margin_ratio == pytest.approx(margin)
    assert report.score == pytest.approx(0.3 * 3 / 4 + 0.3 * 2 / 3 + 0.2 * 2 / 3 + 0.2 / 3 + 0.01 * margin)


def test_ties_at_its_borders():
    equal = [rate("ref:0", 1.0, 1.0), rate("tied:0", 1.0, 1.0, 1.0, correct=2)]
    assert report_ties(equal).score == 0.0  # nothing is above anything
    assert report_ties(equal).margin_ratio is None
    alike = [rate("ref:0", 2.0, 1.0), rate("tied:0", 2.0, 2.0, 1.0, correct=2)]
    assert report_ties(alike).score == 1.0  # no spread, so no ratio
    alone = report_ties([rate("ref:0", 2.0, 1.0)])
    assert (alone.score, alone.reference_accuracy, alone.tied_accuracy) == (None, 1.0, None)


def test_ties_are_those_of_the_published_function_on_the_same_numbers():
    published = load_published_scoring()
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = []
        for number in range(int(rng.integers(1, 12))):
            for name, correct in (("ref", 1), ("tied", int(rng.integers(2, 6)))):
                strengths = rng.normal(size=correct + rng.integers(1, 6)) * 0.5
                strengths[:correct] += 1.0
                rows.append(rate(f"{name}:{number}", *np.round(strengths, 1).tolist(), correct=correct))
        rows = rows[: len(rows) - int(rng.integers(0, 2))] or rows
        samples = [{"id": row.id, "num_correct": row.correct, "scores": list(row.strengths)} for row in rows]
        if len(rows) < 2:
            continue
        _, expected = published.process_single_model(samples)
        assert report_ties(rows).score == pytest.approx(float(expected), abs=1e-12)


# ---- the best of several --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strengths", "credit"),
    [
        ([2, 1, 0, 1], 1),
        ([1, 2, 0, 1], 0),
        ([2, 2, 0, 1], 1 / 2),
        ([2, 2, 2, 1], 1 / 3),
        ([1, 1, 1, 1], 1 / 4),
        ([1, 2, 2, 1], 0),
    ],
)
def test_the_strongest_is_credited_and_equals_share(strengths, credit):
    assert credit_strongest(strengths, correct=1) == pytest.approx(credit)


# ---- from verdicts --------------------------------------------------------------------------------------------------

QUALITIES = {"good": 2.0, "fair": 1.0, "poor": 0.0, "bad": -1.0, "fine": 1.9}


def make_completions(number: object, subset: str, chosen: list[str], rejected: list[str]) -> dict:
    row = {"id": str(number), "prompt": f"{subset} {number}", "chosen": chosen, "rejected": rejected, "subset": subset}
    return {**row, "num_correct": len(chosen)}


ROWS = [
    *(
        make_completions(number, subset, ["fair"], ["poor", "bad", "good" if number < wrong else "poor "])
        for wrong, subset in enumerate(("Factuality", "Precise IF", "Math", "Safety", "Focus"))
        for number in range(4)
    ),
    make_completions("ref:0", "Ties", ["good"], ["poor", "bad"]),  # margin 2
    make_completions("tied:0", "Ties", ["good", "fine"], ["poor"]),  # margin 1.9, spread 0.1
    make_completions("ref:1", "Ties", ["fair"], ["good"]),  # wrong: margin -1
    make_completions("tied:1", "Ties", ["good", "fair"], ["poor", "bad"]),  # margin 1, spread 1: not greater
]


def judge(tmp_path, rows, slot_bias: float = 0.0, max_tokens=None):
    """Return the predictions of a judge that knows the qualities, and likes slot A by some log-odds."""
    rule = RuleEngine(lambda a, b: QUALITIES[a.strip()] - QUALITIES[b.strip()] + slot_bias)
    labelled = read_labelled_pairs(write_lines(tmp_path / "rb2.jsonl", *rows))
    return predict(make_scorer(rule), labelled, Origin())


def test_strengths_are_the_qualities_that_the_verdicts_follow(tmp_path):
    [row], incomplete = rate_rows(judge(tmp_path, [make_completions(7, "Math", ["fair"], ["good", "poor", "bad"])]))
    assert incomplete == 0
    assert (row.id, row.subset, row.correct) == ("7", "Math", 1)
    assert row.strengths == pytest.approx([0.5, 1.5, -0.5, -1.5], abs=1e-5)  # the qualities less their mean


def test_strengths_are_those_of_the_round_robin_though_the_model_likes_a_slot(tmp_path):
    row = make_completions(7, "Math", ["fair"], ["good", "poor", "bad"])
    [rated], _ = rate_rows(judge(tmp_path, [row], slot_bias=1.0))
    scorer = make_scorer(RuleEngine(lambda a, b: QUALITIES[a] - QUALITIES[b] + 1.0))
    ranking = scorer.rank(row["prompt"], row["chosen"] + row["rejected"])
    assert rated.strengths == pytest.approx(ranking.strengths, abs=1e-6)


def test_completions_that_the_model_finds_equally_good_share_the_row(tmp_path):
    rows = [make_completions(0, "Math", ["fair"], ["poor", "fair ", "bad"]),
            make_completions(1, "Math", ["fair"], ["bad", "fair ", " fair"])]  # fmt: skip
    for slot_bias in (0.0, 0.7):
        report = score_reward_bench_2(judge(tmp_path, rows, slot_bias), resamples=0, seed=0)
        assert report.subsets["Math"].value == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_all_subsets_and_their_mean_by_hand(tmp_path):
    predictions = judge(tmp_path, ROWS)
    report = score_reward_bench_2(predictions, resamples=200, seed=0)
    # In the n-th subset "good" is among the wrong completions of n rows of 4.
    shares = dict(
        zip(("Factuality", "Precise IF", "Math", "Safety", "Focus"), (1, 3 / 4, 2 / 4, 1 / 4, 0), strict=True)
    )
    margin = (math.tanh(1.9 / 0.1 - 1) + math.tanh(-1 / 1 - 1)) / 2
    ties = 0.3 * 1 / 2 + 0.3 * 1 + 0.2 * 1 / 2 + 0.2 * 1 / 2 + 0.01 * margin
    expected = {**shares, "Ties": ties}
    assert {name: estimate.value for name, estimate in report.subsets.items()} == pytest.approx(expected, abs=1e-6)
    assert report.score.value == pytest.approx(sum(expected.values()) / 6, abs=1e-6)
    assert report.score.low < report.score.value < report.score.high
    assert (report.missing, report.incomplete) == ([], 0)
    # 20 rows of four completions have 6 pairs each; those of Ties have 3, 3, 1 and 6.
    assert (report.comparisons, report.calls) == (20 * 6 + 13, 2 * (20 * 6 + 13))
    assert report.tokens == int(predictions["prompt_tokens_first_in_a"].sum() * 2)


def test_a_judge_that_tells_nothing_apart_has_a_quarter_and_no_point_in_ties(tmp_path):
    labelled = read_labelled_pairs(write_lines(tmp_path / "rb2.jsonl", *ROWS))
    predictions = predict(make_scorer(RuleEngine(lambda a, b: 3.0)), labelled, Origin())
    report = score_reward_bench_2(predictions, resamples=0, seed=0)
    assert {name: estimate.value for name, estimate in report.subsets.items() if name != "Ties"} == dict.fromkeys(
        ("Factuality", "Precise IF", "Math", "Safety", "Focus"), 0.25
    )
    assert report.subsets["Ties"].value == 0.0


def test_a_row_that_lacks_a_pair_is_left_out_and_counted_not_scored_as_a_smaller_one(tmp_path):
    predictions = judge(tmp_path, ROWS)
    # The last completion of the first row could not be compared, as where it is too long.
    is_there = ~((predictions["group"] == predictions["group"][0]) & (predictions["second_index"] == 3))
    report = score_reward_bench_2(predictions.where(is_there), resamples=0, seed=0)
    assert (report.incomplete, report.subsets["Factuality"].rows) == (1, 3)


def test_subsets_that_are_not_there_leave_the_mean_open(tmp_path):
    report = score_reward_bench_2(judge(tmp_path, ROWS[:4]), resamples=0, seed=0)
    assert report.subsets.keys() == {"Factuality"}
    assert (report.score.value, report.score.reason) == (None, "no row of Precise IF, Math, Safety, Focus, Ties")
    assert report.ties is None
    half = score_reward_bench_2(judge(tmp_path, ROWS[-1:]), resamples=10, seed=0)
    assert half.subsets["Ties"].value is None
    assert half.ties.tied_accuracy == 1.0


def test_the_report_holds_the_scores_and_the_seed_decides_the_intervals(tmp_path):
    predictions = judge(tmp_path, ROWS)
    report = evaluate(predictions, EvaluationOptions(resamples=50, seed=3))
    assert report.reward_bench is None
    assert report.reward_bench_2 == score_reward_bench_2(predictions, resamples=50, seed=3)
    assert dataclasses.asdict(report)["reward_bench_2"]["subsets"]["Math"]["value"] == 0.5
    write_report(tmp_path / "report.json", report)  # refuses NaN
