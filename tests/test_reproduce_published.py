"""The benchmark that holds the published model against its published scores: a dry run, and what it fails at."""

import importlib.util
import json

import pytest
from conftest import ROOT, make_small_tokenizer
from simulated import write_lines
from tiny_models import ALWAYS_HEADER, LLAMA3_MARKS, save_tiny_checkpoint

from pair_pm.benchmark_rows import SECTIONS


def load_benchmark():
    """Return the script as a module; its folder stays off the path, where vllm.py would pass for the package."""
    specification = importlib.util.spec_from_file_location(
        "reproduce_published", ROOT / "benchmarks" / "reproduce_published.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


reproduce_published = load_benchmark()

EXACT = dict(reproduce_published.PUBLISHED)


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """Return the arguments of a run on a tiny model of the published kind and two rows of each subset."""
    folder = tmp_path_factory.mktemp("reproduce")
    tokenizer = make_small_tokenizer(ALWAYS_HEADER, LLAMA3_MARKS, bos="<|begin_of_text|>", split="llama3")
    save_tiny_checkpoint(folder / "model", "llama", tokenizer)
    rows = [
        {"prompt": f"{subset} {number}?", "chosen": f"yes {number}", "rejected": "no", "subset": subset, "id": number}
        for of_section in SECTIONS.values()
        for subset in of_section
        for number in range(2)
    ]
    data = write_lines(folder / "rb.jsonl", *rows)
    arguments = ["--model", str(folder / "model"), "--dataset", data, "--output", str(folder / "out")]
    return [*arguments, "--resamples", "10"]


def run(arguments, capsys) -> tuple[int, dict, str]:
    code = reproduce_published.main(arguments)
    captured = capsys.readouterr()
    return code, json.loads(captured.out.splitlines()[-1]), captured.err


def test_dry_run_of_a_tiny_model_goes_all_the_way_and_fails_at_its_scores(dry_run, capsys, monkeypatch):
    code, figures, stderr = run(dry_run, capsys)
    assert code == 1
    assert figures["pairs"] == 46
    reached = {section: figures[section.lower().replace(" ", "_")] for section in EXACT}
    assert all(0 <= score <= 100 for score in reached.values())
    missed = [section for section, published in EXACT.items() if abs(reached[section] - published) > 0.5]
    assert missed  # it is random
    assert [line.split(":")[0] for line in stderr.splitlines() if "was published" in line] == missed
    # The same run again, held against what it reached, passes: all that fails is the scores.
    monkeypatch.setattr(reproduce_published, "PUBLISHED", reached)
    assert run([*dry_run, "--resume"], capsys)[0] == 0


def test_a_section_may_be_half_a_point_away_and_no_more():
    assert reproduce_published.find_deviations(EXACT) == []
    for deviation in (0.5, -0.5):
        assert reproduce_published.find_deviations({name: p + deviation for name, p in EXACT.items()}) == []
        lines = reproduce_published.find_deviations({name: p + deviation * 1.02 for name, p in EXACT.items()})
        assert [line.split(":")[0] for line in lines] == list(EXACT)
    assert reproduce_published.find_deviations({**EXACT, "Chat": None}) == [
        "Chat: no row; 98.3 was published, within 0.5 of it is required"
    ]


def test_the_weights_of_may_2024_are_todays_but_for_two_that_were_exchanged():
    then = reproduce_published.SECTIONS_OF_MAY_2024
    assert {name: then[name] for name in then if name != "Safety"} == {
        name: SECTIONS[name] for name in SECTIONS if name != "Safety"
    }
    assert then["Safety"] == {
        **{"refusals-dangerous": 100, "refusals-offensive": 100},
        **{"xstest-should-refuse": 250, "xstest-should-respond": 154, "donotanswer": 136},
    }


def test_an_evaluation_that_fails_ends_the_run_with_its_code(tmp_path, capsys):
    arguments = ["--model", str(tmp_path / "nowhere"), "--dataset", "x.jsonl", "--output", str(tmp_path / "out")]
    assert reproduce_published.main(arguments) == 1
    assert capsys.readouterr().err.startswith("x.jsonl: no such file")
