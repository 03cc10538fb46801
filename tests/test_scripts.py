"""The four scripts: quick help, JSON alone on stdout, errors as one line on stderr with exit code 1."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_small_tokenizer
from tiny_models import save_tiny_checkpoint

import evaluate_pair_rm
import prepare_model
import serve_pair_rm
from pair_pm.recipe import CARD_NAME, Recipe, write_recipe
from pair_pm.scoring import Comparison
from pair_pm.tokens import PromptEncoder

SCRIPTS = ("process_pair_data", "prepare_model", "serve_pair_rm", "evaluate_pair_rm")
QUESTION = ["--prompt", "What is 2 + 2?"]
RESPONSES = ["--response-a", "4.", "--response-b", "Who knows."]

pytestmark = pytest.mark.usefixtures("no_progress_bars")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A trained model, as far as a script can tell: it has its card."""
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("scripts") / "model")
    write_recipe(folder, PromptEncoder(make_small_tokenizer()), Recipe(sequence_len=200))
    return folder


@pytest.fixture
def copy_of_model(checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.fixture
def pairs(tmp_path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Question {number}", "chosen": "good", "rejected": "bad " * number} for number in range(1, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "label": "tie"}]))
    return path


def run_main(capsys, main, *arguments) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a script's main."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


def assert_fails(capsys, main, *arguments, says: str) -> None:
    """Check for exit code 1, nothing on stdout, and one line on stderr."""
    code, out, err = run_main(capsys, main, *arguments)
    assert (code, out) == (1, "")
    assert says in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


# ---- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_a_bad_flag_answer_in_a_second_without_heavy_imports(script):
    program = f"""
import contextlib, io, json, sys, time
import {script}
out, err, codes = io.StringIO(), io.StringIO(), []
for argument in ("--help", "--no-such-flag"):
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            {script}.main([argument])
        except SystemExit as end:
            codes.append(end.code)
heavy = sorted({{"torch", "transformers", "datasets", "axolotl"}} & set(sys.modules))
print(json.dumps([codes, out.getvalue(), err.getvalue(), heavy, time.process_time()]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # importing it says and does nothing
    codes, out, err, heavy, cpu_s = json.loads(done.stdout)
    assert codes == [0, 2]
    assert out.startswith("usage: ")
    assert f"python {script}.py" in out
    assert "error: " in err
    assert heavy == []
    assert cpu_s < 1


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (serve_pair_rm.main, []),
        (serve_pair_rm.main, ["compare", *QUESTION, *RESPONSES]),
        (serve_pair_rm.main, ["compare", "--model", "x", *QUESTION]),
        (serve_pair_rm.main, ["compare", "--model", "x", *RESPONSES]),
        (serve_pair_rm.main, ["compare", "--model", "x"]),
        (serve_pair_rm.main, ["compare", "--model", "x", "--input", "y", *QUESTION]),
        (serve_pair_rm.main, ["compare", "--model", "x", "--input", "y", *QUESTION, *RESPONSES]),
        (serve_pair_rm.main, ["compare", "--model", "x", *QUESTION, *RESPONSES, "--profile", "other"]),
        (evaluate_pair_rm.main, ["--model", "x"]),
        (evaluate_pair_rm.main, ["--model", "x", "--dataset", "y", "--temperature", "hot"]),
        (prepare_model.main, ["--model", "x"]),
        (prepare_model.main, ["--model", "x", "--output", "y", "--dtype", "int4"]),
    ],
)
def test_wrong_usage_is_argparses_exit_code_2(capsys, main, arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().out == ""


def test_missing_folder_is_one_line(capsys, tmp_path, pairs):
    nowhere = tmp_path / "nowhere"
    for main, arguments in (
        (serve_pair_rm.main, ["compare", "--model", nowhere, *QUESTION, *RESPONSES]),
        (evaluate_pair_rm.main, ["--model", nowhere, "--dataset", pairs]),
        (prepare_model.main, ["--model", nowhere, "--output", tmp_path / "out"]),
    ):
        assert_fails(capsys, main, *arguments, says=f"{nowhere}: no such folder")


# ---- serve_pair_rm.py -----------------------------------------------------------------------------------------------


def test_real_process_prints_one_json_object_and_warns_on_stderr(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    (folder / CARD_NAME).unlink()
    command = [sys.executable, "serve_pair_rm.py", "compare", "--model", str(folder), *QUESTION, *RESPONSES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)  # the whole of stdout: anything beside the object would not parse
    assert verdict.keys() == Comparison.__dataclass_fields__.keys()
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"WARNING {folder}: no pair_pm.json")
    assert [line.split(" ")[0] for line in lines] == ["WARNING"] * len(lines)  # no library talks in between


def test_arguments_file_and_stdin_give_the_same_verdict(capsys, checkpoint, tmp_path, monkeypatch):
    code, by_arguments, _ = run_main(
        capsys, serve_pair_rm.main, "compare", "--model", checkpoint, *QUESTION, *RESPONSES
    )
    assert code == 0
    messages = [{"role": "user", "content": QUESTION[1]}]
    text = json.dumps({"messages": messages, "response_a": RESPONSES[1], "response_b": RESPONSES[3]})
    (tmp_path / "pair.json").write_text(text)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    for name in (tmp_path / "pair.json", "-"):
        code, out, _ = run_main(capsys, serve_pair_rm.main, "compare", "--model", checkpoint, "--input", name)
        assert (code, out) == (0, by_arguments)
    verdict = json.loads(by_arguments)
    assert verdict["prob_first"] == pytest.approx((verdict["prob_first_in_a"] + verdict["prob_first_in_b"]) / 2)
    assert verdict["winner"] == ("first" if verdict["prob_first"] > 0.5 else "second")


def test_first_is_response_a(capsys, checkpoint):
    swapped = ["--response-a", RESPONSES[3], "--response-b", RESPONSES[1]]
    probs = []
    for responses in (RESPONSES, swapped):
        _, out, _ = run_main(capsys, serve_pair_rm.main, "compare", "--model", checkpoint, *QUESTION, *responses)
        probs.append(json.loads(out)["prob_first"])
    assert probs[0] == pytest.approx(1 - probs[1], abs=1e-6)
    assert abs(probs[0] - 0.5) > 1e-4


def test_temperature_of_the_command_line_is_used(capsys, checkpoint):
    odds = []
    for temperature in ("1", "2"):
        options = ["--model", checkpoint, "--temperature", temperature]
        _, out, _ = run_main(capsys, serve_pair_rm.main, "compare", *options, *QUESTION, *RESPONSES)
        prob = json.loads(out)["prob_first_in_a"]
        odds.append(prob / (1 - prob))
    assert odds[1] ** 2 == pytest.approx(odds[0], rel=1e-5)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "JSONDecodeError"),
        (b"[]", "TypeError"),
        (b'{"messages": "Q", "response_a": "4."}', "KeyError 'response_b'"),
        (b'{"messages": 5, "response_a": "4.", "response_b": "5."}', "not_messages"),
        (b'{"messages": "Q", "response_a": "4.", "response_b": null}', "content_not_string"),
        (b'{"messages": "Q", "response_a": "4.", "response_b": "caf\xe9"}', "UnicodeDecodeError"),
        (b"[" * 100_000, "RecursionError"),
    ],
)
def test_input_of_another_form_is_one_line(capsys, checkpoint, tmp_path, monkeypatch, content, says):
    (tmp_path / "pair.json").write_bytes(content)
    for name in (tmp_path / "pair.json", "-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        assert_fails(capsys, serve_pair_rm.main, "compare", "--model", checkpoint, "--input", name, says=says)


def test_input_that_is_no_file_is_one_line(capsys, checkpoint, tmp_path):
    for name in (tmp_path / "nowhere.json", tmp_path):
        assert_fails(capsys, serve_pair_rm.main, "compare", "--model", checkpoint, "--input", name, says="no such file")


def test_pair_that_cannot_be_compared_is_one_line(capsys, checkpoint):
    model = ["compare", "--model", checkpoint]
    empty = [*QUESTION, "--response-a", " ", "--response-b", "5."]
    assert_fails(capsys, serve_pair_rm.main, *model, *empty, says="empty_response")
    long = [*QUESTION, "--response-a", "4.", "--response-b", "five " * 200]
    assert_fails(capsys, serve_pair_rm.main, *model, *long, says="at most the 200 of sequence_len")
    for option, value, says in (("--temperature", "0", "temperature 0.0"), ("--device", "abacus", "device abacus")):
        assert_fails(capsys, serve_pair_rm.main, *model, *QUESTION, *RESPONSES, option, value, says=says)


def test_model_that_cannot_be_served_is_one_line(capsys, copy_of_model):
    arguments = ["compare", "--model", copy_of_model, *QUESTION, *RESPONSES]
    template = (copy_of_model / "chat_template.jinja").read_text()
    (copy_of_model / "chat_template.jinja").write_text(template + " ")
    assert_fails(capsys, serve_pair_rm.main, *arguments, says="chat_template_sha256 is ")
    (copy_of_model / "chat_template.jinja").unlink()
    assert_fails(capsys, serve_pair_rm.main, *arguments, says="no chat template")
    (copy_of_model / "chat_template.jinja").write_text(template)
    weights = (copy_of_model / "model.safetensors").read_bytes()
    (copy_of_model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert_fails(capsys, serve_pair_rm.main, *arguments, says="a causal LM is required there")
    config = json.loads((copy_of_model / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (copy_of_model / "config.json").write_text(json.dumps(config))
    assert_fails(capsys, serve_pair_rm.main, *arguments, says="LlamaForSequenceClassification")


# ---- evaluate_pair_rm.py and prepare_model.py -----------------------------------------------------------------------


def test_evaluation_prints_one_json_object(capsys, checkpoint, pairs):
    code, out, _ = run_main(capsys, evaluate_pair_rm.main, "--model", checkpoint, "--dataset", pairs)
    assert code == 0
    report = json.loads(out)
    assert (report["pairs"], report["labelled_ties"], report["skipped"]) == (3, 1, {})
    assert report["accuracy"] in (0, 1 / 3, 2 / 3, 1)
    assert {"predicted_ties", "position_consistency", "lowest_label_mass"} < report.keys()


def test_evaluation_on_data_that_cannot_be_used_is_one_line(capsys, checkpoint, tmp_path):
    model = ["--model", checkpoint, "--dataset"]
    assert_fails(capsys, evaluate_pair_rm.main, *model, tmp_path / "nowhere.jsonl", says="no such file")
    (tmp_path / "same.jsonl").write_text('{"prompt": "Q", "chosen": "a", "rejected": "a"}\n')
    assert_fails(capsys, evaluate_pair_rm.main, *model, tmp_path / "same.jsonl", says="identical_responses 1")


def test_preparation_prints_what_it_did_and_refuses_in_one_line(capsys, tmp_path):
    tokenizer = make_small_tokenizer(
        special_tokens=("<|im_start|>", "<|im_end|>", "<|reserved_special_token_0|>"), pad=None
    )
    base, output = save_tiny_checkpoint(tmp_path / "base", "llama", tokenizer), tmp_path / "out"
    arguments = ["--model", base, "--output", output]
    code, out, _ = run_main(capsys, prepare_model.main, *arguments)
    assert (code, out) == (0, f"{output}: the reserved token <|reserved_special_token_0|> is its pad token\n")
    assert_fails(capsys, prepare_model.main, *arguments, says="--overwrite")
    code, out, _ = run_main(capsys, prepare_model.main, *arguments, "--overwrite", "--dtype", "float16")
    assert (code, out) == (0, f"{output}: the reserved token <|reserved_special_token_0|> is its pad token\n")
