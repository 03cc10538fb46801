"""What a glance at the surface reaches: the longer response wins, and a regression on words that never saw the prompt.

An accuracy says something of a model as far as it lies above these.
"""

import random
from collections.abc import Sequence

import numpy as np

from pair_pm.calibration import cut_into_bins
from pair_pm.evaluation_report import LengthBucket, LengthReport
from pair_pm.intervals import PromptBootstrap

FOLDS = 5
BUCKETS = 10
MATCHED_RATIO = 0.9
_MOST_WORDS = 20_000
_INVERSE_PENALTY = 0.03


def prefer_longer(lengths: np.ndarray) -> np.ndarray:
    """Return 1 where the first response is the longer one, 0.5 where both are as long, 0 elsewhere.

    Args:
        lengths: In characters, shape (rows, 2).
    """
    return (np.sign(lengths[:, 0] - lengths[:, 1]) + 1) / 2


def judge_by_words(
    first: Sequence[str], second: Sequence[str], prompt_keys: np.ndarray, seed: int = 0, folds: int = FOLDS
) -> np.ndarray:
    """Return 1, 0.5 or 0 where a logistic regression on word counts prefers the first, neither, or the second.

    It is fitted on the prompts of the other folds, with the first response always the better one. All NaN where all
    rows are of one prompt, or no response has a word.

    Args:
        first: Responses, shape (rows,).
        second: Likewise.
        prompt_keys: Which rows may not be on both sides of a fold, shape (rows,).
        seed: Of the folds.
        folds: How many, at most as many as there are prompts.
    """
    unknown = np.full(len(first), np.nan)
    keys, codes = np.unique(np.asarray(prompt_keys, dtype=str), return_inverse=True)
    folds = min(folds, len(keys))
    features = _count_words(first, second) if folds > 1 else None
    if features is None:
        return unknown
    from sklearn.linear_model import LogisticRegression

    fold = (np.random.default_rng(random.Random(seed).getrandbits(64)).permutation(len(keys)) % folds)[codes]
    judged = unknown
    for number in range(folds):
        fitting = fold != number
        if fitting.sum() < 2:
            continue
        # The first response is always the better one, so every other row is mirrored to have two classes; without an
        # intercept that changes nothing else.
        signs = np.where(np.arange(fitting.sum()) % 2, -1.0, 1.0)
        model = LogisticRegression(C=_INVERSE_PENALTY, fit_intercept=False, tol=1e-3, max_iter=1000)
        model.fit(features[fitting].multiply(signs[:, None]).tocsr(), signs > 0)
        preference = features[~fitting] @ model.coef_[0]
        judged[~fitting] = (np.sign(np.round(preference, 9)) + 1) / 2
    return judged


def _count_words(first: Sequence[str], second: Sequence[str]):
    """Return the difference of logarithmic word counts, sparse, shape (rows, words), None where there is no word."""
    from sklearn.feature_extraction.text import CountVectorizer

    texts: dict[str, int] = {}  # completions of one prompt stand in several pairs, and are counted once
    places = [[texts.setdefault(text, len(texts)) for text in side] for side in (first, second)]
    try:
        counts = CountVectorizer(max_features=_MOST_WORDS, dtype=np.float64).fit_transform(texts)
    except ValueError:  # an empty vocabulary
        return None
    counts.data = np.log1p(counts.data)
    return counts[places[0]] - counts[places[1]]


def report_lengths(right: np.ndarray, lengths: np.ndarray, bootstrap: PromptBootstrap) -> LengthReport:
    """Return what length has to do with verdicts.

    Args:
        right: 1, 0.5 or 0, shape (rows,); the first response is the better one.
        lengths: In characters, shape (rows, 2).
        bootstrap: Of these rows.
    """
    longer, differs = prefer_longer(lengths), lengths[:, 0] != lengths[:, 1]
    is_matched = lengths.min(axis=1) >= MATCHED_RATIO * lengths.max(axis=1)
    difference = lengths[:, 0] - lengths[:, 1]
    codes = cut_into_bins(difference, BUCKETS)
    buckets = range(codes.max(initial=-1) + 1)
    columns = {
        "matched": np.where(is_matched, right, np.nan),
        # The longer one is preferred where it is the better one and the verdict right, or neither.
        "prefers_longer": np.where(differs, np.where(longer == 1, right, 1 - right), np.nan),
        "longer_is_better": np.where(differs, longer, np.nan),
        **{str(number): np.where(codes == number, right, np.nan) for number in buckets},
    }
    estimates = bootstrap.estimate(columns, shares=tuple(columns))
    return LengthReport(
        matched_accuracy=estimates["matched"],
        prefers_longer=estimates["prefers_longer"],
        longer_is_better=estimates["longer_is_better"],
        buckets=[_describe_bucket(difference[codes == number], estimates[str(number)]) for number in buckets],
    )


def _describe_bucket(differences: np.ndarray, accuracy) -> LengthBucket:
    return LengthBucket(int(differences.min()), int(differences.max()), float(differences.mean()), accuracy)
