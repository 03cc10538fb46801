"""The card `pair_pm.json`: what it holds comes back, and nothing in it or beside it changes unseen."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CHATML, LLAMA3_TEMPLATE, make_small_tokenizer
from tiny_models import LLAMA3_MARKS

from pair_pm import recipe
from pair_pm.errors import RecipeError
from pair_pm.recipe import CARD_NAME, Recipe, installed_versions, read_recipe, write_recipe
from pair_pm.tokens import PromptEncoder

RECIPE = Recipe(
    sequence_len=3072,
    temperature=1.7,
    order_offset=-0.25,
    probe_logprobs=((-0.5, -1.25), (-3.0, -0.0625)),
    accepted_control_text=("@@x@@",),
    training={"base_model": "tiny", "step": 12},
)
CHECKED = {
    "format_version": 2,
    "prompt_format_version": 7,
    "control_set_version": 0,
    "chat_template_sha256": "0" * 64,
    "bos_count": 3,
    "label_ids": [1, 2],
    "header_ids": [],
    "probe_ids_sha256": "f" * 64,
}


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(make_small_tokenizer())


@pytest.fixture
def path(encoder, tmp_path) -> Path:
    return write_recipe(tmp_path, encoder, RECIPE)


def edit(path: Path, part: str, **changes) -> None:
    card = json.loads(path.read_text())
    card[part].update(changes)
    path.write_text(json.dumps(card))


def test_card_says_again_what_was_written(path, encoder):
    assert path.name == CARD_NAME == "pair_pm.json"
    assert read_recipe(path, encoder) == RECIPE
    assert RECIPE.versions == installed_versions()
    assert "transformers" in RECIPE.versions


def test_card_of_defaults_leaves_the_length_open(encoder, tmp_path):
    found = read_recipe(write_recipe(tmp_path, encoder, Recipe()), encoder)
    assert (found.sequence_len, found.temperature, found.order_offset) == (None, 1.0, 0.0)
    assert (found.probe_logprobs, found.accepted_control_text) == (None, ())


def test_saving_another_temperature_renews_the_digest(path, encoder):
    before = json.loads(path.read_text())["digest"]
    write_recipe(path.parent, encoder, Recipe(**{**vars(RECIPE), "temperature": 2.5}))
    assert read_recipe(path, encoder).temperature == 2.5
    assert json.loads(path.read_text())["digest"] != before


def test_card_holds_just_the_checked_fields_that_the_design_names(path):
    assert set(json.loads(path.read_text())["checked"]) == set(CHECKED)


@pytest.mark.parametrize("name", CHECKED)
def test_changed_checked_field_is_named_with_both_values(path, encoder, name):
    written = json.loads(path.read_text())["checked"][name]
    edit(path, "checked", **{name: CHECKED[name]})
    with pytest.raises(RecipeError) as error:
        read_recipe(path, encoder)
    assert f"{name} is {CHECKED[name]!r}" in str(error.value)
    assert f"give {written!r}" in str(error.value)


def test_absent_checked_field_is_named(path, encoder):
    card = json.loads(path.read_text())
    del card["checked"]["bos_count"]
    path.write_text(json.dumps(card))
    with pytest.raises(RecipeError, match="bos_count is None"):
        read_recipe(path, encoder)


def test_another_chat_template_is_refused(path):
    # The same ids, but not the same template: nobody can say what it does to the next prompt.
    other = PromptEncoder(make_small_tokenizer(CHATML + "{# edited #}"))
    with pytest.raises(RecipeError, match="chat_template_sha256"):
        read_recipe(path, other)


def test_another_tokenizer_is_refused(path):
    tokenizer = make_small_tokenizer()
    tokenizer.add_tokens(["boiling"])  # one more merge, far from the label
    other = PromptEncoder(tokenizer)
    with pytest.raises(RecipeError, match="probe_ids_sha256"):
        read_recipe(path, other)


def test_other_label_ids_are_refused(path):
    shifted = PromptEncoder(make_small_tokenizer(special_tokens=("<|im_end|>", "<|im_start|>")))
    with pytest.raises(RecipeError, match="header_ids is"):
        read_recipe(path, shifted)


def test_model_trained_with_bos_is_not_served_without(tmp_path):
    tokenizer = make_small_tokenizer(LLAMA3_TEMPLATE, LLAMA3_MARKS)
    path = write_recipe(tmp_path, PromptEncoder(tokenizer), Recipe())
    with pytest.raises(RecipeError, match="bos_count is 1, but this tokenizer and chat template give 0"):
        read_recipe(path, PromptEncoder(tokenizer, "rlhflow"))


def test_card_from_before_probes_were_scored_is_read(path, encoder):
    card = json.loads(path.read_text())
    del card["used"]["probe_logprobs"], card["digest"]
    path.write_text(json.dumps({**card, "digest": recipe._digest(card)}))
    assert read_recipe(path, encoder) == replace(RECIPE, probe_logprobs=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("sequence_len", value) for value in (0, -1, 1.5, "3072", True)),
        *(("temperature", value) for value in (0, -1.0, None, "1", True, float("nan"), float("inf"))),
        *(("order_offset", value) for value in (None, "0", False, float("-inf"))),
        *(("probe_logprobs", value) for value in ([], [[-1, -2]], [[-1, -2], [-3]], [[-1, -2], [-3, None]], "-1")),
    ],
)
def test_used_field_out_of_range_is_named(path, encoder, name, value):
    edit(path, "used", **{name: value})
    with pytest.raises(RecipeError) as error:
        read_recipe(path, encoder)
    assert f"{name} is {json.loads(json.dumps(value))!r}" in str(error.value)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("used", {"temperature": 1.6}),  # in range, and still not what was written
        ("used", {"sequence_len": 4096}),
        ("used", {"more": 1}),
        ("checked", {"more": 1}),
        ("checked", {"bos_count": 0.0}),  # equal for Python, not the same byte
        ("informative", {"accepted_control_text": []}),
        ("informative", {"versions": {}}),
        ("informative", {"training": {"base_model": "another"}}),
    ],
)
def test_any_other_edit_by_hand_shows_in_the_digest(path, encoder, part, change):
    edit(path, part, **change)
    with pytest.raises(RecipeError, match="digest"):
        read_recipe(path, encoder)


def test_edited_or_absent_digest_is_refused(path, encoder):
    card = json.loads(path.read_text())
    path.write_text(json.dumps({**card, "digest": "0" * 64}))
    with pytest.raises(RecipeError, match="digest"):
        read_recipe(path, encoder)
    del card["digest"]
    path.write_text(json.dumps(card))
    with pytest.raises(RecipeError, match="digest"):
        read_recipe(path, encoder)


def test_another_layout_of_the_same_card_is_the_same_card(path, encoder):
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7, sort_keys=True))
    assert read_recipe(path, encoder) == RECIPE


def test_another_version_of_transformers_is_logged_and_loads(encoder, tmp_path, caplog):
    versions = {**installed_versions(), "transformers": "4.57.0"}
    path = write_recipe(tmp_path, encoder, Recipe(versions=versions))
    with caplog.at_level(logging.WARNING):
        assert read_recipe(path, encoder).versions == versions
    [record] = caplog.records
    assert f"trained with transformers 4.57.0, served with {installed_versions()['transformers']}" in record.message


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "'checked' is missing"),
        (b"{}", "'checked' is missing"),
        (b'{"checked": {}, "used": []}', "'used' is missing"),
        (b'{"checked": {}, "used": {}}', "'informative' is missing"),
    ],
)
def test_broken_card_is_one_line(path, encoder, content, found):
    path.write_bytes(content)
    with pytest.raises(RecipeError) as error:
        read_recipe(path, encoder)
    assert found in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_failed_write_leaves_the_old_card_and_nothing_else(path, encoder, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_recipe(path.parent, encoder, Recipe())
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [CARD_NAME]


def test_card_appears_whole(encoder, tmp_path, monkeypatch):
    # Whoever looks at the folder at any moment sees no card or a whole one: the text is written under another name.
    names, write = [], Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda self, *a, **k: (names.append(self.name), write(self, *a, **k))[1])
    write_recipe(tmp_path, encoder, RECIPE)
    assert CARD_NAME not in names
    assert len(names) == 1
    assert [file.name for file in tmp_path.iterdir()] == [CARD_NAME]


def test_unknown_part_shows_in_the_digest(path, encoder):
    card = json.loads(path.read_text())
    path.write_text(json.dumps({**card, "notes": "edited"}))
    with pytest.raises(RecipeError, match="digest"):
        read_recipe(path, encoder)
