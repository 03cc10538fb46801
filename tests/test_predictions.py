"""Labelled pairs through a model into a table, and the table into a file and back."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulated import RuleEngine, make_row, make_scorer, write_lines

from pair_pm.distraction import EDITS
from pair_pm.errors import CheckpointError, DataError, MissingPathError, OutputExistsError
from pair_pm.labelled_pairs import LabelledPair, LabelledPairs
from pair_pm.labelled_source import read_labelled_pairs
from pair_pm.prediction_run import predict
from pair_pm.predictions import COLUMNS, Origin, read_predictions, write_predictions
from pair_pm.recipe import Recipe


def like_length(a: str, b: str) -> float:
    return 0.25 + 0.1 * (len(a) - len(b))


@pytest.fixture
def labelled(tmp_path) -> LabelledPairs:
    rows = [
        make_row(f"Q{number}", "good" * (number % 3 + 1), id=number, subset="ab"[number % 2]) for number in range(9)
    ]
    rows += [make_row("Q0", "one", "three", label="tie"), make_row("Q1", "ten", "twelve", prob_chosen=0.8, source="s")]
    return read_labelled_pairs(write_lines(tmp_path / "x.jsonl", *rows))


def test_table_holds_what_the_pairs_are_and_what_the_model_says_before_temperature(labelled):
    scorer = make_scorer(RuleEngine(like_length, label_mass=0.5), Recipe(temperature=2.0, order_offset=0.1))
    table = predict(scorer, labelled, Origin(model="m"))
    assert len(table) == 11
    assert table["id"].tolist() == [*map(str, range(9)), "", ""]
    assert table["subset"].tolist() == [*"ababababa", "", ""]
    assert table["label"].tolist() == ["first"] * 9 + ["tie", "first"]
    assert table["prob_chosen"].tolist() == [1.0] * 9 + [0.5, 0.8]
    assert (table["prompt"][3], table["first"][3], table["second"][3]) == ("Q3", "good", "bad")
    assert table["log_odds_first_in_a"][:3] == pytest.approx([0.35, 0.75, 1.15])
    assert table["log_odds_first_in_b"][:3] == pytest.approx([0.15, -0.25, -0.65])
    assert table["label_mass"] == pytest.approx([0.5] * 11)
    assert (table["prompt_tokens_first_in_a"] == table["prompt_tokens_first_in_b"]).all()
    assert len(set(table["prompt_key"])) == 9
    assert len(set(table["pair_key"])) == 11
    assert (table.origin.model, table.origin.temperature, table.origin.order_offset) == ("m", 2.0, 0.1)
    assert table.origin.dataset_digest == labelled.digest()
    compared = scorer.compare_many([(pair.messages, pair.first, pair.second) for pair in labelled.pairs])
    assert table.verdicts.prob_first == pytest.approx([comparison.prob_first for comparison in compared])


def test_file_is_read_back_as_it_was(labelled, tmp_path):
    table = predict(make_scorer(RuleEngine(like_length)), labelled, Origin(model="m", versions={"torch": "2"}))
    write_predictions(tmp_path / "p.parquet", table)
    again = read_predictions(tmp_path / "p.parquet")
    assert again.origin == table.origin
    for name in COLUMNS:
        assert again[name].tolist() == table[name].tolist(), name
        assert again[name].dtype == table[name].dtype, name
    assert pq.read_schema(tmp_path / "p.parquet").names == list(COLUMNS)


def test_what_is_no_table_of_predictions_is_refused_in_one_line(tmp_path):
    with pytest.raises(MissingPathError, match=r"predictions\.parquet"):
        read_predictions(tmp_path / "nowhere.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(DataError, match="is required"):
        read_predictions(tmp_path / "text.parquet")
    pq.write_table(pa.table({"id": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="lacks source, subset"):
        read_predictions(tmp_path / "other.parquet")


@pytest.mark.parametrize("name", ["log_odds_first_in_b", "label_mass"])
def test_number_in_a_file_that_is_not_finite_is_an_error_that_names_the_row(tmp_path, labelled, name):
    table = predict(make_scorer(RuleEngine(like_length)), labelled, Origin())
    table[name][2] = np.nan
    write_predictions(tmp_path / "p.parquet", table)
    with pytest.raises(DataError, match=rf"p\.parquet:3: {name} is nan"):
        read_predictions(tmp_path / "p.parquet")


def test_completions_of_one_prompt_are_pairs_of_one_group():
    question, texts = ({"role": "user", "content": "Q"},), ["right", "wrong one", "wrong two"]
    pairs = [
        LabelledPair(question, texts[i], texts[j], label, group="g", first_index=i, second_index=j)
        for i, j, label in ((0, 1, "first"), (0, 2, "first"), (1, 2, "unknown"))
    ]
    table = predict(make_scorer(RuleEngine(like_length)), LabelledPairs("x", pairs=pairs), Origin())
    assert table["group"].tolist() == ["g"] * 3
    assert list(zip(table["first_index"], table["second_index"], strict=True)) == [(0, 1), (0, 2), (1, 2)]
    assert table.is_decided.tolist() == [True, True, False]
    assert len(set(table["prompt_key"])) == 1


def test_edited_pairs_stand_below_the_others_and_ties_are_not_edited(labelled):
    table = predict(make_scorer(RuleEngine(like_length)), labelled, Origin(), perturb=True)
    assert len(table) == 11 + 10 * len(EDITS)
    assert table["edit"][:11].tolist() == [""] * 11
    opened = table.where(table["edit"] == "opener")
    assert all(text.startswith("Certainly!") for text in opened["second"])
    assert opened["pair_key"].tolist() == table.unedited.where(table.unedited.is_decided)["pair_key"].tolist()


def test_pair_too_long_for_the_model_is_left_out_and_counted(labelled):
    labelled.pairs[3] = dataclasses.replace(labelled.pairs[3], first="good " * 500)
    scorer = make_scorer(RuleEngine(like_length), Recipe(sequence_len=400))
    table = predict(scorer, labelled, Origin())
    assert (len(table), table.origin.skipped) == (10, {"too_long": 1})
    with pytest.raises(DataError, match="none of its 11 pairs can be compared"):
        predict(make_scorer(RuleEngine(like_length), Recipe(sequence_len=5)), labelled, Origin())


def test_number_that_is_not_finite_is_an_error(labelled):
    with pytest.raises(CheckpointError, match="finite ones are required"):
        predict(make_scorer(RuleEngine(like_length, label_mass=float("nan"))), labelled, Origin())


class Interrupted(RuleEngine):
    """A rule that is interrupted after so many prompts."""

    def __init__(self, rule, prompts: int):
        super().__init__(rule)
        self.left = prompts

    def label_logprobs(self, prompts):
        self.left -= len(prompts)
        if self.left < 0:
            raise KeyboardInterrupt
        return super().label_logprobs(prompts)


def test_interrupted_run_goes_on_where_it_was_and_gives_the_same_table(tmp_path, monkeypatch, labelled):
    monkeypatch.setattr("pair_pm.prediction_run.ROWS_A_BLOCK", 4)
    journal, origin = tmp_path / "x.part", Origin(model="m")
    with pytest.raises(KeyboardInterrupt):  # 4 prompts of the probe, then two blocks
        predict(make_scorer(Interrupted(like_length, 20)), labelled, origin, journal=journal)
    with pytest.raises(OutputExistsError, match="--resume"):
        predict(make_scorer(RuleEngine(like_length)), labelled, origin, journal=journal)
    with pytest.raises(OutputExistsError, match="model_answers"):
        predict(make_scorer(RuleEngine(lambda a, b: 1.0)), labelled, origin, journal=journal, resume=True)
    with pytest.raises(OutputExistsError, match="perturb"):
        predict(make_scorer(RuleEngine(like_length)), labelled, origin, journal=journal, resume=True, perturb=True)
    engine = RuleEngine(like_length)
    resumed = predict(make_scorer(engine), labelled, origin, journal=journal, resume=True)
    assert engine.prompts == 4 + 2 * 3
    whole = predict(make_scorer(RuleEngine(like_length)), labelled, origin)
    for name in COLUMNS:
        assert resumed[name].tolist() == whole[name].tolist(), name


def test_other_data_cannot_be_resumed_with(tmp_path, labelled):
    journal = tmp_path / "x.part"
    predict(make_scorer(RuleEngine(like_length)), labelled, Origin(), journal=journal)
    labelled.pairs[0] = dataclasses.replace(labelled.pairs[0], prob_first=0.9)
    with pytest.raises(OutputExistsError, match="was made with pairs"):
        predict(make_scorer(RuleEngine(like_length)), labelled, Origin(), journal=journal, resume=True)


def test_digest_of_the_data_knows_texts_labels_and_order(labelled):
    same = LabelledPairs("other name", pairs=list(labelled.pairs))
    assert same.digest() == labelled.digest()
    assert LabelledPairs(pairs=labelled.pairs[::-1]).digest() != labelled.digest()
    for change in ({"first": "x"}, {"label": "tie"}, {"prob_first": 0.7}, {"subset": "x"}, {"group": "x"}):
        changed = [dataclasses.replace(labelled.pairs[0], **change), *labelled.pairs[1:]]
        assert LabelledPairs(pairs=changed).digest() != labelled.digest(), change


def test_columns_of_numbers_are_numbers(labelled):
    table = predict(make_scorer(RuleEngine(like_length)), labelled, Origin())
    assert table["log_odds_first_in_a"].dtype == np.float64
    assert table["first_index"].dtype == np.int32
