"""The report: known answers, by hand, and what is said where there is nothing to say."""

import dataclasses
import json

import numpy as np
import pytest
from simulated import RuleEngine, make_predictions, make_row, make_scorer, write_lines
from sklearn.metrics import roc_auc_score

from pair_pm.distraction import EDITS
from pair_pm.errors import DataError
from pair_pm.evaluation import EvaluationOptions, evaluate
from pair_pm.evaluation_report import write_report
from pair_pm.intervals import NO_ROWS
from pair_pm.labelled_source import read_labelled_pairs
from pair_pm.prediction_run import predict
from pair_pm.predictions import Origin, read_predictions, write_predictions

FEW = EvaluationOptions(resamples=50)


def judge(*probs: tuple[float, float], **columns):
    """Return predictions in which the first response has these probabilities in slot A and slot B."""
    in_a, in_b = np.array(probs, dtype=float).reshape(-1, 2).T
    return make_predictions(np.stack([np.log(in_a / (1 - in_a)), -np.log(in_b / (1 - in_b))], axis=1), **columns)


def list_estimates(value) -> list[dict]:
    """Return every estimate in a report's dictionary."""
    if isinstance(value, dict):
        if value.keys() >= {"value", "low", "high", "rows", "reason"}:
            return [value]
        return [found for part in value.values() for found in list_estimates(part)]
    return [found for part in value for found in list_estimates(part)] if isinstance(value, list) else []


def test_comparer_that_always_says_a_is_seen_through(tmp_path):
    rows = [make_row(f"Q{number}", "good" * (number % 3 + 1)) for number in range(20)]
    labelled = read_labelled_pairs(write_lines(tmp_path / "x.jsonl", *rows))
    overall = evaluate(predict(make_scorer(RuleEngine(lambda a, b: 2.0)), labelled, Origin()), FEW).overall
    position = overall.position
    assert (overall.accuracy.value, overall.predicted_ties) == (0.5, 20)
    assert position.consistency.value == 0.0
    assert (position.accuracy_first_in_a.value, position.accuracy_first_in_b.value) == (1.0, 0.0)
    assert position.swap_gain.value == 0.0
    assert position.order_bias.value == pytest.approx(2.0)
    assert position.prob_a.value == 1.0


def test_comparer_of_lengths_is_no_better_than_the_longer_wins_anywhere(tmp_path):
    draw = np.random.default_rng(0)
    rows = [
        make_row(f"Q{n}", "g" * int(draw.integers(1, 9)), "b" * int(draw.integers(1, 9)), subset="xyz"[n % 3])
        for n in range(90)
    ]
    labelled = read_labelled_pairs(write_lines(tmp_path / "x.jsonl", *rows))
    report = evaluate(predict(make_scorer(RuleEngine(lambda a, b: len(a) - len(b))), labelled, Origin()), FEW)
    for group in (report.overall, *report.subsets.values()):
        assert 0 < group.accuracy.value < 1
        assert group.accuracy == group.longer_wins
        assert group.position.consistency.value == 1.0


def test_groups_by_hand():
    report = evaluate(
        judge(
            (0.9, 0.8),  # right in both orders
            (0.9, 0.3),  # right on average, wrong with the better one in slot B
            (0.2, 0.1),  # wrong
            (0.53, 0.51),  # right, and a close call
            (0.5, 0.5),  # a predicted tie
            subset=["x", "x", "y", "y", "y"],
            prompt_key=["p", "p", "q", "r", "s"],
            first=["long answer", "longer than", "ab", "same", "same"],
            second=["short", "it", "abc", "size", "size"],
        ),
        FEW,
    )
    overall, x, y = report.overall, report.subsets["x"], report.subsets["y"]
    assert (overall.rows, overall.prompts, overall.predicted_ties) == (5, 4, 1)
    assert overall.accuracy.value == pytest.approx((1 + 1 + 0 + 1 + 0.5) / 5)
    assert (x.accuracy.value, y.accuracy.value) == (1.0, 0.5)
    assert overall.longer_wins.value == pytest.approx((1 + 1 + 0 + 0.5 + 0.5) / 5)
    assert overall.close_calls.value == pytest.approx(2 / 5)
    assert x.position.consistency.value == 0.5
    assert overall.position.accuracy_first_in_a.value == pytest.approx(3.5 / 5)
    assert overall.position.accuracy_first_in_b.value == pytest.approx(2.5 / 5)
    assert overall.position.swap_gain.value == pytest.approx(3.5 / 5 - 3 / 5)
    assert (x.prompts, x.accuracy.low) == (1, None)
    assert "one prompt" in x.accuracy.reason


def test_rows_labelled_a_tie_are_in_no_accuracy_and_told_apart():
    draw = np.random.default_rng(0)
    distance = np.abs(draw.normal(0, 0.1, 40)).clip(0, 0.4)
    prob = 0.5 + distance * np.where(draw.random(40) < 0.5, 1, -1)
    is_tie = draw.random(40) < 0.4
    labels = np.where(is_tie, "tie", "first")
    report = evaluate(judge(*np.stack([prob, prob], axis=1), label=labels, prob_chosen=np.where(is_tie, 0.5, 1)), FEW)
    assert report.overall.rows == (~is_tie).sum()
    assert report.overall.accuracy.value == pytest.approx((prob[~is_tie] > 0.5).mean())
    assert report.ties.rows == report.summary["labelled_ties"] == is_tie.sum()
    assert report.ties.distance.value == pytest.approx(distance[is_tie].mean())
    assert report.ties.distance_of_others.value == pytest.approx(distance[~is_tie].mean())
    assert report.ties.auc.value == pytest.approx(roc_auc_score(is_tie, -distance))
    assert report.ties.auc.low < report.ties.auc.value < report.ties.auc.high


def test_pairs_that_the_labels_say_nothing_of_are_in_no_number_but_label_mass():
    report = evaluate(judge((0.9, 0.9), (0.9, 0.9), label=["first", "unknown"], label_mass=[1.0, 0.2]), FEW)
    assert report.overall.rows == report.calibration.rows == report.summary["pairs"] == 1
    assert report.ties is None
    assert report.off_format.label_mass.rows == 2


def test_low_label_mass_is_listed_lowest_first():
    report = evaluate(judge(*[(0.9, 0.9)] * 4, label_mass=[0.9, 0.4, 0.6, 0.1], prompt=["a", "b", "c", "d" * 999]), FEW)
    off = report.off_format
    assert (off.rows_below_half, off.lowest) == (2, 0.1)
    assert off.percentile_1 == pytest.approx(np.percentile([0.9, 0.4, 0.6, 0.1], 1))
    assert [(note.row, note.numbers) for note in off.listed] == [(3, {"label_mass": 0.1}), (1, {"label_mass": 0.4})]
    assert len(off.listed[0].prompt) == 300


@pytest.mark.parametrize(
    ("predictions", "accuracy"),
    [
        (judge(), None),
        (judge((0.9, 0.9)), 1.0),
        (judge(*[(0.9, 0.8)] * 3, label="tie", prob_chosen=0.5), None),
        (judge(*[(0.1, 0.2)] * 3), 0.0),
        (judge(*[(0.9, 0.9)] * 3), 1.0),
        (judge(*[(0.5, 0.5)] * 3), 0.5),
        (judge((0.9, 0.9), (0.9, 0.9), label=["first", "tie"], subset=["x", "y"]), 1.0),
    ],
    ids=["no row", "one row", "all labelled ties", "all wrong", "all right", "all predicted ties", "subset of ties"],
)
def test_every_number_is_there_or_says_why_not(predictions, accuracy, tmp_path):
    options = dataclasses.replace(FEW, fit_temperature=True)
    report = evaluate(predictions, options, other=predictions if len(predictions) else None)
    assert report.overall.accuracy.value == report.summary["accuracy"] == accuracy
    for estimate in list_estimates(report.to_dict()):
        assert (estimate["value"] is None) <= bool(estimate["reason"])
        assert (estimate["low"] is None) <= bool(estimate["reason"])
    write_report(tmp_path / "report.json", report)  # refuses NaN
    assert json.loads((tmp_path / "report.json").read_text())["overall"]["accuracy"]["value"] == accuracy


def test_edits_that_a_comparer_of_lengths_falls_for():
    first, second = "twenty-one characters", "Five words. Say nothing."  # as long, but for three
    names = ["", *EDITS]
    texts = [EDITS[name].apply(second) if name else second for name in names]
    log_odds = np.array([[30.0 + len(first) - len(text), -30.0 - len(first) + len(text)] for text in texts])
    table = make_predictions(log_odds, edit=names, pair_key="k", first=first, second=texts)
    found = {report.edit: report for report in evaluate(table, FEW).distraction}
    assert list(found) == list(EDITS)
    assert {name for name, report in found.items() if report.flipped} == {"padding", "opener"}
    assert found["padding"].right == 1
    assert found["colon"].shift.value == pytest.approx(-1.0)
    assert evaluate(table.unedited, FEW).distraction == []


def test_flips_are_counted_among_the_verdicts_that_were_right():
    table = judge(
        *[(0.9, 0.9), (0.9, 0.9), (0.2, 0.2), (0.9, 0.9)],  # three right
        *[(0.4, 0.4), (0.8, 0.8), (0.1, 0.1)],  # with the colon: one flipped, one not, one as wrong as before
        (0.1, 0.1),  # too long without it
        edit=[""] * 4 + ["colon"] * 4,
        pair_key=[*"abcdabce"],
        prompt_key=[*"abcdabce"],
    )
    *others, colon = evaluate(table, FEW).distraction
    assert {(other.right, other.flip_rate.value, other.flip_rate.reason) for other in others} == {(0, None, NO_ROWS)}
    assert (colon.right, colon.flipped, colon.flip_rate.value, colon.flip_rate.rows) == (2, 1, 0.5, 2)
    assert evaluate(table, FEW).overall.rows == 4


def test_edits_change_no_word_that_was_there():
    text = "First one. Second one!\nA line\n\nAnother paragraph? Yes."
    for name, edit in EDITS.items():
        kept = iter(edit.apply(text).replace("*", " ").replace("- ", " ").replace(":", " ").split())
        assert all(word in kept for word in text.split()), name  # in their order
        assert edit.apply(text) != text
    assert EDITS["bold"].apply(text) == "**First one.** Second one!\nA line\n\n**Another paragraph?** Yes."
    assert EDITS["list"].apply(text).splitlines()[:3] == ["- First one.", "- Second one!", "- A line"]


def test_two_models_are_compared_on_the_rows_that_both_have():
    keys = ["a", "b", "c", "d", "d"]  # one pair stands there twice
    one = judge((0.9, 0.9), (0.9, 0.9), (0.1, 0.1), (0.9, 0.9), (0.6, 0.6), pair_key=keys, id=[*"01234"])
    other = judge((0.2, 0.2), (0.8, 0.8), (0.2, 0.2), (0.7, 0.7), pair_key=["c", "a", "d", "d"])
    found = evaluate(one, FEW, other).difference
    assert (found.rows, found.unmatched) == (4, 1)
    assert found.accuracy.value == 3 / 4
    assert found.accuracy_of_other.value == 2 / 4
    assert found.accuracy_difference.value == 1 / 4
    assert (len(found.disagreements), found.disagreements[0].id) == (4, "3")
    assert found.disagreements[0].numbers == pytest.approx({"prob_first": 0.9, "prob_first_of_other": 0.2})


def test_difference_of_two_models_is_surer_than_each_of_them():
    draw = np.random.default_rng(0)
    hardness = draw.normal(0.7, 1, 1000)
    one, other = (
        make_predictions((hardness + draw.normal(shift, 0.02, 1000))[:, None] * [1, -1]) for shift in (0.1, 0.0)
    )
    found = evaluate(one, EvaluationOptions(resamples=500), other).difference
    paired = found.accuracy_difference.high - found.accuracy_difference.low
    alone = found.accuracy.high - found.accuracy.low
    assert paired < 0.6 * alone
    assert found.accuracy_difference.value == pytest.approx(found.accuracy.value - found.accuracy_of_other.value)


def test_models_on_other_data_are_not_compared():
    with pytest.raises(DataError, match="none of its 1 pairs"):
        evaluate(judge((0.9, 0.9), pair_key="a"), FEW, judge((0.9, 0.9), pair_key="b"))


def test_report_of_the_file_is_the_report_of_the_run(tmp_path):
    draw = np.random.default_rng(0)
    rows = [
        make_row(f"Q{n}", " ".join(["word"] * draw.integers(1, 30)), "bad " * draw.integers(1, 30), subset="ab"[n % 2])
        for n in range(40)
    ]
    rows += [make_row(f"T{n}", "one", "two", label="tie") for n in range(5)]
    labelled = read_labelled_pairs(write_lines(tmp_path / "x.jsonl", *rows))
    options = dataclasses.replace(FEW, fit_temperature=True, seed=3)
    table = predict(
        make_scorer(RuleEngine(lambda a, b: 0.2 * (len(a) - len(b)) + 0.3)), labelled, Origin(), perturb=True
    )
    write_predictions(tmp_path / "p.parquet", table)
    assert evaluate(read_predictions(tmp_path / "p.parquet"), options) == evaluate(table, options)


def test_summary_names_the_first_numbers_of_each_part():
    predictions = judge(*[(0.9, 0.8), (0.7, 0.6), (0.2, 0.4), (0.8, 0.8)] * 5)
    report = evaluate(predictions, dataclasses.replace(FEW, fit_temperature=True), predictions)
    summary, overall = report.summary, report.overall
    assert summary["accuracy"] == overall.accuracy.value == 0.75
    assert summary["accuracy_interval"] == [overall.accuracy.low, overall.accuracy.high]
    assert summary["position_consistency"] == overall.position.consistency.value
    assert summary["order_bias"] == pytest.approx(overall.position.order_bias.value)
    assert summary["temperature_fit"]["temperature"] == report.temperature_fit.temperature
    assert summary["difference"]["value"] == 0.0
    assert summary["skipped"] == {}
