"""The command line: what it answers, how it fails, and what an interrupted run leaves."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import process_pair_data
from pair_pm.preference_formats import PARSERS

ROOT = Path(process_pair_data.__file__).parent


def make_row(number):
    question = {"role": "user", "content": f"Question {number}?"}
    return {
        side: [question, {"role": "assistant", "content": f"{side} answer"}] for side in ("chosen", "rejected")
    }  # fmt: skip


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "input.jsonl"
    path.write_text("".join(json.dumps(make_row(number)) + "\n" for number in range(50)))
    return path


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "process_pair_data.py"), *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def run(*arguments, **options):
    """Return the exit code, stdout and stderr of the script in a process of its own."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--no-such-flag"], 2), ([], 2)])
def test_help_and_a_bad_flag_answer_in_under_a_second(arguments, code):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(*arguments)[0] == code
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, because another test may have the processor.
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 1


def test_parsing_arguments_imports_nothing_heavy():
    code = (
        "import sys, process_pair_data\n"
        "try: process_pair_data.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stderr == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-length", "10"], "--max-length counts tokens: it needs --tokenizer"),
        (["--num-proc", "0"], "--num-proc must be at least 1"),
        (["--eval-fraction", "1"], "1 is not a share from 0 to under 1"),
        (["--eval-fraction", "-0.1"], "-0.1 is not a share from 0 to under 1"),
        (["--eval-fraction", "nan"], "nan is not a share from 0 to under 1"),
        (["--margin-columns", "a"], "'a' is not two column names, A,B"),
        (["--seed", str(2**63)], "does not fit into 64 bits"),
        (["--ties", "maybe"], "invalid choice: 'maybe'"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        process_pair_data.main(["--dataset", "x.jsonl", "--output", "y.jsonl", *arguments])
    assert message in capsys.readouterr().err


def test_every_option_reaches_the_conversion(tmp_path, source, capsys):
    output = tmp_path / "x.jsonl"
    arguments = ["--dataset", str(source), "--output", str(output), "--eval-fraction", "0.3", "--both-orders"]
    arguments += ["--ties", "keep", "--seed", "-7", "--rejects", str(tmp_path / "rejects.jsonl")]
    assert process_pair_data.main(arguments) == 0
    assert f"{source} (standard format): 50 rows read" in capsys.readouterr().out
    summary = json.loads((tmp_path / "x.summary.json").read_text())
    options = summary["options"]
    assert (options["eval_fraction"], options["both_orders"], options["ties"]) == (0.3, True, "keep")
    assert (options["seed"], options["keep_rows"]) == (-7, True)
    assert summary["command"] == " ".join(["python process_pair_data.py", *arguments])
    assert (tmp_path / "rejects.jsonl").read_bytes() == b""


def test_margins_are_read_from_the_named_columns(tmp_path, source, capsys):
    source.write_text("".join(json.dumps({**make_row(n), "good": n, "bad": 1}) + "\n" for n in range(5)))
    arguments = ["--dataset", str(source), "--output", str(tmp_path / "x.jsonl")]
    assert process_pair_data.main([*arguments, "--min-margin", "2", "--margin-columns", "good,bad"]) == 0
    assert re.search(r"dropped +small_margin +3\n", capsys.readouterr().out)


def test_importing_the_script_only_defines_things():
    before = signal.getsignal(signal.SIGTERM)
    code = "import signal; b = signal.getsignal(15); import process_pair_data; assert signal.getsignal(15) == b"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True).returncode == 0
    assert signal.getsignal(signal.SIGTERM) == before


# ---- errors ---------------------------------------------------------------------------------------------------------


def assert_one_line(capsys, arguments, start):
    assert process_pair_data.main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(start)
    assert captured.err.count("\n") == 1


def test_an_unreachable_hub_is_one_line_on_stderr(tmp_path, capsys):
    for name in ("hendrydong/preference_700K", "RLHFlow/HH-RLHF-Helpful-standard@main:train", "no_such_set"):
        arguments = ["--dataset", name, "--output", tmp_path / "x.jsonl"]
        assert_one_line(capsys, arguments, f"{name}: the hub did not give split 'train': ")
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_one_line_on_stderr(tmp_path, capsys):
    arguments = ["--dataset", tmp_path / "no.jsonl", "--output", tmp_path / "x.jsonl"]
    assert_one_line(capsys, arguments, f"{tmp_path}/no.jsonl: no such file or folder")


def test_an_output_that_cannot_be_written_is_one_line_on_stderr(tmp_path, source, capsys):
    assert_one_line(capsys, ["--dataset", source, "--output", source / "below" / "x.jsonl"], "[Errno ")


def test_an_unknown_table_lists_its_columns_and_the_accepted_formats(tmp_path, source, capsys):
    source.write_text('{"question": "Q", "answer": "A"}\n')
    assert process_pair_data.main(["--dataset", str(source), "--output", str(tmp_path / "x.jsonl")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{source}: has the columns question, answer; accepted formats are\n  standard ")
    assert error.count("\n") == 1 + len(PARSERS)  # a line for each format


def test_strict_names_file_and_line(tmp_path, source, capsys):
    with source.open("a") as file:
        file.write('{"chosen": 1}\n')
    arguments = ["--dataset", source, "--output", tmp_path / "x.jsonl", "--strict", "--num-proc", "2"]
    assert_one_line(capsys, arguments, f"{source}:51: not_messages: chosen is int")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input.jsonl"]


def test_an_unreachable_hub_spoils_an_upload_but_not_the_output(tmp_path, source, capsys):
    output = tmp_path / "x.jsonl"
    assert process_pair_data.main(["--dataset", str(source), "--output", str(output), "--push-to-hub", "me/x"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]  # after the bars of `datasets`
    assert error.startswith("me/x: the hub did not take the data set: ")
    assert error.endswith(f"; it is whole in {output}")
    assert len(output.read_text().splitlines()) == 50


def test_odd_names_of_sources_can_be_printed(tmp_path, source):
    with source.open("a") as file:
        file.write(
            json.dumps({**make_row(50), "source": "\ud83d"}) + "\n" + json.dumps({**make_row(51), "source": "é"})
        )
    code, out, err = run("--dataset", source, "--output", tmp_path / "x.jsonl")
    assert (code, err) == (0, "")
    assert "lone_surrogate" in out


# ---- interruptions --------------------------------------------------------------------------------------------------


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(holds, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_an_earlier_output_whole_and_no_process(tmp_path, source, sent):
    output = tmp_path / "x.jsonl"
    assert process_pair_data.main(["--dataset", str(source), "--output", str(output)]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    large = tmp_path / "input.jsonl"
    large.write_text("".join(json.dumps(make_row(number)) + "\n" for number in range(100_000)))
    process = start("--dataset", large, "--output", output, "--num-proc", "2")
    wait_until(lambda: any(path.stat().st_size > 100_000 for path in tmp_path.glob(".x.jsonl.*/spool")))
    children = children_of(process.pid)
    os.kill(process.pid, sent)
    _, error = process.communicate(timeout=20)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[sent]
    assert "Traceback" not in error
    assert len(children) >= 2
    wait_until(lambda: not any(map(is_alive, children)))
    for name in ("x.jsonl", "x.summary.json"):
        assert (tmp_path / name).read_bytes() == before[name]
    visible = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert visible == set(before)
    if sent != signal.SIGKILL:
        assert not list(tmp_path.glob(".x.jsonl.*"))
