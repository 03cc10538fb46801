"""Every YAML in config/ and every JSON in deepspeed_configs/ is what axolotl and DeepSpeed will accept and use.

axolotl passes keys it does not know, plugins that cannot be imported and DeepSpeed files that are not there in
silence, so these tests look at its schema and at the files themselves.
"""

import importlib
import json
import logging
import re
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "config").glob("*.yml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEEPSPEED_FILES = sorted((ROOT / "deepspeed_configs").glob("*.json"))
H100 = {"bf16": True, "fp8": False, "tf32": True, "n_node": 1, "compute_capability": "sm_90"}
CPU = {"bf16": False, "fp8": False, "tf32": False, "n_gpu": 1, "n_node": 1, "compute_capability": None}


def load(path: Path) -> dict:
    """Return the YAML as plain Python values."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def each(paths: list[Path]):
    """Return the mark that runs a test for each of the configs."""
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


GPU_CONFIGS = [path for path in CONFIGS if not path.stem.endswith("-cpu")]
STANZAS = ("datasets", "test_datasets")
each_config = each(CONFIGS)
each_gpu_config = each(GPU_CONFIGS)
each_deepspeed_config = each([path for path in GPU_CONFIGS if "deepspeed" in load(path)])
each_deepspeed_file = pytest.mark.parametrize("deepspeed", DEEPSPEED_FILES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Keep axolotl's telemetry and the hub out: both are read from the environment when they are first imported."""
    monkeypatch.setenv("AXOLOTL_DO_NOT_TRACK", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def header(path: Path) -> list[str]:
    """Return the comment lines at the top of the file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first_other = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return lines[:first_other]


def count_processes(path: Path) -> int:
    """Return how many processes the launch line of the header starts, one a GPU."""
    return int(re.search(r"--nproc_per_node (\d+)", "\n".join(header(path)))[1])


def validated(path: Path, **overrides):
    """Return axolotl's own reading of the YAML, as if on as many H100s as it starts processes (or on a CPU)."""
    import torch
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.config import prepare_plugins, validate_config
    from axolotl.utils.dict import DictDefault

    PluginManager.get_instance().plugins.clear()  # a singleton: another config's plugins must not lend their keys
    cfg = DictDefault(load(path) | overrides)
    prepare_plugins(cfg)
    capabilities = H100 | {"n_gpu": count_processes(path)} if path in GPU_CONFIGS else CPU
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


def test_there_are_configs_for_the_gpu_models_the_ways_to_train_and_three_deepspeed_stages():
    models = {"gemma-2b-it", "gemma-2-9b-it", "llama3-8b-it", "mistral-7b-it", "qwen2.5-7b-instruct", "qwen3-8b"}
    ways = {"llama3-8b-it-fsdp2", "llama3-8b-it-lora", "llama3-8b-it-qlora"}
    assert models | ways <= {path.stem for path in CONFIGS}
    assert [path.name for path in DEEPSPEED_FILES] == [f"deepspeed_{stage}.json" for stage in (1, 2, 3)]


# What axolotl makes of them


@each_config
def test_axolotl_accepts_the_config_without_a_warning(path, axolotl_log):
    validated(path)
    assert [record.getMessage() for record in axolotl_log] == []


@each_deepspeed_config
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
def test_the_strategy_that_labels_one_token_a_row_reads_every_data_set(path):
    config = validated(path)  # what axolotl made of the stanza: it may take one for another kind of data set
    assert [stanza["type"] for stanza in config.datasets] == ["pair_pm.pair_rows"] * len(config.datasets)
    assert {stanza["type"] for stanza in config.test_datasets or []} <= {"pair_pm.both_orders"}
    assert all(callable(resolve(f"pair_pm.{name}.load")) for name in ("pair_rows", "both_orders"))
    assert all(set(stanza) == {"path", "ds_type", "type"} for key in STANZAS for stanza in load(path).get(key, []))


@each_config
def test_a_row_that_is_too_long_is_dropped_because_truncation_cuts_the_label(path):
    assert load(path)["excess_length_strategy"] == "drop"


@each_config
def test_no_validation_split_is_cut_from_the_training_pairs(path):
    assert not load(path).get("val_set_size")


@each_gpu_config
def test_the_evaluation_set_is_a_file_of_its_own(path):
    trained, held_out = ({stanza["path"] for stanza in load(path)[key]} for key in STANZAS)
    assert held_out
    assert not trained & held_out


@pytest.mark.parametrize("key", ["dataset_prepared_path", "output_dir"])
def test_no_two_configs_share_a_folder(key):
    folders = [load(path)[key] for path in CONFIGS if key in load(path)]
    assert len(set(folders)) == len(folders) > 0


# What it saves and logs


@each_gpu_config
def test_a_quarter_of_an_epoch_ends_with_an_evaluation_and_a_checkpoint(path):
    config = load(path)
    # axolotl acts every 1 / (times an epoch x epochs) of the run, and never where that is the whole run.
    for key in ("evals_per_epoch", "saves_per_epoch"):
        assert config[key] * config["num_epochs"] >= 4
    assert config["save_total_limit"] == 2


@each_gpu_config
def test_a_run_can_be_resumed_and_the_config_says_how(path):
    text = path.read_text(encoding="utf-8")
    assert "# --auto-resume-from-checkpoints true" in text
    resumed = validated(path, auto_resume_from_checkpoints="true")  # a string, as the command line hands it over
    assert resumed.auto_resume_from_checkpoints is True
    assert resumed.save_only_model is False


@each_gpu_config
def test_the_model_that_a_run_leaves_is_its_last_one(path):
    # Its last one has seen all data. To load the best instead, ZeRO-3 has to load a sharded checkpoint at the end.
    assert validated(path).load_best_model_at_end is False


@each_gpu_config
def test_the_disk_space_of_a_checkpoint_is_that_of_what_is_in_it(path):
    (stated,) = re.findall(r"([\d.]+) GB of disk a checkpoint", path.read_text(encoding="utf-8"))
    assert float(stated) == pytest.approx(checkpoint_gb(load(path)), rel=0.05)


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
    micro, accumulation, devices, total = (
        int(number)
        for number in re.search(r"(\d+)[^\dx=]* x [^\dx=]*(\d+)[^\dx=]* x [^\dx=]*(\d+)[^\dx=]* = (\d+)", text).groups()
    )
    config = load(path)
    assert (micro, accumulation, devices) == (
        config["micro_batch_size"],
        config["gradient_accumulation_steps"],
        count_processes(path),
    )
    assert micro * accumulation * devices == total


@each_gpu_config
def test_the_launch_line_shows_as_many_gpus_as_it_starts_processes(path):
    text = "\n".join(header(path))
    visible = re.search(r'CUDA_VISIBLE_DEVICES="([\d,]+)"', text)[1].split(",")
    assert len(visible) == count_processes(path)


@each_gpu_config
def test_what_shares_the_state_out_is_what_the_header_speaks_of(path):
    config, text = load(path), "\n".join(header(path))
    named = [f"deepspeed_configs/deepspeed_{stage}.json" for stage in re.findall(r"ZeRO-(\d)", text)]
    assert named == [config["deepspeed"]] if "deepspeed" in config else named == []
    assert ("FSDP2" in text) == (config.get("fsdp_version") == 2)
    assert "fsdp_config" in config or "deepspeed" in config or count_processes(path) == 1


# What the header says of memory: the README's formula, in bytes


@dataclass(frozen=True)
class Shape:
    """What memory depends on. The counts are those of transformers' model of the shape."""

    parameters: int
    vocabulary: int  # weights of the input embedding, and of the output head where it has its own
    layers: int
    hidden: int
    intermediate: int
    adapter_per_rank: int = 0  # LoRA's parameters at rank 1: inputs + outputs of all linear layers but the head


# Per layer: q and o 2 x (4096 + 4096), k and v 2 x (4096 + 1024), gate, up and down 3 x (4096 + 14336).
LLAMA3_8B = Shape(8_030_261_248, 2 * 128_256 * 4096, 32, 4096, 14336, adapter_per_rank=32 * 81_920)
SHAPES = {
    "google/gemma-2b-it": Shape(2_506_172_416, 256_000 * 2048, 18, 2048, 16384),
    "google/gemma-2-9b-it": Shape(9_241_705_984, 256_000 * 3584, 42, 3584, 14336),
    "./models/llama3_it_with_padding_token": LLAMA3_8B,
    "./models/mistral_7b_it_with_padding_token": Shape(7_248_023_552, 2 * 32_768 * 4096, 32, 4096, 14336),
    "Qwen/Qwen2.5-7B-Instruct": Shape(7_615_616_512, 2 * 152_064 * 3584, 28, 3584, 18944),
    "Qwen/Qwen3-8B": Shape(8_190_735_360, 2 * 151_936 * 4096, 36, 4096, 12288),
}


def count_adapter(config: dict) -> int:
    """Return how many parameters the adapter has, 0 where all of the model is trained."""
    return SHAPES[config["base_model"]].adapter_per_rank * config.get("lora_r", 0)


def memory_gb(config: dict, gpus: int) -> float:
    """Return the memory of a GPU by the README's formula, in units of 10^9 bytes."""
    shape, adapter = SHAPES[config["base_model"]], count_adapter(config)
    gathered = 0
    if adapter:
        linear_bytes = 0.52 if config.get("load_in_4bit") else 2
        state = 2 * shape.vocabulary + linear_bytes * (shape.parameters - shape.vocabulary) + 16 * adapter
    elif "fsdp_config" in config or config["deepspeed"].endswith("_3.json"):
        state, gathered = shape.parameters * 16 / gpus, 4 * shape.vocabulary
    else:
        assert config["deepspeed"].endswith("_1.json")
        state = shape.parameters * (4 + 12 / gpus)
    checkpoints = 2 * shape.layers * shape.hidden
    layer = 54 * shape.hidden + 25 * shape.intermediate if adapter else 36 * shape.hidden + 14 * shape.intermediate
    tokens = config["micro_batch_size"] * config["sequence_len"]
    return (state + gathered + tokens * (checkpoints + layer)) / 1e9 + 3


def checkpoint_gb(config: dict) -> float:
    """Return the disk space of a checkpoint: whole weights, and what training keeps for each parameter."""
    parameters, adapter = SHAPES[config["base_model"]].parameters, count_adapter(config)
    if adapter:
        return 12 * adapter / 1e9  # the adapter and its two moments, in float32
    if "fsdp_config" in config:
        return 16 * parameters / 1e9  # float32 weights, FSDP's own copy of them, and two moments
    # Bfloat16 weights, float32 master weights and two moments; ZeRO-1 puts the weights beside them once more.
    return (16 if config["deepspeed"].endswith("_1.json") else 14) * parameters / 1e9


@each([path for path in GPU_CONFIGS if "fsdp_config" in load(path)])
def test_fsdp_shares_gradients_out_after_each_micro_batch_as_the_formula_counts_them(path):
    # Otherwise every GPU sums them up whole until the last micro-batch of a step, 2 bytes a parameter.
    assert validated(path).accelerator_config == {"gradient_accumulation_kwargs": {"sync_each_batch": True}}


def test_the_memory_formula_by_hand():
    # ZeRO-3: 7.248e9 x 16 / 4 = 28.99; vocabulary 0.2684e9 x 4 = 1.07; 8 x 3072 tokens x (32 x 4096 x 2 = 262,144 of
    # checkpoints and 36 x 4096 + 14 x 14336 = 348,160 of a layer) = 15.00; and 3.
    assert memory_gb(load(ROOT / "config" / "mistral-7b-it.yml"), 4) == pytest.approx(48.07, abs=0.01)


@each_gpu_config
def test_the_memory_that_the_header_states_is_that_of_the_formula_and_fits(path):
    text = "\n".join(header(path))
    assert "by arithmetic, not measured" in text
    (stated,) = map(int, re.findall(r"about (\d+) GB", text))
    needed = memory_gb(load(path), count_processes(path))
    assert stated == pytest.approx(needed, rel=0.03)
    gpus, size = map(int, re.search(r"GPUs: (\d+) x (\d+) GB", text).groups())
    assert gpus == count_processes(path)
    assert needed < 0.9 * size * 2**30 / 1e9  # cards are sold in units of 2^30 bytes


@each_config
def test_the_readme_lists_the_config_with_its_processes_batch_and_memory(path):
    (row,) = re.findall(rf"^\| `config/{re.escape(path.name)}` \|.*", README, re.MULTILINE)
    _, _, _, gpus, batch, memory, _ = (cell.strip() for cell in row.split("|"))
    config = load(path)
    total = config["micro_batch_size"] * config["gradient_accumulation_steps"] * count_processes(path)
    assert batch.startswith(f"{total} ")
    if path in GPU_CONFIGS:
        assert gpus.startswith(f"{count_processes(path)} x")
        assert re.search(r"about \d+ GB", "\n".join(header(path)))[0] in memory


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
    assert parsed.grad_accum_dtype is None  # gradients have the weights' type, as the memory formula counts them
    assert parsed.gradient_accumulation_steps == 4
    assert parsed.gradient_clipping == 1.0
    assert parsed.zero_config.gather_16bit_weights_on_model_save is (parsed.zero_optimization_stage == 3)
