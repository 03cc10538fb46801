"""Every YAML in config/ and every JSON in deepspeed_configs/ is what axolotl and DeepSpeed will accept and use.

axolotl passes keys it does not know, plugins that cannot be imported and DeepSpeed files that are not there in
silence, so these tests look at its schema and at the files themselves.
"""

import importlib
import json
import logging
import re
import typing
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "config").glob("*.yml"))
DEEPSPEED_FILES = sorted((ROOT / "deepspeed_configs").glob("*.json"))
H100 = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 4, "n_node": 1, "compute_capability": "sm_90"}
CPU = {"bf16": False, "fp8": False, "tf32": False, "n_gpu": 1, "n_node": 1, "compute_capability": None}

each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
each_gpu_config = pytest.mark.parametrize(
    "path", [path for path in CONFIGS if not path.stem.endswith("-cpu")], ids=lambda path: path.stem
)
each_deepspeed_file = pytest.mark.parametrize("deepspeed", DEEPSPEED_FILES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Keep axolotl's telemetry and the hub out: both are read from the environment when they are first imported."""
    monkeypatch.setenv("AXOLOTL_DO_NOT_TRACK", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def load(path: Path) -> dict:
    """Return the YAML as plain Python values."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def header(path: Path) -> list[str]:
    """Return the comment lines at the top of the file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first_other = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return lines[:first_other]


def validated(path: Path, **overrides):
    """Return axolotl's own reading of the YAML, as if on four H100s (or on a CPU for a config made for one)."""
    import torch
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.config import prepare_plugins, validate_config
    from axolotl.utils.dict import DictDefault

    PluginManager.get_instance().plugins.clear()  # a singleton: another config's plugins must not lend their keys
    cfg = DictDefault(load(path) | overrides)
    prepare_plugins(cfg)
    capabilities = CPU if path.stem.endswith("-cpu") else H100
    return validate_config(cfg, capabilities, {"torch_version": torch.__version__.partition("+")[0]})


def schema(path: Path) -> list[type]:
    """Return axolotl's schema and those of the config's plugins."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    names = [resolve(name)().get_input_args() for name in load(path).get("plugins", [])]
    return [AxolotlInputConfig, *(resolve(name) for name in names if name)]


def resolve(dotted: str):
    """Return the object of a dotted name."""
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def fields_of(models: list[type]) -> dict:
    """Return the fields of the models under the names that YAML may use: a field with an alias goes by the alias."""
    return {field.alias or name: field for model in models for name, field in model.model_fields.items()}


def models_in(annotation) -> list[type]:
    """Return the pydantic models that an annotation mentions, at any depth."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and not typing.get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in typing.get_args(annotation) for model in models_in(part)]


def unknown_keys(values: dict, models: list[type], where: str = "") -> list[str]:
    """Return the keys, nested ones as ``parent.child``, that no single one of the models has; each model alone."""
    fields = fields_of(models)
    unknown = [f"{where}{key}" for key in values if key not in fields]
    for key in values.keys() & fields.keys():
        nested = models_in(fields[key].annotation)
        children = values[key] if isinstance(values[key], list) else [values[key]]
        for child in (child for child in children if nested and isinstance(child, dict)):
            unknown += min((unknown_keys(child, [model], f"{where}{key}.") for model in nested), key=len)
    return unknown


def empty_keys(values, where: str = "") -> list[str]:
    """Return the keys, at any depth, that hold nothing."""
    if values is None or values == "" or values == [] or values == {}:
        return [where]
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [found for key, value in pairs for found in empty_keys(value, f"{where}.{key}".strip("."))]


@pytest.fixture
def axolotl_log():
    """The records of warnings that axolotl logs, whatever its logging set-up does with them."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    logger = logging.getLogger("axolotl")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def test_there_are_configs_for_the_four_gpu_models_and_three_deepspeed_stages():
    assert {"gemma-2b-it", "gemma-2-9b-it", "llama3-8b-it", "mistral-7b-it"} <= {path.stem for path in CONFIGS}
    assert [path.name for path in DEEPSPEED_FILES] == [f"deepspeed_{stage}.json" for stage in (1, 2, 3)]


# What axolotl makes of them


@each_config
def test_axolotl_accepts_the_config_without_a_warning(path, axolotl_log):
    validated(path)
    assert [record.getMessage() for record in axolotl_log] == []


@each_gpu_config
@each_deepspeed_file
def test_axolotl_accepts_the_config_with_each_deepspeed_file(path, deepspeed, axolotl_log):
    name = str(deepspeed.relative_to(ROOT))
    assert validated(path, deepspeed=name).deepspeed == name
    assert [record.getMessage() for record in axolotl_log] == []


@each_config
def test_every_key_is_a_field_of_the_schema(path):
    assert unknown_keys(load(path), schema(path)) == []


@each_config
def test_no_key_is_deprecated(path):
    from axolotl.utils.schemas.deprecated import DeprecatedParameters

    fields = fields_of(schema(path))
    deprecated = {name for name, field in fields.items() if field.deprecated} | DeprecatedParameters.model_fields.keys()
    assert load(path).keys() & deprecated == set()


@each_config
def test_no_key_is_empty(path):
    assert empty_keys(load(path)) == []


@each_config
def test_the_plugins_can_be_imported_and_are_plugins(path):
    from axolotl.integrations.base import BasePlugin

    plugins = load(path)["plugins"]
    assert "pair_pm.training.PairPMPlugin" in plugins
    assert all(issubclass(resolve(name), BasePlugin) for name in plugins)


@each_config
def test_the_deepspeed_file_that_it_names_exists(path):
    name = load(path).get("deepspeed")
    assert name is None or (ROOT / name) in DEEPSPEED_FILES


# What it trains on


@each_config
def test_only_the_label_of_every_row_bears_loss(path):
    config = validated(path)  # a stanza that axolotl took for another kind of data set would lose these keys here
    for stanza in config.datasets + (config.test_datasets or []):
        assert stanza["type"] == "chat_template"
        assert stanza["roles_to_train"] == ["assistant"]
        assert stanza["train_on_eos"] == "none"


@each_config
def test_a_row_that_is_too_long_is_dropped_because_truncation_cuts_the_label(path):
    assert load(path)["excess_length_strategy"] == "drop"


@each_config
def test_no_validation_split_is_cut_from_the_training_pairs(path):
    assert not load(path).get("val_set_size")


@each_gpu_config
def test_the_evaluation_set_is_a_file_of_its_own_read_like_the_training_set(path):
    config = load(path)
    trained, held_out = config["datasets"], config["test_datasets"]
    assert not {stanza["path"] for stanza in trained} & {stanza["path"] for stanza in held_out}
    assert [stanza | {"path": ""} for stanza in trained] == [stanza | {"path": ""} for stanza in held_out]


@pytest.mark.parametrize("key", ["dataset_prepared_path", "output_dir"])
def test_no_two_configs_share_a_folder(key):
    folders = [load(path)[key] for path in CONFIGS if key in load(path)]
    assert len(set(folders)) == len(folders) > 0


# What it saves and logs


@each_gpu_config
def test_evaluation_and_one_checkpoint_an_epoch_really_happen(path):
    config = load(path)
    assert config["save_strategy"] == "epoch"
    # axolotl evaluates every 1 / (evals_per_epoch * num_epochs) of the run, and never where that is the whole run.
    assert config["evals_per_epoch"] * config["num_epochs"] > 1


@each_gpu_config
def test_run_tracking_is_named_but_off(path):
    config = load(path)
    assert config["wandb_mode"] == "disabled"
    assert config["wandb_project"]
    assert config["wandb_name"] == path.stem
    assert "--wandb-mode online" in path.read_text(encoding="utf-8")


# What the header says


@each_config
def test_the_header_is_five_lines(path):
    assert len(header(path)) == 5


@each_config
def test_the_launch_line_names_the_file_itself(path):
    named = re.findall(r"-m axolotl\.cli\.train (\S+)", "\n".join(header(path)))
    assert named == [f"config/{path.name}"]


@each_config
def test_the_batch_arithmetic_of_the_header_is_that_of_the_keys(path):
    text = "\n".join(header(path))
    ranks = int((re.search(r"--nproc_per_node[ =](\d+)", text) or [0, 1])[1])
    micro, accumulation, devices, total = (
        int(number)
        for number in re.search(r"(\d+)[^\dx=]* x [^\dx=]*(\d+)[^\dx=]* x [^\dx=]*(\d+)[^\dx=]* = (\d+)", text).groups()
    )
    config = load(path)
    assert (micro, accumulation, devices) == (config["micro_batch_size"], config["gradient_accumulation_steps"], ranks)
    assert micro * accumulation * devices == total


@each_gpu_config
def test_the_launch_line_shows_as_many_gpus_as_it_starts_processes(path):
    text = "\n".join(header(path))
    visible = re.search(r'CUDA_VISIBLE_DEVICES="([\d,]+)"', text)[1].split(",")
    assert len(visible) == int(re.search(r"--nproc_per_node (\d+)", text)[1])


@each_gpu_config
def test_the_deepspeed_stage_that_the_header_speaks_of_is_the_one_it_names(path):
    stage = re.search(r"ZeRO-(\d)", "\n".join(header(path)))[1]
    assert load(path)["deepspeed"] == f"deepspeed_configs/deepspeed_{stage}.json"


# The DeepSpeed files


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "float32"])
@each_deepspeed_file
def test_deepspeed_parses_the_file_once_the_trainer_has_filled_it_in(deepspeed, bf16, monkeypatch, tmp_path):
    from deepspeed.runtime.config import DeepSpeedConfig
    from transformers import LlamaConfig, LlamaForCausalLM, training_args

    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    args = training_args.TrainingArguments(
        output_dir=str(tmp_path), deepspeed=str(deepspeed), bf16=bf16, gradient_accumulation_steps=4, max_grad_norm=1.0
    )
    tiny = LlamaConfig(vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1)
    args.hf_deepspeed_config.trainer_config_finalize(args, LlamaForCausalLM(tiny), num_training_steps=10)
    filled = args.hf_deepspeed_config.config
    assert "auto" not in json.dumps(filled)

    parsed = DeepSpeedConfig(filled)
    assert f"deepspeed_{parsed.zero_optimization_stage}" == deepspeed.stem
    assert parsed.bfloat16_config.enabled is bf16
    assert parsed.float16_config.enabled is False
    assert parsed.gradient_accumulation_steps == 4
    assert parsed.gradient_clipping == 1.0
    assert parsed.zero_config.gather_16bit_weights_on_model_save is (parsed.zero_optimization_stage == 3)
