"""Words and hashes of words in a row: `pair_pm.word_runs`."""

import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from pair_pm.word_runs import _find_words, hash_runs, hash_whole, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop_me: NOW!", ["don", "t", "stop", "me", "now"]),
        ("  a\n\tb\u00a0c  ", ["a", "b", "c"]),
        ("Ünïcode – „quoted“ １２", ["ünïcode", "quoted", "12"]),
        ("cafe\u0301", ["café"]),
        ("月が綺麗 isn't it", ["月", "が", "綺", "麗", "isn", "t", "it"]),
        ("안녕 세상", ["안녕", "세상"]),
        ("?!", []),
        ("", []),
    ],
)
def test_words_have_no_case_punctuation_or_space(text, words):
    assert split_words(text) == words


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_ascii_text_takes_a_shorter_way_to_the_same_words(text):
    assert split_words(text) == _find_words(text.lower())


@given(
    texts=st.lists(st.lists(st.sampled_from("abcde"), max_size=12), max_size=6),
    length=st.integers(1, 5),
    every=st.integers(1, 5),
)
def test_runs_are_those_of_each_text_and_have_the_hash_of_their_words(texts, length, every):
    expected = [
        (hash_whole(words[start : start + length], kind), kind - 1, start)
        for kind, words in enumerate(texts, start=1)
        for start in range(0, len(words) - length + 1, every)
    ]
    hashes, text_of_run, starts = hash_runs(texts, range(1, len(texts) + 1), length, every)
    assert list(zip(hashes.tolist(), text_of_run.tolist(), starts.tolist(), strict=True)) == expected


def test_other_words_another_order_or_another_kind_give_another_hash():
    runs = (["a", "b"], ["b", "a"], ["ab"], ["a", "b", "a"], ["a"])
    hashes = {hash_whole(words, kind) for words in runs for kind in (1, 2)}
    assert len(hashes) == 2 * len(runs)


@pytest.mark.parametrize("seed", ["0", "1"])
def test_hashes_are_the_same_in_every_process(seed):
    program = "from pair_pm.word_runs import hash_whole; print(hash_whole(['same', 'words'], 1))"
    environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == hash_whole(["same", "words"], 1)
