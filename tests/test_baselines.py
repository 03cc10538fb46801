"""What the surface alone reaches: `pair_pm.baselines`."""

import numpy as np
import pytest
from simulated import make_predictions

from pair_pm.baselines import judge_by_words, prefer_longer, report_lengths
from pair_pm.intervals import PromptBootstrap

RNG = np.random.default_rng(0)
WORDS = np.array([f"word{number}" for number in range(50)])


def write_texts(rows: int) -> list[str]:
    return [" ".join(RNG.choice(WORDS, 12)) for _ in range(rows)]


def test_longer_response_by_hand():
    assert prefer_longer(np.array([[5, 3], [4, 4], [1, 9]])).tolist() == [1.0, 0.5, 0.0]


def test_comparer_of_lengths_is_the_longer_wins_baseline_everywhere():
    lengths = RNG.integers(1, 30, (500, 2))
    predictions = make_predictions((lengths[:, 0] - lengths[:, 1])[:, None] * [0.1, -0.1])
    assert (predictions.verdicts.right == prefer_longer(lengths)).all()
    report = report_lengths(predictions.verdicts.right, lengths, PromptBootstrap(predictions["prompt_key"]))
    assert report.prefers_longer.value == 1.0
    differs = lengths[:, 0] != lengths[:, 1]
    assert report.longer_is_better.value == np.mean(lengths[differs, 0] > lengths[differs, 1])
    for bucket in report.buckets:
        if bucket.low > 0 or bucket.high < 0:
            assert bucket.accuracy.value == float(bucket.low > 0)
    assert sum(bucket.accuracy.rows for bucket in report.buckets) == 500


def test_lengths_by_hand():
    lengths = np.array([[100, 95], [100, 50], [50, 100], [80, 80], [90, 100]])
    right = np.array([1.0, 0.0, 0.5, 1.0, 0.0])
    report = report_lengths(right, lengths, PromptBootstrap(range(5)))
    # At least 0.9 of the longer one: the first, fourth and fifth, of which two are right.
    assert (report.matched_accuracy.value, report.matched_accuracy.rows) == (pytest.approx(2 / 3), 3)
    # Lengths differ in four: the verdict is for the longer one in the first, for the shorter in the second, for
    # neither in the third, and wrong about a shorter one in the fifth: (1 + 0 + 0.5 + 1) / 4.
    assert (report.prefers_longer.value, report.prefers_longer.rows) == (0.625, 4)
    assert report.longer_is_better.value == 0.5
    assert report.buckets[0].low == -50
    assert report.buckets[-1].high == 50


def test_words_that_decide_are_found_on_prompts_that_were_not_fitted_on():
    first, second = ([f"{text} {end}" for text in write_texts(400)] for end in ("thanks", "rubbish"))
    right = judge_by_words(first, second, np.arange(400) // 2)
    assert right.mean() > 0.98


def test_words_that_decide_nothing_reach_chance_though_each_row_could_be_learnt_by_heart():
    # Ten rows of one prompt share a word of their own: a regression that saw some of them would know the others.
    prompts = np.arange(400) // 10
    first = [f"{text} only{prompt}" for text, prompt in zip(write_texts(400), prompts, strict=True)]
    right = judge_by_words(first, write_texts(400), prompts)
    assert abs(right.mean() - 0.5) < 0.15


def test_words_are_what_a_plain_regression_on_the_other_folds_says():
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    first, second = ([f"{text} {end}" for text in write_texts(60)] for end in ("good good", "bad"))
    swapped = RNG.random(60) < 0.3
    first, second = np.where(swapped, second, first), np.where(swapped, first, second)
    prompts = np.arange(60) % 2  # two prompts: each is judged by the other
    counter = CountVectorizer().fit([*first, *second])
    features = np.log1p(counter.transform(first).toarray()) - np.log1p(counter.transform(second).toarray())
    expected = np.empty(60)
    for prompt in (0, 1):
        learnt = features[prompts != prompt]
        # Each pair both ways round counts twice, so half of the 0.03 that weighs the rows against the penalty.
        model = LogisticRegression(C=0.015, fit_intercept=False, tol=1e-8)
        model.fit(np.vstack([learnt, -learnt]), np.repeat([1, 0], 30))
        expected[prompts == prompt] = features[prompts == prompt] @ model.coef_[0] > 0
    assert (judge_by_words(first, second, prompts) == expected).all()


def test_one_prompt_or_no_word_gives_no_baseline():
    assert np.isnan(judge_by_words(["a good one"] * 3, ["a bad one"] * 3, np.zeros(3))).all()
    assert np.isnan(judge_by_words(["!"] * 4, ["?"] * 4, np.arange(4))).all()
    assert judge_by_words([], [], np.empty(0)).tolist() == []
