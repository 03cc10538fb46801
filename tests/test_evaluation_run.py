"""`evaluate_pair_rm.py` with a model of a few thousand parameters: files, resuming, saving, two models."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import make_small_tokenizer
from simulated import make_row, write_lines
from tiny_models import save_tiny_checkpoint

import evaluate_pair_rm
from pair_pm.errors import ConfigError
from pair_pm.evaluation_run import Judge, check_savable
from pair_pm.predictions import read_predictions
from pair_pm.recipe import CARD_NAME, Recipe, read_recipe, write_recipe
from pair_pm.scoring import PairScorer
from pair_pm.tokens import PromptEncoder

FILES = {"report.json", "report.md", "report.html", "predictions.parquet"}


pytestmark = pytest.mark.usefixtures("no_progress_bars")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Two trained models, as far as a script can tell: they have their cards."""
    folder = tmp_path_factory.mktemp("models")
    models = {name: save_tiny_checkpoint(folder / name, seed=seed) for name, seed in (("one", 0), ("other", 1))}
    for model in models.values():
        write_recipe(model, PromptEncoder(make_small_tokenizer()), Recipe(sequence_len=200, temperature=1.5))
    return models


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    rows = [
        make_row(f"Question {n}", "good " * (n % 5 + 1), "bad " * (n % 3 + 1), id=n, subset="xy"[n % 2])
        for n in range(40)
    ]
    rows += [make_row(f"Question {n}", "one", "two", label="tie") for n in range(4)]
    return write_lines(tmp_path_factory.mktemp("data") / "pairs.jsonl", *rows)


def run(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    code = evaluate_pair_rm.main([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


def read_report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_report_of_a_model_says_what_it_was_made_from(capsys, models, data, tmp_path):
    code, out, _ = run(capsys, "--model", models["one"], "--dataset", data, "--output", tmp_path / "r", "--seed", 3)
    assert code == 0
    report = read_report(tmp_path / "r")
    assert json.loads(out) == report["summary"]
    assert {path.name for path in (tmp_path / "r").iterdir()} == FILES
    assert report["command"].startswith("python evaluate_pair_rm.py --model ")
    assert report["seed"] == 3
    origin, card = report["origin"], json.loads((models["one"] / CARD_NAME).read_text())
    assert (origin["model"], origin["dataset"]) == (str(models["one"]), data)
    assert (origin["card_digest"], origin["temperature"]) == (card["digest"], 1.5)
    assert len(origin["dataset_digest"]) == 32
    assert {"torch", "transformers"} <= origin["versions"].keys()
    assert (report["overall"]["rows"], report["ties"]["rows"], list(report["subsets"])) == (40, 4, ["", "x", "y"])
    assert report["subsets"][""]["accuracy"]["reason"] == "no row to take it from"


def test_predictions_make_the_same_report_without_the_model(capsys, models, data, tmp_path):
    options = ["--fit-temperature", "--seed", 1, "--resamples", 100]
    made = tmp_path / "made"
    run(capsys, "--model", models["one"], "--dataset", data, "--perturb", "--against", models["other"], "--output",
        made, *options)  # fmt: skip
    assert {path.name for path in made.iterdir()} == {*FILES, "against.parquet"}
    code, out, _ = run(capsys, "--from-predictions", made / "predictions.parquet", "--against",
        made / "against.parquet", "--output", tmp_path / "again", *options)  # fmt: skip
    assert code == 0
    pages = [(folder / "report.html").read_text("utf-8") for folder in (made, tmp_path / "again")]
    assert len({re.sub('<tr><th scope="row">command.*', "", page) for page in pages}) == 1
    one, again = read_report(made), read_report(tmp_path / "again")
    assert one.pop("command") != again.pop("command")
    assert one == again
    assert json.loads(out) == one["summary"]
    assert len(one["distraction"]) == 5
    assert one["difference"]["model"] == str(models["other"])
    assert one["temperature_fit"]["fitted_on"] + one["temperature_fit"]["judged_on"] == 40


def test_without_an_output_the_summary_is_all(capsys, models, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "--model", models["one"], "--dataset", data, "--resamples", 50)
    assert (code, json.loads(out)["pairs"], list(tmp_path.iterdir())) == (0, 40, [])


def test_interrupted_run_resumes_to_the_same_files_and_a_finished_one_is_done(
    capsys, models, data, tmp_path, monkeypatch
):
    command = ["--model", models["one"], "--dataset", data, "--against", models["other"], "--resamples", 50]
    monkeypatch.setattr("pair_pm.prediction_run.ROWS_A_BLOCK", 16)
    run(capsys, *command, "--output", tmp_path / "whole")
    compared, compare_each = [], PairScorer.compare_each

    def stop_early(scorer, items):
        if len(compared) == 4:  # in the second block of the other model
            raise KeyboardInterrupt
        compared.append(len(items))
        return compare_each(scorer, items)

    monkeypatch.setattr(PairScorer, "compare_each", stop_early)
    command += ["--output", tmp_path / "r"]
    code, _, err = run(capsys, *command)
    assert code == 130
    assert err.splitlines()[-1].endswith("--resume")
    assert not (tmp_path / "r" / "report.json").exists()

    def count(scorer, items):
        compared.append(len(items))
        return compare_each(scorer, items)

    monkeypatch.setattr(PairScorer, "compare_each", count)
    code, _, err = run(capsys, *command)
    assert code == 1
    assert "--resume is required" in err
    compared.clear()
    assert run(capsys, *command, "--resume")[0] == 0
    assert len(compared) == 2  # of three blocks of the other model, and none of the first
    for name in ("predictions.parquet", "against.parquet"):
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    one, other = read_report(tmp_path / "whole"), read_report(tmp_path / "r")
    assert one.pop("command") != other.pop("command")
    assert one == other
    assert {path.name for path in (tmp_path / "r").iterdir()} == {*FILES, "against.parquet"}
    compared.clear()
    code, out, err = run(capsys, *command, "--resume")
    assert (code, compared, json.loads(out)) == (0, [], one["summary"])
    assert "was finished already" in err


def test_what_is_there_is_not_replaced_unless_asked_to(capsys, models, data, tmp_path):
    command = ["--model", models["one"], "--dataset", data, "--output", tmp_path, "--resamples", 20]
    assert run(capsys, *command)[0] == 0
    code, out, err = run(capsys, *command)
    assert (code, out) == (1, "")
    assert "is there already" in err
    assert run(capsys, *command, "--seed", 1, "--resume")[0] == 1  # another command than the one that is finished
    (tmp_path / ".predictions.parquet.part").write_text("what another run left")
    assert run(capsys, *command, "--seed", 1, "--overwrite")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert read_report(tmp_path)["seed"] == 1


def test_saved_temperature_and_offset_are_used_from_then_on(capsys, tmp_path):
    # An untrained model is no better than chance on any labels but its own, four of five of which it gets right here;
    # this one hardly prefers a slot.
    model = save_tiny_checkpoint(tmp_path / "model", seed=7)
    write_recipe(model, PromptEncoder(make_small_tokenizer()), Recipe(temperature=50.0))
    scorer = PairScorer.from_pretrained(str(model), temperature=1.0)
    rows = []
    for n in range(200):
        sides = [f"answer {n * 7 % 31}", f"other {n * 5 % 29} words"]
        verdict = scorer.compare(f"Question {n}", *sides)
        good, bad = sides if (verdict.prob_first > 0.5) == (n % 5 > 0) else sides[::-1]
        rows.append(make_row(f"Question {n}", good, bad))
    labelled = write_lines(tmp_path / "own.jsonl", *rows)
    command = ["--model", model, "--dataset", labelled, "--output", tmp_path / "r", "--fit-temperature", "--save"]
    code, _, err = run(capsys, *command, "--resamples", 20)
    assert code == 0, err
    fit = read_report(tmp_path / "r")["temperature_fit"]
    assert fit["saved_to"] == str(model / CARD_NAME)
    assert fit["nll_change"]["value"] < 0
    recipe = read_recipe(model / CARD_NAME, PromptEncoder(make_small_tokenizer()))
    assert (recipe.temperature, recipe.order_offset) == (fit["temperature"], fit["order_offset"])
    table = read_predictions(tmp_path / "r" / "predictions.parquet")
    fresh = PairScorer.from_pretrained(str(model))
    item = (f"Question {0}", rows[0]["chosen"][-1]["content"], rows[0]["rejected"][-1]["content"])
    raw = table["log_odds_first_in_a"][0]
    assert fresh.compare(*item).log_odds_of_a[0] == pytest.approx(raw / fit["temperature"], rel=1e-4)
    [single] = fresh.compare_in_order([item])
    assert single.log_odds_of_a == pytest.approx((raw - fit["order_offset"]) / fit["temperature"], rel=1e-4)
    # The card has changed, so these predictions no longer say what is in use.
    code, _, err = run(capsys, "--from-predictions", tmp_path / "r" / "predictions.parquet", "--model", model,
        "--fit-temperature", "--save", "--resamples", 20)  # fmt: skip
    assert code == 1
    assert "compare anew" in err


def test_fit_that_cannot_be_saved_leaves_the_report_and_says_why(capsys, models, tmp_path):
    # One prompt cannot be divided into one to fit on and one to judge on.
    rows = [make_row("Q", f"one {n}", "two") for n in range(5)]
    command = ["--model", models["one"], "--dataset", write_lines(tmp_path / "x.jsonl", *rows), "--output",
               tmp_path / "r", "--fit-temperature", "--save", "--resamples", 20]  # fmt: skip
    code, out, err = run(capsys, *command)
    assert code == 1
    assert "pair_pm.json: not written: no row to fit it on" in err
    assert json.loads(out) == read_report(tmp_path / "r")["summary"]
    assert read_report(tmp_path / "r")["temperature_fit"]["saved_to"] is None


def test_model_without_a_card_is_refused_before_anything_is_compared(capsys, models, data, tmp_path):
    model = Path(shutil.copytree(models["one"], tmp_path / "model"))
    (model / CARD_NAME).unlink()
    code, out, err = run(capsys, "--model", model, "--dataset", data, "--fit-temperature", "--save")
    assert (code, out) == (1, "")
    assert "no pair_pm.json" in err


def test_card_is_the_adapters_where_it_has_one(tmp_path):
    def choose(adapter: str | None) -> Judge:
        return Judge(str(tmp_path / "model"), adapter and str(tmp_path / adapter), "native", {}, load=None)

    for name in ("model", "with_card", "without_card"):
        (tmp_path / name).mkdir()
    for name in ("model", "with_card"):
        write_recipe(tmp_path / name, PromptEncoder(make_small_tokenizer()), Recipe())
    assert choose("with_card").find_card() == tmp_path / "with_card" / CARD_NAME
    assert choose("without_card").find_card() == choose(None).find_card() == tmp_path / "model" / CARD_NAME
    check_savable(choose("without_card"))
    (tmp_path / "model" / CARD_NAME).unlink()
    assert choose(None).read_card_digest() is None
    with pytest.raises(ConfigError, match=r"no pair_pm\.json in a folder on this machine"):
        check_savable(choose("without_card"))


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "x"],
        ["--dataset", "x"],
        ["--from-predictions", "x", "--dataset", "y"],
        ["--from-predictions", "x", "--perturb"],
        ["--from-predictions", "x", "--against", "folder"],
        ["--model", "x", "--dataset", "y", "--save"],
        ["--from-predictions", "x", "--fit-temperature", "--save"],
        ["--model", "x", "--dataset", "y", "--resume"],
        ["--model", "x", "--dataset", "y", "--output", "z", "--resume", "--overwrite"],
        ["--model", "x", "--dataset", "y", "--resamples", "-1"],
    ],
)
def test_arguments_that_do_not_go_together_are_refused(words, capsys):
    with pytest.raises(SystemExit) as refused:
        evaluate_pair_rm.parse_arguments(words)
    assert refused.value.code == 2
    assert capsys.readouterr().err
