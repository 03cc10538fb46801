"""The journal of a long run: whatever interrupts it, whole blocks are read back and nothing else."""

import resource
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pair_pm.errors import OutputExistsError, UnwritableError
from pair_pm.result_journal import ResultJournal, read_header

HEADER = {"command": "score", "input": "é\n"}
BLOCKS = [[{"prob": 0.1}, {"error": "two\nlines"}], [{"prob": 1 / 3}], [{"prob": 0.5}, {}, {"prob": 2.5e-7}]]


def write_journal(path, blocks=BLOCKS):
    with ResultJournal(path) as journal:
        journal.start(HEADER)
        for block in blocks:
            journal.append(block)
    return path.read_bytes()


def find_line_ends(content):
    return [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]


@contextmanager
def files_of_at_most(size):
    """Let no file of this process grow beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_results_come_back_as_they_were_in_order(tmp_path):
    write_journal(tmp_path / "x")
    with ResultJournal(tmp_path / "x") as journal:
        assert (journal.header, journal.rows) == (HEADER, 6)
        assert list(journal.results()) == [result for block in BLOCKS for result in block]
    assert read_header(tmp_path / "x") == HEADER


def test_cut_at_any_byte_it_holds_the_whole_blocks_before_and_goes_on_to_the_same_bytes(tmp_path):
    path = tmp_path / "x"
    whole = write_journal(path)
    ends = find_line_ends(whole)
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        whole_lines = sum(end <= size for end in ends)
        with ResultJournal(path) as journal:
            assert journal.header == (HEADER if whole_lines else None)
            blocks = BLOCKS[: max(whole_lines - 1, 0)]
            assert journal.rows == sum(map(len, blocks))
            assert list(journal.results()) == [result for block in blocks for result in block]
            if not whole_lines:
                journal.start(HEADER)
            for block in BLOCKS[len(blocks) :]:
                journal.append(block)
        assert path.read_bytes() == whole, size


@given(place=st.integers(0, 10_000), value=st.integers(1, 255), rest=st.booleans())
def test_damaged_byte_ends_it_at_its_line(tmp_path_factory, place, value, rest):
    path = tmp_path_factory.mktemp("journal") / "x"
    whole = write_journal(path)
    place %= len(whole)
    damaged = bytearray(whole)
    damaged[place] ^= value
    path.write_bytes(damaged if rest else damaged[: place + 1] + bytes(len(whole) - place - 1))
    whole_lines = sum(end <= place for end in find_line_ends(whole))
    with ResultJournal(path) as journal:
        assert journal.rows == sum(map(len, BLOCKS[: max(whole_lines - 1, 0)]))
        assert (journal.header is None) == (whole_lines == 0)


def test_full_disk_is_an_error_that_keeps_what_was_there(tmp_path):
    path = tmp_path / "x"
    before = write_journal(path, BLOCKS[:1])
    with ResultJournal(path) as journal:
        with (
            files_of_at_most(len(before) + 10),
            pytest.raises(UnwritableError, match="those of 2 rows are kept: make room and add --resume"),
        ):
            journal.append(BLOCKS[1])
        assert path.read_bytes() == before
        for block in BLOCKS[1:]:  # there is room again
            journal.append(block)
        assert journal.rows == 6
    assert path.read_bytes() == write_journal(tmp_path / "y")


def test_two_at_once_are_refused_and_one_after_the_other_are_not(tmp_path):
    path = tmp_path / "x"
    with ResultJournal(path) as journal:
        journal.start(HEADER)
        for anew in (False, True):
            with pytest.raises(OutputExistsError, match="another process"), ResultJournal(path, anew=anew):
                pass
        journal.append(BLOCKS[0])
    with ResultJournal(path) as journal:
        assert journal.rows == 2


def test_what_run_it_is_can_be_said_again_until_there_are_results(tmp_path):
    with ResultJournal(tmp_path / "x") as journal:
        journal.start({**HEADER, "more": "of it" * 9})
        journal.start(HEADER)
        journal.append(BLOCKS[0])
        assert list(journal.results()) == BLOCKS[0]
        with pytest.raises(AssertionError):
            journal.start(HEADER)
    assert read_header(tmp_path / "x") == HEADER


def test_begun_anew_it_is_empty(tmp_path):
    write_journal(tmp_path / "x")
    with ResultJournal(tmp_path / "x", anew=True) as journal:
        assert (journal.header, journal.rows, list(journal.results())) == (None, 0, [])
    assert (tmp_path / "x").read_bytes() == b""
