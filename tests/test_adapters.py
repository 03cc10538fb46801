"""Adapters for real: LoRA trained, merged with axolotl's own command, finished, and scored."""

import shutil

import numpy as np
import pytest
from workshop import LORA, Workshop, assert_scores_as_last_evaluated, losses, score

import prepare_model
from pair_pm.errors import CheckpointError, MissingPathError
from pair_pm.merging import finish_merge

STRONG = LORA | {"learning_rate": 0.05, "lora_r": 8, "lora_alpha": 32}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, axolotl_runs) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"), axolotl_runs)


@pytest.fixture(scope="module")
def merged(workshop):
    """The folder that axolotl merged a trained adapter into."""
    adapter = workshop.train("adapter", **STRONG)
    done = workshop.runs.run(workshop.folder / "adapter.yml", command="merge_lora", lora_model_dir=str(adapter))
    assert done.returncode == 0, done.stdout[-3000:]
    return adapter / "merged"


def test_a_merged_adapter_answers_as_base_and_adapter_and_has_the_same_card(workshop, merged, capsys):
    adapter = merged.parent
    assert not (merged / "pair_pm.json").exists()
    assert prepare_model.main(["--finish-merge", str(merged)]) == 0
    assert "answers as base and adapter do" in capsys.readouterr().out
    prompts = workshop.prompts()[:20]
    with_adapter = np.exp(score(workshop.base, prompts, adapter=str(adapter)))
    np.testing.assert_allclose(np.exp(score(merged, prompts)), with_adapter, atol=1e-5)
    assert np.abs(with_adapter - np.exp(score(workshop.base, prompts))).max() > 0.01  # the adapter does something
    for name in ("pair_pm.json", "tokenizer.json", "chat_template.jinja"):
        assert (merged / name).read_bytes() == (adapter / name).read_bytes()


def test_weights_that_were_not_merged_are_refused_and_get_no_card(workshop, merged, tmp_path):
    shutil.copytree(workshop.base, tmp_path / "merged")
    with pytest.raises(CheckpointError, match=r"probability differs by 0\.\d+ .* at most 0\.0001 is required"):
        finish_merge(str(tmp_path / "merged"), str(merged.parent))
    assert not (tmp_path / "merged/pair_pm.json").exists()


def test_an_adapter_without_a_card_is_refused(workshop, merged, tmp_path):
    shutil.copytree(merged.parent, tmp_path / "adapter", ignore=shutil.ignore_patterns("pair_pm.json", "checkpoint-*"))
    with pytest.raises(MissingPathError, match=r"pair_pm\.json: not there"):
        finish_merge(str(tmp_path / "adapter/merged"))


@pytest.mark.parametrize("arguments", [[], ["--model", "x"], ["--finish-merge", "x", "--output", "y"]])
def test_what_to_do_must_be_said_and_be_one_thing(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        prepare_model.main(arguments)
    assert ended.value.code == 2
    assert "--finish-merge" in capsys.readouterr().err


def test_adapters_under_zero_3_train_and_save_as_on_plain_ranks(workshop, merged):
    # Both go on from one trained adapter: a fresh one starts from random numbers, drawn differently under ZeRO-3.
    keys = LORA | {"lora_r": 8, "lora_alpha": 32, "lora_model_dir": str(merged.parent), **workshop.evaluated}
    plain = workshop.train("plain_lora", ranks=2, **keys)
    sharded = workshop.train("zero_3_lora", ranks=2, deepspeed=3, **keys)
    assert losses(sharded) == pytest.approx(losses(plain), rel=1e-4)
    prompts = workshop.prompts()[:20]
    scores = [score(workshop.base, prompts, adapter=str(output)) for output in (plain, sharded)]
    np.testing.assert_allclose(*scores, atol=1e-4)
    assert_scores_as_last_evaluated(sharded, workshop.held_out, workshop.base)
