"""The sentences, tables and plots of a report: the numbers by hand, what is missing, and texts that would be markup."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from simulated import make_predictions

from pair_pm.benchmark_rows import REWARD_BENCH
from pair_pm.distraction import EDITS
from pair_pm.evaluation import EvaluationOptions, evaluate
from pair_pm.evaluation_report import Estimate
from pair_pm.labelled_pairs import FIRST, TIE
from pair_pm.predictions import Origin
from pair_pm.report_document import Document, Notes, Section, Table, clean, to_markdown
from pair_pm.report_page import to_page
from pair_pm.report_plots import PLOTS, draw_plots
from pair_pm.report_tables import make_document

FEW = EvaluationOptions("command", resamples=20)
SIDES = {"first": "three good words", "second": "bad word"}


def show(log_odds, options=FEW, other=None, **columns) -> tuple[str, dict[str, str]]:
    """Return the Markdown and the plots of predictions."""
    predictions = make_predictions(np.array(log_odds, dtype=float).reshape(-1, 2), **SIDES | columns)
    report = evaluate(predictions, options, other)
    return to_markdown(make_document(report)), draw_plots(report, predictions)


def row_of(markdown: str, name: str, nth: int = 0) -> list[str]:
    """Return the cells of the n-th table row of a name."""
    found = [line for line in markdown.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in found[nth].strip("|").split("|")]


def test_numbers_of_the_report_stand_in_its_tables():
    # Right, wrong, and twice A: 2 of 3 consistent, 1.5 right; mean log-odds (2 - 2 - 1 + 1 + 1 + 1) / 6 = 1/3.
    text, _ = show([[2, -2], [-1, 1], [1, 1]], subset=["x", "x", "y"])
    assert row_of(text, "all pairs")[1:3] == ["3", "3"]
    assert row_of(text, "all pairs")[3].startswith("50.0% [")
    assert row_of(text, "y")[6] == "1"  # a predicted tie
    position = row_of(text, "all pairs", nth=1)
    assert position[1].startswith("66.7% [")
    assert position[5].startswith("+0.33 [")
    assert "3 pairs of 3 prompts whose label names a winner." in text
    assert "50.0 points less than preferring the longer response (100.0%): nothing here shows" in text
    assert "Of 3 prompts only: the interval holds the truth less often than" in text


def test_estimates_are_written_with_their_intervals_and_reasons():
    notes = Notes()
    assert notes.percent(Estimate(0.7123, 0.68, 0.7434, 9)) == "71.2% [68.0, 74.3]"
    assert notes.points(Estimate(-0.012, -0.03, 0.006, 9)) == "−1.2 [−3.0, +0.6]"
    assert notes.signed(Estimate(0.5, None, None, 9, "one prompt")) == "+0.50"
    assert notes.number(Estimate(None, reason="no row")) == "–"
    assert notes.take() == ["One prompt.", "– no row."]
    assert notes.take() == []
    for prompts in (5, 3, 4):
        notes.percent(Estimate(0.5, 0.4, 0.6, 9, f"of {prompts} prompts only: so rough"))
    assert notes.take() == ["Of 3 to 5 prompts only: so rough."]


def test_what_was_not_asked_for_is_left_out_with_a_sentence():
    text, plots = show(np.tile([2, -2], (30, 1)))
    absent = ("No row is labelled a tie.", "None was fitted; --fit-temperature does.", "Not asked for; --perturb",
              "No row carries shares of votes")  # fmt: skip
    assert [sentence for sentence in absent if sentence not in text] == []
    assert "## Against another model" not in text
    assert "## RewardBench" not in text
    assert plots.keys() == PLOTS.keys()
    assert "labelled a tie" not in plots["probabilities"]
    assert ">as it is<" in plots["reliability"]


@pytest.mark.parametrize("rows", [0, 3])
def test_report_without_a_winner_has_no_plots_and_says_so(rows):
    text, plots = show(np.ones((rows, 2)), label=TIE, prob_chosen=0.5)
    assert plots == {}
    assert "0 pairs of 0 prompts" in text
    assert "No pair has a label that names a winner" in text
    assert "nan" not in text.lower()
    assert row_of(text, "all pairs")[3] == "–"
    assert "– no row to take it from." in text


def test_every_part_that_there_is_is_shown():
    draw = np.random.default_rng(0).normal
    rows = 80
    log_odds = draw(0.5, 1, (rows, 1)) * [1, -1] + draw(0.2, 0.5, (rows, 2))
    labels = [TIE if row % 8 == 7 else FIRST for row in range(rows)]
    pairs = {"label": labels, "prob_chosen": 0.8, "pair_key": [str(n) for n in range(rows)], "label_mass": 0.3}
    edited = {name: [*v, *(v[:7] * len(EDITS))] if isinstance(v, list) else v for name, v in pairs.items()}
    edited["edit"] = [""] * rows + [name for name in EDITS for _ in range(7)]
    other = make_predictions(-log_odds, Origin(model="the other one"), **SIDES | pairs)
    options = EvaluationOptions("command", resamples=20, fit_temperature=True)
    text, plots = show(np.concatenate([log_odds, *[log_odds[:7]] * len(EDITS)]), options, other, **edited)
    assert "## Against another model" in text
    assert "**Against the other one**" in text
    assert all(row_of(text, name)[1] == edit.does for name, edit in EDITS.items())
    assert "The 10 labelled ties" in text
    assert row_of(text, "fitted")[1]
    assert row_of(text, "cross-entropy against votes, nats")[3]
    assert "40 more are in report.json." in text  # of 50 rows with a low label mass, 10 are shown
    assert "labelled a tie" in plots["probabilities"]
    assert ">before<" in plots["reliability"]
    assert "after, temperature" in plots["reliability"]


def test_scores_of_benchmarks_come_first():
    subsets = ["alpacaeval-easy", "donotanswer"]
    text, _ = show([[2, -2], [-1, 1]], subset=subsets, origin=Origin(dataset_format=REWARD_BENCH))
    assert re.findall("^## (.*)", text, re.MULTILINE)[:2] == ["RewardBench", "At a glance"]
    assert row_of(text, "Chat")[1:] == ["100.0%", "1", "5"]
    assert row_of(text, "score: mean of the sections")[1] == "–"
    assert "– no row of alpacaeval-length" in text


def test_text_from_data_is_no_markup_anywhere():
    hostile = "a|b $y$ <script>x</script> [link](http://x) `c` & **d**\n# \x00e"
    text, plots = show([[2, -2], [-1, 1], [1, 1]] * 5, subset=hostile, origin=Origin(hostile, dataset=hostile))
    assert "<script>" not in text.replace("\\<", "")
    assert len(row_of(text.replace("\\|", "/"), "a/b")) == 8
    assert "\n# e" not in text
    assert "](" not in text
    page = to_page(
        Document(hostile, [hostile], [Section(hostile, [hostile, Table(hostile, [hostile], [[hostile]])])]), {}
    )
    assert "<script" not in page
    # The title twice; lead, link, heading and sentence; the table's region, caption, header and cell.
    assert page.count("&lt;script&gt;") == 10
    assert "$y$" in plots["accuracy"]
    ElementTree.fromstring(f'<x xmlns:xlink="x">{plots["accuracy"]}</x>')


def test_same_predictions_give_the_same_plots():
    drawn = [show(np.random.default_rng(1).normal(0, 1, (3000, 2)), subset=["x", "y"] * 1500)[1] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert "2,000 of 3,000 pairs" in drawn[0]["orders"]


def test_many_subsets_are_drawn_as_far_as_they_can_be_read():
    names = [f"subset {number}" for number in range(45)]
    text, plots = show([[2, -2]] * 45, subset=names)
    assert "the 40 largest of 45 subsets" in plots["accuracy"]
    assert all(row_of(text, name) for name in names)


def test_long_texts_and_what_no_page_can_show_are_taken_out():
    assert clean("a\n\tb\x00 \ud800c") == "a b c"
    assert clean("x" * 400) == "x" * 299 + "…"
