"""What `python -m pair_pm.training check` says before a run: in process but for one test, on a tiny model and data."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml
from conftest import LLAMA3_TEMPLATE, ROOT, make_small_tokenizer
from tiny_models import LLAMA3_MARKS, save_tiny_checkpoint
from workshop import CPU_RANKS, PLUGIN, Workshop

from pair_pm.old_config import replace_old_lines

LONG_PAIRS, PAIRS = 3, 50
SHORT = 128  # tokens: between the short rows and the long ones


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, axolotl_runs) -> Workshop:
    """50 pairs in both orders, so 100 rows, of which 6 are long; 13 held-out pairs."""
    folder = tmp_path_factory.mktemp("check")
    rows = []
    for number in range(PAIRS):
        question = {"role": "user", "content": f"Say {number} kindly."}
        answers = {"chosen": f"Gladly: {number}.", "rejected": "No, " + "never " * (99 if number < LONG_PAIRS else 1)}
        rows.append({side: [question, {"role": "assistant", "content": text}] for side, text in answers.items()})
    (folder / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Workshop(folder, axolotl_runs, folder / "preferences.jsonl", max_length=4096)


@pytest.fixture(scope="module", autouse=True)
def _axolotl_in_process(tmp_path_factory):
    """Keep axolotl's settings from other tests; and save in this process, which else starts two interpreters a time."""
    logger_class, handlers = logging.getLoggerClass(), logging.root.handlers[:]
    import axolotl.cli  # noqa: F401
    import datasets

    logging.setLoggerClass(logger_class)
    logging.captureWarnings(False)
    logging.root.handlers[:] = handlers
    logging.getLogger("axolotl").handlers.clear()
    save = datasets.Dataset.save_to_disk
    with (
        mock.patch.dict(os.environ, {"AXOLOTL_TEE_STDOUT": "0"}),
        mock.patch.object(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache")),
        mock.patch.object(datasets.Dataset, "save_to_disk", lambda rows, path, **_: save(rows, path)),
    ):
        yield


@pytest.fixture
def check(workshop, capsys):
    """Return a function that checks a config of the workshop, and gives the exit code, stdout and stderr."""
    from axolotl.utils.tee import close_debug_log

    from pair_pm.training import main

    def check(name: str, *words: str, **overrides) -> tuple[int, str, str]:
        prepared = str(workshop.folder / "prepared" / name)
        defaults = {"dataset_num_proc": 0, "dataset_prepared_path": prepared}
        path = workshop.write_config(name, **{**defaults, **overrides})
        close_debug_log()
        capsys.readouterr()
        code = main(["check", str(path), *words])
        return code, *capsys.readouterr()

    return check


def stanza(path, kind: str = "pair_rows") -> dict:
    return {"path": str(path), "ds_type": "json", "type": f"pair_pm.{kind}"}


def write_rows(path: Path, *rows: tuple) -> Path:
    """Write A/B rows, each of a question, two responses and the target."""
    from pair_pm.prompt import render_context, render_prompt

    with path.open("w", encoding="utf-8") as file:
        for question, one, other, prob_a in rows:
            context = render_context([{"role": "user", "content": question}])
            answer = "A" if prob_a >= 0.5 else "B"
            contents = {"user": render_prompt(context, one, other), "assistant": answer}
            messages = [{"role": role, "content": content} for role, content in contents.items()]
            file.write(json.dumps({"messages": messages, "prob_a": prob_a}) + "\n")
    return path


def numbers(out: str, name: str) -> list[str]:
    """Return what stands in a row of the table."""
    (line,) = (line for line in out.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def warnings(out: str) -> list[str]:
    return [line.removeprefix("Warning: ") for line in out.splitlines() if line.startswith("Warning: ")]


def problems(err: str) -> list[str]:
    """Return the lines of stderr that are no progress bars."""
    return [line for line in err.splitlines() if line and "\r" not in line and "it/s" not in line and "/s]" not in line]


# ---- old configs ----------------------------------------------------------------------------------------------------


def test_an_old_llama_3_stanza_gives_the_lines_that_pass_the_check(workshop, check):
    old = {"type": "sharegpt.load_ultrachat", "conversation": "llama-3"}
    paths = {"datasets": workshop.folder / "pairs.jsonl", "test_datasets": workshop.folder / "pairs.eval.jsonl"}
    stanzas = {key: [{"path": str(path), **old}] for key, path in paths.items()}
    code, out, err = check("old", plugins=[CPU_RANKS], chat_template=None, **stanzas)
    lines = yaml.safe_load(out)
    assert code == 1
    assert lines == {
        "plugins": [PLUGIN, CPU_RANKS],
        "chat_template": "tokenizer_default",
        "datasets": [stanza(paths["datasets"])],
        "test_datasets": [stanza(paths["test_datasets"], "both_orders")],
    }
    assert f"# datasets, {paths['datasets']}: conversation: llama-3 is dropped: the model's own chat template" in out
    assert (
        f"datasets: {paths['datasets']} has type: sharegpt.load_ultrachat; type: pair_pm.pair_rows is required" in err
    )
    assert "Traceback" not in err
    assert check("pasted", **lines)[0] == 0


@pytest.mark.parametrize("conversation", ["gemma", "mistral"])
def test_a_data_set_on_the_hub_keeps_its_name_and_split_and_gets_no_ds_type(conversation):
    old = {"path": "owner/name", "type": "sharegpt", "conversation": conversation, "train_on_split": "train"}
    lines = replace_old_lines({"plugins": [PLUGIN], "datasets": [old]}).lines
    assert lines["datasets"] == [{"path": "owner/name", "split": "train", "type": "pair_pm.pair_rows"}]


def test_each_dropped_key_of_a_chat_template_stanza_is_named_with_its_reason():
    keys = {"field_messages": "messages", "roles_to_train": ["assistant"], "train_on_eos": "none", "odd": 1}
    old = {"path": "x.parquet", "type": "chat_template", **keys}
    found = replace_old_lines({"plugins": [PLUGIN], "chat_template": "gemma", "datasets": [old]})
    assert found.lines["datasets"] == [{"path": "x.parquet", "ds_type": "parquet", "type": "pair_pm.pair_rows"}]
    assert found.lines["chat_template"] == "tokenizer_default"
    assert "plugins" not in found.lines
    for key in ("chat_template: gemma", "type: chat_template", *(f"{key}: {keys[key]}" for key in keys)):
        assert [key in reason for reason in found.reasons].count(True) == 1, key


def test_settings_that_would_be_refused_beside_the_new_stanza_are_replaced_too():
    old = {"datasets": [{"path": "x", "type": "alpaca"}], "sample_packing": True, "val_set_size": 0.1}
    lines = replace_old_lines(old).lines
    assert (lines["eval_sample_packing"], lines["val_set_size"]) == (False, 0)


def test_a_config_without_the_plugin_gets_it_and_keeps_its_stanzas():
    kept = {"path": "x.jsonl", "ds_type": "json", "type": "pair_pm.pair_rows", "shards": 4}
    found = replace_old_lines({"chat_template": "tokenizer_default", "datasets": [kept]})
    assert found.lines == {"plugins": [PLUGIN], "datasets": [kept]}
    assert found.reasons == []


def test_the_configs_of_the_repository_are_new_and_have_no_unknown_key():
    from pair_pm.config_check import find_unknown_keys

    for path in sorted((ROOT / "config").glob("*.yml")):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert replace_old_lines(config) is None, path
        assert find_unknown_keys(config) == [], path


def test_the_command_prints_nothing_but_yaml_on_stdout_for_an_old_config(tmp_path):
    config = tmp_path / "old.yml"
    config.write_text("datasets:\n  - path: owner/name\n    type: sharegpt.load_ultrachat\n    conversation: gemma\n")
    done = subprocess.run(
        [sys.executable, "-m", "pair_pm.training", "check", str(config)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert yaml.safe_load(done.stdout)["datasets"] == [{"path": "owner/name", "type": "pair_pm.pair_rows"}]


# ---- problems -------------------------------------------------------------------------------------------------------


def test_all_that_is_named_and_missing_is_said_at_once_a_line_each(check, tmp_path):
    missing = {
        "base_model": str(tmp_path / "base"),
        "datasets": [stanza("data/missing.jsonl")],
        "deepspeed": "deepspeed_configs/deepspeed_9.json",
    }
    code, out, err = check("missing", **missing)
    assert (code, out) == (1, "")
    assert [line.partition(";")[0] for line in problems(err)] == [
        f"base_model: {tmp_path / 'base'}: no such folder",
        "datasets: data/missing.jsonl: no such file",
        "deepspeed: deepspeed_configs/deepspeed_9.json: no such file",
    ]


def test_a_config_that_is_not_there_or_is_no_yaml_is_one_line(check, tmp_path, capsys):
    from pair_pm.training import main

    broken = tmp_path / "broken.yml"
    broken.write_text("a: [1\n")
    for path, found in ((tmp_path / "none.yml", "no such file"), (broken, "YAML is required")):
        assert main(["check", str(path)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{path}: ")
        assert found in line


def test_what_axolotl_refuses_is_a_line_without_a_traceback(check):
    code, _, err = check("invalid", micro_batch_size="many")
    assert code == 1
    (line,) = (line for line in problems(err) if "micro_batch_size" in line)
    assert "valid integer" in line
    assert "Traceback" not in err


def test_a_plugin_that_cannot_be_imported_is_refused(check):
    code, _, err = check("plugin", plugins=[PLUGIN, "pair_pm.nothing.Plugin"])
    assert code == 1
    assert "plugins: pair_pm.nothing.Plugin: No module named 'pair_pm.nothing'" in err


def test_every_problem_of_the_config_is_said_at_once(check):
    code, _, err = check("several", val_set_size=0.1, symmetry_weight=0.1, micro_batch_size=3)
    assert code == 1
    assert {"val_set_size 0.1", "micro_batch_size 3 with symmetry_weight"} <= {
        line.partition(":")[0] for line in problems(err)
    }


@pytest.mark.parametrize("key", ["skip_prepare_dataset", "streaming"])
def test_rows_that_are_not_tokenised_beforehand_are_refused(check, key):
    code, out, err = check(key, f"--{key}")
    assert (code, out) == (1, "")
    assert f"{key}: True; rows that are tokenised before training are required" in err


def test_rows_of_which_none_fits_are_refused(check):
    code, out, err = check("all_long", sequence_len=32)
    assert (code, out) == (1, "")
    assert "none of its 100 rows fits into sequence_len 32" in err
    assert "Traceback" not in err


def test_broken_data_is_one_line(check, tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"messages": [\n')
    code, _, err = check("broken", datasets=[stanza(tmp_path / "broken.jsonl")])
    assert code == 1
    assert "what axolotl can load is required" in err
    assert "Traceback" not in err


def test_rows_with_two_tokens_that_bear_loss_are_refused(check, monkeypatch):
    from pair_pm.pair_rows import PairRows

    tokenize = PairRows.tokenize

    def with_two(self, rows):
        columns = tokenize(self, rows)
        columns["labels"][0][0] = columns["input_ids"][0][0]
        return columns

    monkeypatch.setattr(PairRows, "tokenize", with_two)
    code, out, err = check("two")
    assert code == 1
    assert "datasets: in 1 of 100 rows 1 to 2 tokens bear loss; one, the label, is required" in err
    assert numbers(out, "tokens with loss a row") == ["1-2"]


def test_pairs_in_one_order_are_refused_with_a_symmetry_weight_where_there_is_no_other(check, tmp_path):
    alone = write_rows(tmp_path / "alone.jsonl", ("q", "x", "y", 1.0), ("r", "x", "y", 0.0))
    code, _, err = check("alone", datasets=[stanza(alone)], symmetry_weight=0.5)
    assert code == 1
    assert "symmetry_weight: none of the 2 training rows has its other order" in err


# ---- warnings -------------------------------------------------------------------------------------------------------


def test_an_unknown_key_is_named_with_its_neighbour_wherever_it_stands(check):
    code, out, _ = check("typo", "--symetry_weight", "0.5", learning_rat=1.0)
    assert code == 0
    found = warnings(out)
    assert [warning.partition(":")[0] for warning in found] == ["learning_rat", "symetry_weight"]
    assert [warning.rpartition("; ")[2] for warning in found] == [
        "is learning_rate meant?",
        "is symmetry_weight meant?",
    ]


def test_dropped_rows_are_counted_when_tokenised_and_when_prepared_before(check, monkeypatch):
    from pair_pm.pair_rows import PairRows

    reports = [check("long", sequence_len=SHORT)]
    monkeypatch.setattr(PairRows, "tokenize", mock.Mock(side_effect=AssertionError("tokenised again")))
    reports.append(check("long", sequence_len=SHORT))
    for code, out, _ in reports:
        assert code == 0
        assert [numbers(out, name) for name in ("rows read", "rows kept", "dropped as too long")] == [
            ["100"],
            ["94"],
            ["6"],
        ]
        (warning,) = warnings(out)
        enough = numbers(out, "sequence_len that keeps 95%")[0]
        assert warning.startswith("datasets: 6 of 100 rows (6.0%) are dropped")
        assert warning.endswith(f"sequence_len {SHORT}; a sequence_len of {enough} keeps 95%")
    with pytest.raises(AssertionError, match="tokenised again"):
        check("long", "--sequence_len", enough)
    monkeypatch.undo()
    code, out, _ = check("long", f"--sequence_len={enough}")
    assert (code, warnings(out)) == (0, [])
    assert int(numbers(out, "rows kept")[0]) >= 95


def test_a_long_held_out_pair_counts_in_each_order_that_its_file_gives(check, tmp_path):
    rows = [(f"q{n}", "x", "y", 1.0) for n in range(8)]
    long = ("long", "x " * 200, "y", 1.0), ("long", "y", "x " * 200, 0.0)
    held_out = write_rows(tmp_path / "held_out.jsonl", *rows, *long)
    code, out, _ = check("held_out", sequence_len=512, eval_sequence_len=SHORT,
                         test_datasets=[stanza(held_out, "both_orders")])  # fmt: skip
    assert code == 0
    counts = [numbers(out, name)[1] for name in ("rows read", "rows kept", "dropped as too long")]
    assert counts == ["20", "16", "4"]
    assert warnings(out)[0].startswith("test_datasets: 4 of 20 rows (20.0%) are dropped")


def test_a_pad_token_that_ends_turns_is_warned_of(check, tmp_path):
    tokenizer = make_small_tokenizer(LLAMA3_TEMPLATE, LLAMA3_MARKS, pad="</s>", split="llama3")
    code, out, _ = check("pad", base_model=str(save_tiny_checkpoint(tmp_path / "base", tokenizer=tokenizer)))
    assert code == 0
    (warning,) = warnings(out)
    assert "its pad token is its end-of-sequence token '</s>'" in warning


def test_rows_without_their_other_order_are_warned_of_with_a_symmetry_weight(check, tmp_path):
    some = write_rows(tmp_path / "some.jsonl", ("q", "x", "y", 1.0), ("q", "y", "x", 0.0), ("r", "x", "y", 0.0))
    code, out, _ = check("some", datasets=[stanza(some)], symmetry_weight=0.5)
    assert (code, warnings(out)) == (
        0,
        ["symmetry_weight: 1 rows have no other order: their loss has no symmetry term"],
    )
    assert (numbers(out, "pairs in both orders"), numbers(out, "pairs in one order")) == (["1"], ["1"])


def test_held_out_openings_that_are_trained_on_are_counted(workshop, check, tmp_path):
    """Other responses to a question of the training rows, so that the pairs differ and the openings do not."""
    leaking = write_rows(tmp_path / "leak.jsonl", *((f"Say {n} kindly.", "Well.", "No.", 1.0) for n in (7, 8, 10_000)))
    code, out, _ = check("leak", test_datasets=[stanza(leaking, "both_orders")])
    assert code == 0
    (warning,) = warnings(out)
    assert warning.startswith("test_datasets: 2 of 3 first user messages also stand among the training rows")
    code, out, _ = check("no_leak", **workshop.evaluated)
    assert (code, warnings(out)) == (0, [])


# ---- what would be trained on ---------------------------------------------------------------------------------------


def test_exactly_one_token_of_each_row_that_is_shown_is_marked(check):
    code, out, _ = check("shown", "--rows", "3")
    shown = out.split("\nRow ")[1:]
    assert (code, len(shown)) == (0, 3)
    for row in shown:
        text, _, tokens = row.partition("last tokens: ")
        assert text.count("⟦") == 1
        assert text.endswith(("⟦A⟧<|eot_id|>\n", "⟦B⟧<|eot_id|>\n"))
        assert text.partition("\n")[2].startswith("<s><|start_header_id|>user")
        assert tokens.count("⟦") == 1
        assert tokens.count("  ") >= 18  # twenty tokens, some of them spaces


def test_the_middle_of_a_long_row_is_left_out():
    from pair_pm.row_report import show_row

    tokenizer = make_small_tokenizer()
    ids = tokenizer("start " + "long " * 500 + "end", add_special_tokens=False)["input_ids"]
    shown = show_row(tokenizer, {"input_ids": [*ids, 33], "labels": [-100] * len(ids) + [33]})
    assert len(shown) < 1200
    assert shown.startswith("start long")
    assert " characters … " in shown
    assert "long end⟦B⟧" in shown


def test_labels_soft_targets_and_ties_are_counted(check, tmp_path):
    targets = (1.0, 0.0, 0.7, 0.5, 0.25, 1.0, 0.9, 1.0)
    rows = write_rows(tmp_path / "soft.jsonl", *((f"q{n}", "x", "y", prob) for n, prob in enumerate(targets)))
    code, out, _ = check("soft", datasets=[stanza(rows)])
    assert code == 0
    # "A" where the target is 0.5 or more: six of eight.
    assert [numbers(out, name) for name in ("rows labelled A", "soft targets", "of them ties")] == [
        ["75.0%"],
        ["4"],
        ["1"],
    ]


def test_steps_are_those_of_a_run_on_as_many_processes(check):
    # 100 rows, 2 epochs, batches of 4: 50 steps; four processes share them.
    assert numbers(check("steps", max_steps=None)[1], "steps") == ["50 on 1 process"]
    assert numbers(check("steps", "--gpus", "4", max_steps=None)[1], "steps") == ["13 on 4 processes"]


def test_packed_rows_are_counted_too(check):
    packing = {"sample_packing": True, "pad_to_sequence_len": True, "symmetry_weight": 0.5, "sequence_len": SHORT}
    code, out, _ = check("packed", **packing, attn_implementation="flash_attention_2")
    assert code == 0
    assert numbers(out, "rows kept") == ["94"]
    assert numbers(out, "pairs in both orders") == ["47"]
    assert out.count("⟦") == 4


def test_a_run_after_the_check_loads_the_rows_that_it_prepared(workshop, check):
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager

    folder = workshop.folder / "prepared_by_check"
    code, out, _ = check("prepared", dataset_prepared_path=str(folder), **workshop.evaluated)
    assert code == 0
    (rows,) = (path for path in folder.iterdir() if path.is_dir())
    assert f"The rows are prepared in {rows}\n" in out
    assert len(list(rows.glob("*/dataset_info.json"))) == 2
    cfg = load_cfg(str(workshop.folder / "prepared.yml"))
    PluginManager.get_instance().load_datasets(cfg, preprocess=False)
    with mock.patch("axolotl.utils.data.sft._load_raw_datasets", side_effect=AssertionError("tokenised again")):
        loaded = load_datasets(cfg=cfg, cli_args=TrainerCliArgs())
    assert (len(loaded.train_dataset), len(loaded.eval_dataset)) == (100, 26)


def test_the_log_of_a_run_that_is_there_stays(workshop, check):
    output = workshop.folder / "has_run"
    output.mkdir()
    (output / "debug.log").write_text("what the run said")
    assert check("has_run")[0] == 0
    assert [(path.name, path.read_text()) for path in output.iterdir()] == [("debug.log", "what the run said")]
