"""Loading checkpoints, and preparing a base model: `pair_pm.checkpoint`."""

import datetime
import hashlib
import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from conftest import CHATML, make_small_tokenizer
from safetensors.torch import load_file, save_file
from tiny_models import LLAMA3_MARKS, make_tiny_model, save_tiny_checkpoint

from pair_pm.checkpoint import find_file, load_config, load_model, load_tokenizer, prepare_base_model
from pair_pm.errors import (
    CheckpointError,
    ConfigError,
    LabelTokenError,
    MissingPathError,
    OutputExistsError,
    TemplateError,
)
from pair_pm.tokens import PROBE_PROMPTS, PromptEncoder

UP_PROJECTION = "model.layers.0.mlp.up_proj.weight"
# A template of the date family: transformers offers it `strftime_now`.
DATED = "{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A whole Llama checkpoint with a pad token of its own."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def copy_of_base(base, tmp_path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


def save_without_pad(folder: Path, *reserved: str, family: str = "llama", chat_template: str = CHATML, **overrides):
    """Write a base checkpoint that pads with nothing, its vocabulary ending in some reserved tokens."""
    tokenizer_options = {name: overrides.pop(name) for name in ("bos", "eos", "pad") if name in overrides}
    specials = ("<|im_start|>", "<|im_end|>", *LLAMA3_MARKS, *reserved)
    tokenizer = make_small_tokenizer(chat_template, specials, **{"pad": None, **tokenizer_options})
    return save_tiny_checkpoint(folder, family, tokenizer, **overrides)


def hash_files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def probe_logits(folder: Path) -> torch.Tensor:
    ids = PromptEncoder(load_tokenizer(str(folder))).encode(PROBE_PROMPTS[:1])
    with torch.inference_mode():
        return load_model(str(folder)).float()(torch.tensor(ids)).logits


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def assert_one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# ---- loading --------------------------------------------------------------------------------------------------------


def test_missing_folder_is_said_as_such(tmp_path):
    for load in (load_config, load_tokenizer, load_model):
        with pytest.raises(MissingPathError, match="no such folder") as error:
            load(str(tmp_path / "nowhere"))
        assert_one_line(error, str(tmp_path / "nowhere"))


def test_name_that_neither_disk_nor_hub_has_is_a_missing_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingPathError) as error:
        load_model("models/nowhere")
    assert_one_line(error, "models/nowhere")


def test_missing_weight_is_an_error_that_names_it(copy_of_base):
    edit_weights(copy_of_base, lambda weights: weights.pop(UP_PROJECTION))
    with pytest.raises(CheckpointError) as error:
        load_model(str(copy_of_base))
    assert_one_line(error, str(copy_of_base), UP_PROJECTION, "missing")


@pytest.mark.parametrize("rows", [0, 24])
def test_half_saved_weight_is_an_error_that_names_it(copy_of_base, rows):
    # What ZeRO-3 leaves behind when nobody gathers: a shard of a weight, or nothing of it, under its name.
    edit_weights(copy_of_base, lambda weights: weights.update({UP_PROJECTION: weights[UP_PROJECTION][:rows].clone()}))
    with pytest.raises(CheckpointError) as error:
        load_model(str(copy_of_base))
    assert_one_line(error, str(copy_of_base), f"1 weights have another shape than the config says ({UP_PROJECTION})")


def test_tied_head_is_not_a_missing_weight(tmp_path):
    folder = save_tiny_checkpoint(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert load_model(str(folder)).get_output_embeddings() is not None


def test_classification_head_is_refused_before_weights_are_read(tmp_path):
    config = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=99)
    config.architectures = ["LlamaForSequenceClassification"]
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError) as error:
        load_model(str(tmp_path))
    assert_one_line(error, "LlamaForSequenceClassification", "causal LM is required")


def test_missing_weights_file_and_broken_config_are_one_line(copy_of_base):
    (copy_of_base / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as error:
        load_model(str(copy_of_base))
    assert_one_line(error, "model.safetensors")
    (copy_of_base / "config.json").write_text('{"model_type"')
    with pytest.raises(CheckpointError) as error:
        load_model(str(copy_of_base))
    assert_one_line(error, "config.json")


@pytest.mark.parametrize("length", [0, 500, -1])
def test_truncated_weights_are_one_line(copy_of_base, length):
    whole = (copy_of_base / "model.safetensors").read_bytes()
    (copy_of_base / "model.safetensors").write_bytes(whole[:length])
    with pytest.raises(CheckpointError) as error:
        load_model(str(copy_of_base))
    assert_one_line(error, str(copy_of_base))


def test_config_of_wrong_types_is_one_line(copy_of_base):
    edit_json(copy_of_base / "config.json", hidden_size="wide")
    with pytest.raises(CheckpointError) as error:
        load_config(str(copy_of_base))
    assert_one_line(error, "hidden_size")
    (copy_of_base / "config.json").write_text("[]")
    with pytest.raises(CheckpointError) as error:
        load_config(str(copy_of_base))
    assert_one_line(error, str(copy_of_base))


def test_model_loads_in_float32_on_a_cpu_and_in_its_own_type_when_asked(tmp_path):
    folder = save_tiny_checkpoint(tmp_path / "bf16")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    assert load_model(str(folder), device="cpu").dtype == torch.float32
    assert load_model(str(folder), device="cpu", dtype="auto").dtype == torch.bfloat16
    assert not load_model(str(folder)).training


@pytest.mark.parametrize("device", ["cuda:77", "abacus"])
def test_device_that_is_not_there_is_one_line(base, device):
    with pytest.raises(ConfigError) as error:
        load_model(str(base), device=device)
    assert_one_line(error, f"device {device}: ")


def test_attention_that_is_not_installed_is_one_line(base, monkeypatch):
    def fail(*names, **options):
        raise ImportError("FlashAttention2 has been toggled on,\nbut it cannot be used")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)  # a GPU machine may have it
    with pytest.raises(ConfigError) as error:
        load_model(str(base), attn_implementation="flash_attention_2")
    assert_one_line(error, "FlashAttention2")


def save_adapter(folder: Path) -> Path:
    """Write a random LoRA adapter for the base model."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    peft.get_peft_model(make_tiny_model(), config).save_pretrained(folder)
    return folder


def test_adapter_is_merged(base, tmp_path):
    adapter = save_adapter(tmp_path / "adapter")
    merged, plain = load_model(str(base), adapter=str(adapter)), load_model(str(base))
    assert type(merged) is type(plain)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged.state_dict()[name], plain.state_dict()[name])
    assert torch.equal(merged.state_dict()[UP_PROJECTION], plain.state_dict()[UP_PROJECTION])


def test_adapter_that_is_not_whole_or_not_there_is_one_line(base, tmp_path):
    adapter = save_adapter(tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    dropped = next(name for name in weights if "lora_B" in name)
    save_file({name: weights[name] for name in weights if name != dropped}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_model(str(base), adapter=str(adapter))
    assert_one_line(error, str(adapter), "missing adapter keys", dropped.removesuffix(".weight"))
    with pytest.raises(MissingPathError) as error:
        load_model(str(base), adapter=str(tmp_path / "nowhere"))
    assert_one_line(error, str(tmp_path / "nowhere"))
    with pytest.raises(MissingPathError) as error:
        find_file(str(tmp_path / "nowhere"), "pair_pm.json")
    assert_one_line(error, str(tmp_path / "nowhere"))


def test_file_is_found_in_a_folder_or_absent(base):
    assert find_file(str(base), "config.json") == base / "config.json"
    assert find_file(str(base), "pair_pm.json") is None


def test_capped_attention_loads_as_eager_and_every_other_as_transformers_chooses(base, tmp_path):
    gemma2 = save_tiny_checkpoint(tmp_path / "gemma2", "gemma2")
    assert load_model(str(gemma2)).config._attn_implementation == "eager"
    assert load_model(str(gemma2), attn_implementation="sdpa").config._attn_implementation == "sdpa"
    assert load_model(str(base)).config._attn_implementation == "sdpa"


# ---- preparing: the pad token ---------------------------------------------------------------------------------------


def assert_prepared(base: Path, output: Path, pad_token: str) -> None:
    """Check from disk alone: one pad id everywhere, neither eos nor bos, and logits as before."""
    tokenizer = load_tokenizer(str(output))
    assert tokenizer.pad_token == pad_token
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert json.loads((output / "config.json").read_text())["pad_token_id"] == tokenizer.pad_token_id
    assert json.loads((output / "generation_config.json").read_text())["pad_token_id"] == tokenizer.pad_token_id
    before, after = probe_logits(base), probe_logits(output)
    torch.testing.assert_close(after[..., : before.shape[-1]], before, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("reserved", "expected"),
    [
        # Llama-3, and Llama-3.1, which has both and names one for this.
        (["<|reserved_special_token_0|>", "<|reserved_special_token_1|>"], "<|reserved_special_token_0|>"),
        (["<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"], "<|finetune_right_pad_id|>"),
        (["<|reserved_special_token_12|>", "<|reserved_special_token_7|>"], "<|reserved_special_token_7|>"),
        (["<unused0>", "<unused1>"], "<unused0>"),
        (["[control_8]", "[control_9]"], "[control_8]"),
    ],
)
def test_reserved_token_becomes_the_pad_without_new_embeddings(tmp_path, reserved, expected):
    base, output = save_without_pad(tmp_path / "base", *reserved), tmp_path / "out"
    done = prepare_base_model(str(base), str(output))
    assert (done.pad_token, done.pad_choice, done.frozen_formats) == (expected, "reserved", [])
    assert expected in done.describe()
    assert_prepared(base, output, expected)
    weights = [load_file(folder / "model.safetensors") for folder in (base, output)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_unknown_token_becomes_the_pad_where_the_vocabulary_has_no_reserved_one(tmp_path):
    tokenizer = make_small_tokenizer(CHATML, ("<unk>", "<|im_start|>", "<|im_end|>"), pad=None)
    tokenizer.unk_token = "<unk>"  # as in Mistral's first vocabularies
    base, output = save_tiny_checkpoint(tmp_path / "base", "mistral", tokenizer), tmp_path / "out"
    assert prepare_base_model(str(base), str(output)).pad_choice == "reserved"
    assert_prepared(base, output, "<unk>")


def test_token_is_added_only_where_none_is_free_and_loudly(tmp_path, caplog):
    base, output = save_without_pad(tmp_path / "base"), tmp_path / "out"
    rows = load_model(str(base)).get_input_embeddings().num_embeddings
    done = prepare_base_model(str(base), str(output))
    assert done.pad_choice == "added"
    assert "ATTENTION" in done.describe()
    assert f"embeddings grow from {rows} to {rows + 1} rows" in caplog.text
    assert_prepared(base, output, "<|pad|>")
    grown = load_model(str(output))
    assert grown.get_input_embeddings().num_embeddings == grown.config.vocab_size == rows + 1
    assert grown.get_output_embeddings().out_features == rows + 1


@pytest.mark.parametrize("reserved", [(), ("<|reserved_special_token_0|>",)])
def test_embeddings_with_room_are_neither_grown_nor_shrunk(tmp_path, caplog, reserved):
    base, output = save_without_pad(tmp_path / "base", *reserved, vocab_size=640), tmp_path / "out"
    done = prepare_base_model(str(base), str(output))
    assert done.pad_choice == ("reserved" if reserved else "added")
    assert load_model(str(output)).get_input_embeddings().num_embeddings == 640
    assert "grow" not in caplog.text


def test_embeddings_stay_where_the_pad_fits_although_other_tokens_do_not(tmp_path):
    # Some published checkpoints have more tokens than rows; that is not what this is here to change.
    base = save_without_pad(tmp_path / "base", "<|reserved_special_token_0|>")
    rows = load_model(str(base)).get_input_embeddings().num_embeddings
    tokenizer = load_tokenizer(str(base))
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|beyond|>"]}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(base)
    prepare_base_model(str(base), str(tmp_path / "out"))
    assert load_model(str(tmp_path / "out")).get_input_embeddings().num_embeddings == rows
    assert_prepared(base, tmp_path / "out", "<|reserved_special_token_0|>")


def test_sampling_settings_that_transformers_would_not_save_do_not_stop_it(tmp_path, caplog):
    base, output = save_without_pad(tmp_path / "base", "<|reserved_special_token_0|>"), tmp_path / "out"
    edit_json(base / "generation_config.json", do_sample=False, temperature=0.6)
    prepare_base_model(str(base), str(output))
    settings = json.loads((output / "generation_config.json").read_text())
    assert (settings["do_sample"], settings["temperature"]) == (True, 0.6)
    assert "do_sample was set" in caplog.text


@pytest.mark.parametrize("pad", ["<s>", "</s>"])
def test_pad_that_is_eos_or_bos_is_replaced(tmp_path, pad):
    base, output = save_without_pad(tmp_path / "base", "<|reserved_special_token_0|>", pad=pad), tmp_path / "out"
    assert load_tokenizer(str(base)).pad_token == pad
    assert prepare_base_model(str(base), str(output)).pad_choice == "reserved"
    assert_prepared(base, output, "<|reserved_special_token_0|>")


def test_model_with_a_pad_of_its_own_is_copied_byte_for_byte(base, tmp_path):
    done = prepare_base_model(str(base), str(tmp_path / "out"))
    assert done.pad_choice == "kept"
    assert "has a pad token of its own already, <pad>; nothing had to change, all files were copied" in done.describe()
    assert hash_files(tmp_path / "out") == hash_files(base)


def test_pad_token_can_be_chosen_but_not_as_eos_or_bos(tmp_path):
    reserved = ("<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
    base, output = save_without_pad(tmp_path / "base", *reserved), tmp_path / "out"
    for taken in ("</s>", "<s>"):
        with pytest.raises(TemplateError, match="eos or bos"):
            prepare_base_model(str(base), str(output), pad_token=taken)
    assert prepare_base_model(str(base), str(output), pad_token=reserved[1]).pad_choice == "reserved"
    assert_prepared(base, output, reserved[1])


def test_pad_token_that_the_template_writes_is_refused(tmp_path):
    base = save_without_pad(tmp_path / "base")
    with pytest.raises(TemplateError, match="into every prompt"):
        prepare_base_model(str(base), str(tmp_path / "out"), pad_token="<|im_start|>")


def test_word_of_the_vocabulary_is_refused_as_pad_token(tmp_path):
    # As a special token it would be cut out of every text that holds the word.
    base = save_without_pad(tmp_path / "base")
    with pytest.raises(TemplateError, match="forge 'the'"):
        prepare_base_model(str(base), str(tmp_path / "out"), pad_token="the")


def test_special_tokens_of_the_base_stay_special(tmp_path):
    base, output = save_without_pad(tmp_path / "base", "<|reserved_special_token_0|>"), tmp_path / "out"
    prepare_base_model(str(base), str(output))
    before, after = (load_tokenizer(str(folder)) for folder in (base, output))
    assert {t.content for t in before.added_tokens_decoder.values() if t.special} == {
        t.content for t in after.added_tokens_decoder.values() if t.special
    }
    assert after("<|im_end|>", add_special_tokens=False) == before("<|im_end|>", add_special_tokens=False)


def test_dtype_of_the_written_weights_can_be_chosen(base, tmp_path):
    done = prepare_base_model(str(base), str(tmp_path / "out"), dtype="bfloat16")
    assert "copied" not in done.describe()
    weights = load_file(tmp_path / "out/model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert load_model(str(tmp_path / "out"), dtype="auto").dtype == torch.bfloat16


# ---- preparing: the chat template -----------------------------------------------------------------------------------


def test_todays_date_is_frozen_and_said(tmp_path):
    base = save_tiny_checkpoint(tmp_path / "base", tokenizer=make_small_tokenizer(DATED))
    done = prepare_base_model(str(base), str(tmp_path / "out"))
    assert done.frozen_formats == ["%d %b %Y"]
    assert "date in its chat template was frozen (%d %b %Y)" in done.describe()
    text = load_tokenizer(str(tmp_path / "out")).apply_chat_template([{"role": "user", "content": "Q"}], tokenize=False)
    assert text.startswith("Today Date: 26 Jul 2024\n")
    assert str(datetime.date.today().year) not in text
    PromptEncoder(load_tokenizer(str(tmp_path / "out")))  # refuses a date that still runs


def test_base_without_chat_template_is_refused_and_one_can_be_given(tmp_path):
    base = save_tiny_checkpoint(tmp_path / "base", tokenizer=make_small_tokenizer(None))
    with pytest.raises(TemplateError) as error:
        prepare_base_model(str(base), str(tmp_path / "out"))
    assert_one_line(error, "no chat template", "--chat-template FILE")
    with pytest.raises(MissingPathError, match="no such file"):
        prepare_base_model(str(base), str(tmp_path / "out"), chat_template=str(tmp_path / "none.jinja"))
    (tmp_path / "chatml.jinja").write_text(CHATML)
    prepare_base_model(str(base), str(tmp_path / "out"), chat_template=str(tmp_path / "chatml.jinja"))
    assert load_tokenizer(str(tmp_path / "out")).chat_template == CHATML


def test_template_whose_labels_are_not_one_token_is_refused(tmp_path):
    shouting = CHATML.replace("message['content']", "message['content'] + ' ' + message['content'] * 2")
    base = save_tiny_checkpoint(tmp_path / "base", tokenizer=make_small_tokenizer(shouting))
    with pytest.raises(LabelTokenError, match="exactly one differing token"):
        prepare_base_model(str(base), str(tmp_path / "out"))


def test_control_text_that_escapes_is_refused_unless_accepted(tmp_path):
    specials = ("<|im_start|>", "<|im_end|>", "@@secret@@")
    base = save_tiny_checkpoint(tmp_path / "base", tokenizer=make_small_tokenizer(CHATML, specials))
    with pytest.raises(TemplateError) as error:
        prepare_base_model(str(base), str(tmp_path / "out"))
    assert_one_line(error, "'@@secret@@'", "--accept-control-text")
    prepare_base_model(str(base), str(tmp_path / "out"), accept_control_text=True)
    assert load_tokenizer(str(tmp_path / "out")).pad_token == "<pad>"


# ---- preparing: the output folder -----------------------------------------------------------------------------------


def test_non_empty_output_is_kept_unless_overwriting(base, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError) as error:
        prepare_base_model(str(base), str(output))
    assert_one_line(error, str(output), "--overwrite")
    assert hash_files(output).keys() == {"notes.txt"}
    prepare_base_model(str(base), str(output), overwrite=True)
    assert hash_files(output) == hash_files(base)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the old one is gone, under any name


def test_empty_output_folder_is_used(base, tmp_path):
    (tmp_path / "out").mkdir()
    prepare_base_model(str(base), str(tmp_path / "out"))
    assert hash_files(tmp_path / "out") == hash_files(base)


def test_failure_while_writing_leaves_the_old_output_whole_and_nothing_else(tmp_path, monkeypatch):
    base, output = save_without_pad(tmp_path / "base", "<|reserved_special_token_0|>"), tmp_path / "out"
    prepare_base_model(str(base), str(output))
    before = hash_files(output)

    def run_out_of_space(self, folder, **options):
        (Path(folder) / "tokenizer.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedTokenizerBase, "save_pretrained", run_out_of_space)
    with pytest.raises(OSError, match="No space"):
        prepare_base_model(str(base), str(output), overwrite=True)
    assert hash_files(output) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_copy_that_behaves_otherwise_than_its_base_is_not_delivered(tmp_path, monkeypatch):
    base, output = save_without_pad(tmp_path / "base", "<|reserved_special_token_0|>"), tmp_path / "out"
    save = transformers.LlamaForCausalLM.save_pretrained

    def save_damaged(self, folder, **options):
        save(self, folder, **options)
        edit_weights(Path(folder), lambda weights: weights[UP_PROJECTION].mul_(1.01))

    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", save_damaged)
    with pytest.raises(CheckpointError, match="logits of a probe text differ"):
        prepare_base_model(str(base), str(output))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_base_of_another_kind_or_place_is_refused_and_nothing_is_written(base, tmp_path):
    classifier = Path(shutil.copytree(base, tmp_path / "classifier"))
    edit_json(classifier / "config.json", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(CheckpointError, match="LlamaForSequenceClassification"):
        prepare_base_model(str(classifier), str(tmp_path / "out"))
    with pytest.raises(MissingPathError):
        prepare_base_model(str(tmp_path / "nowhere"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["classifier"]


@pytest.mark.parametrize("output", [".", "..", "padded"])
def test_output_is_never_in_or_around_the_base(copy_of_base, output):
    before = hash_files(copy_of_base)
    with pytest.raises(OutputExistsError, match="folder of the base model"):
        prepare_base_model(str(copy_of_base), str(copy_of_base / output), overwrite=True)
    assert hash_files(copy_of_base) == before


def test_file_is_never_replaced_by_a_folder(base, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputExistsError, match="is a file"):
        prepare_base_model(str(base), str(tmp_path / "out"), overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"


def test_old_output_is_back_when_the_new_one_cannot_take_its_place(base, tmp_path, monkeypatch):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    rename = Path.rename

    def refuse(self, place):
        if (self / "config.json").exists() and place == output:
            raise OSError(16, "Device or resource busy")
        return rename(self, place)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="busy"):
        prepare_base_model(str(base), str(output), overwrite=True)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["out", "out/notes.txt"]
