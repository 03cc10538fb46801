"""The web page of a report, in a real headless Chromium."""

import numpy as np
import pytest
from headless_browser import open_browser
from simulated import make_predictions

from pair_pm.evaluation import EvaluationOptions, evaluate
from pair_pm.labelled_pairs import FIRST, TIE
from pair_pm.predictions import Origin
from pair_pm.report_page import to_page
from pair_pm.report_plots import PLOTS, draw_plots
from pair_pm.report_tables import make_document

ROWS = 400
COUNTS = ("(pairs)", "(characters)", "(count)")
HOSTILE = '<img src="http://127.0.0.1:9/a"><script>console.error("ran")</script> $x_1$ | `b` {style}'


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A report with every plot, on data whose texts are markup."""
    draw = np.random.default_rng(0).normal
    log_odds = draw(1, 1.5, (ROWS, 1)) * [1, -1] + draw(0.3, 0.5, (ROWS, 2))
    predictions = make_predictions(
        log_odds,
        Origin(model=HOSTILE, dataset=HOSTILE, skipped={HOSTILE: 1}, options={HOSTILE: HOSTILE}),
        label=[TIE if row % 10 == 0 else FIRST for row in range(ROWS)],
        subset=[(HOSTILE, "学", "")[row % 3] for row in range(ROWS)],
        first=["w" * (row % 37) for row in range(ROWS)],
        second=["w" * (row % 23) for row in range(ROWS)],
        prompt=HOSTILE,
        label_mass=np.where(np.arange(ROWS) < 3, 0.2, 0.9),
    )
    report = evaluate(predictions, EvaluationOptions(HOSTILE, resamples=50, fit_temperature=True))
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(to_page(make_document(report), draw_plots(report, predictions)), "utf-8")
    return path


@pytest.fixture(scope="module")
def open_page(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as open_page:
        yield open_page


def test_page_opens_without_a_complaint_or_a_request_and_shows_every_plot_in_light_and_dark(open_page, page_file):
    page = open_page(page_file)
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.evaluate("document.querySelectorAll('script, img, iframe, object').length") == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    used = page.evaluate("[...document.querySelectorAll('use')].map(u => u.getAttribute('xlink:href').slice(1))")
    assert set(used) <= set(ids)
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        for name in PLOTS:
            seen = page.photograph(f"#figure-{name} svg").astype(int)
            paper = seen[0, 0]
            assert (paper.mean() > 128) == (scheme == "light")
            assert min(seen.shape[:2]) > 200
            # Axes and texts are grey; blue and orange is what is drawn from data.
            surplus_of_blue = seen[..., 2] - seen[..., 0]
            assert (surplus_of_blue > 60).mean() > 0.002, (name, scheme)
            assert (surplus_of_blue < -60).mean() > 0.001, (name, scheme)


def test_plots_say_what_they_show_and_in_which_units(open_page, page_file):
    page = open_page(page_file)
    texts = page.evaluate("Object.fromEntries([...document.querySelectorAll('figure')].map("
                          "f => [f.id, [...f.querySelectorAll('svg text')].map(t => t.textContent)]))")  # fmt: skip
    units = {"accuracy": 2, "orders": 2, "reliability": 3, "probabilities": 2, "length": 2}  # of two panels one y axis
    assert units.keys() == PLOTS.keys()
    for name, axes in units.items():
        labelled = [text for text in texts[f"figure-{name}"] if text.endswith(("(%)", "(% of pairs)", *COUNTS))]
        assert len(labelled) == axes, (name, labelled)
    spoken = page.evaluate("[...document.querySelectorAll('svg')].map(s => s.getAttribute('aria-label').length)")
    assert min(spoken) > 40
    headings = page.evaluate("[...document.querySelectorAll('h1, h2')].map(h => h.tagName)")
    assert headings[0] == "H1"
    assert set(headings[1:]) == {"H2"}


def test_page_stays_within_a_narrow_window_and_its_tables_within_a_sheet_of_paper(open_page, page_file):
    page = open_page(page_file)
    page.resize(390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.resize(718)  # A4 without margins of a centimetre
    page.print()
    ends = page.evaluate("[...document.querySelectorAll('table')].map(t => t.getBoundingClientRect().right)")
    assert max(ends) <= 718


def test_browser_would_tell_of_an_error_and_of_a_request(open_page, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://127.0.0.1:9/a.png"><script>console.error("said"); nothing.here</script>')
    page = open_page(bad)
    assert "http://127.0.0.1:9/a.png" in page.requests
    assert any("said" in complaint for complaint in page.complaints)
    assert len(page.complaints) >= 2
