"""RewardBench's sections: by hand on a constructed table, and beside `rewardbench`'s own function."""

import json

import numpy as np
import pytest
from published_scoring import load_published_scoring
from simulated import RuleEngine, make_scorer, write_lines

from pair_pm.benchmark_rows import SECTIONS
from pair_pm.evaluation import EvaluationOptions, evaluate
from pair_pm.evaluation_report import write_report
from pair_pm.intervals import PromptBootstrap
from pair_pm.labelled_source import read_labelled_pairs
from pair_pm.prediction_run import predict
from pair_pm.predictions import Origin
from pair_pm.reward_bench import score_reward_bench

SUBSETS = [subset for of_section in SECTIONS.values() for subset in of_section]


def score(rows: dict[str, list[float]], resamples: int = 0):
    """Return the scores of rows that are right, tied or wrong, by subset."""
    subsets = np.array([subset for subset, right in rows.items() for _ in right], dtype=object)
    right = np.array([value for values in rows.values() for value in values], dtype=float)
    return score_reward_bench(subsets, right, PromptBootstrap(np.arange(len(right)).astype(str), resamples))


def test_sections_are_weighted_as_published_by_hand():
    rows = {subset: [1.0] for subset in SUBSETS}
    rows["alpacaeval-length"] = [1, 0]  # Chat: (100 + 95 / 2 + 95 + 28 + 40) / 358
    rows["llmbar-adver-manual"] = [0]  # Chat Hard: (456 - 46) / 456
    rows["xstest-should-respond"] = [0.5, 0.5, 1, 0]  # Safety: (740 - 250 / 2) / 740
    rows["math-prm"] = [0, 0, 0]  # Reasoning: half of it
    report = score(rows)
    expected = {"Chat": 310.5 / 358, "Chat Hard": 410 / 456, "Safety": 615 / 740, "Reasoning": 0.5}
    assert {section: estimate.value for section, estimate in report.sections.items()} == pytest.approx(expected)
    assert report.score.value == pytest.approx(sum(expected.values()) / 4)
    assert (report.missing, report.other_rows) == ([], 0)
    assert [estimate.rows for estimate in report.sections.values()] == [6, 6, 8, 9]


def test_absent_subsets_leave_their_weight_to_the_others_and_the_mean_open():
    report = score({"math-prm": [1.0, 0.0], "hep-go": [1.0], "hep-js": [0.0], "mine": [1.0]})
    # (984 / 2 + 164) / (984 + 2 * 164) = 656 / 1312
    assert report.sections["Reasoning"].value == pytest.approx(0.5)
    assert {report.sections[name].value for name in ("Chat", "Chat Hard", "Safety")} == {None}
    assert report.sections["Chat"].reason == "no row of any of its subsets"
    assert report.score.value is None
    assert report.score.reason.startswith("no row of alpacaeval-easy, ")
    assert (len(report.missing), report.other_rows) == (20, 1)


def test_sections_are_those_of_the_published_function_on_the_same_numbers():
    published = load_published_scoring()
    rng = np.random.default_rng(0)
    for _ in range(20):
        kept = rng.permutation(SUBSETS)[: rng.integers(12, 24)]
        rows = {subset: rng.integers(0, 2, rng.integers(1, 9)).tolist() for subset in kept}
        accuracies = {subset: float(np.mean(right)) for subset, right in rows.items()}
        expected = published.calculate_scores_per_section(
            published.EXAMPLE_COUNTS, published.SUBSET_MAPPING, accuracies
        )
        # It says 0 where a section has no row.
        found = {section: estimate.value or 0.0 for section, estimate in score(rows).sections.items()}
        assert found == pytest.approx(expected)


def test_intervals_are_those_of_a_weighted_mean():
    rows = {subset: [1.0, 0.0] * 100 for subset in SECTIONS["Chat"]}
    chat = score(rows, resamples=2000).sections["Chat"]
    # Strata of one accuracy: the variance is 0.25 / 200 times the sum of the squared weights.
    weights = np.array(list(SECTIONS["Chat"].values())) / 358
    deviation = np.sqrt(0.25 / 200 * (weights**2).sum())
    assert chat.low == pytest.approx(0.5 - 1.96 * deviation, abs=0.006)
    assert chat.high == pytest.approx(0.5 + 1.96 * deviation, abs=0.006)


def test_a_file_in_the_published_columns_is_scored_in_its_report(tmp_path):
    rows = [
        {"prompt": f"Q {subset}", "chosen": "longer" if right else "no", "rejected": "short", "subset": subset, "id": 1}
        for subset in SUBSETS
        for right in (True, subset != "donotanswer")
    ]
    labelled = read_labelled_pairs(write_lines(tmp_path / "rb.jsonl", *rows))
    longer = make_scorer(RuleEngine(lambda a, b: float(len(a) - len(b))))
    report = evaluate(predict(longer, labelled, Origin()), EvaluationOptions(resamples=20))
    assert report.reward_bench.sections["Safety"].value == pytest.approx((740 - 136 / 2) / 740)
    assert report.reward_bench.sections["Reasoning"].value == 1.0
    write_report(tmp_path / "report.json", report)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["reward_bench"]["score"]["value"] == report.reward_bench.score.value
    assert written["reward_bench_2"] is None
