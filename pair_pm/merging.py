"""The end of merging an adapter: axolotl merges the weights, and here they are verified and become a whole checkpoint.

    python -m axolotl.cli.merge_lora config/llama3-8b-it-lora.yml --lora-model-dir outputs/llama3-8b-it-lora
    python prepare_model.py --finish-merge outputs/llama3-8b-it-lora/merged

axolotl's command calls no plugin at its end and takes all files but the weights from the base model, whose chat
template, tokenizer and missing card are not those of the training run.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from pair_pm.checkpoint import load_model, load_tokenizer
from pair_pm.errors import CheckpointError, MissingPathError
from pair_pm.recipe import CARD_NAME, read_recipe
from pair_pm.tokens import PROBE_PROMPTS, PromptEncoder

_ADAPTER_CONFIG = "adapter_config.json"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("tokenizer.model", "vocab.json", "merges.txt"),
)
# How far a probability may move by merging: the sum of base and adapter is rounded to the weights' type.
_TOLERANCE = {"float32": 1e-4}
_ROUNDED_TOLERANCE = 0.05


def finish_merge(merged: str, adapter: str | None = None) -> float:
    """Verify merged weights, and put the training run's tokenizer, chat template and card beside them.

    Args:
        merged: Folder that axolotl merged into.
        adapter: Folder of the adapter; default: the folder around it, where axolotl puts it.
    Returns: The largest difference of a label's probability between base with adapter and merged model.
    Raises:
        MissingPathError: a folder, or the adapter's card or configuration, is not there.
        CheckpointError: the merged model does not give the adapter's probabilities.
        RecipeError: the adapter's card does not describe its tokenizer.
    """
    target, source = Path(merged), Path(adapter) if adapter else Path(merged).resolve().parent
    for path in (target / "config.json", source / _ADAPTER_CONFIG, source / CARD_NAME):
        if not path.exists():
            raise MissingPathError(
                f"{path}: not there; a merged model, and the trained adapter with its card, are required; name the "
                "adapter's folder with --adapter"
            )
    encoder = PromptEncoder(load_tokenizer(str(source)))
    read_recipe(source / CARD_NAME, encoder)
    base = json.loads((source / _ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    # One after the other: two models of 8 billion parameters need not fit side by side.
    expected, _ = _score_probes(encoder, base, str(source))
    found, dtype = _score_probes(encoder, str(target))
    difference = float(np.abs(found - expected).max())
    allowed = _TOLERANCE.get(dtype, _ROUNDED_TOLERANCE)
    if not difference <= allowed:
        raise CheckpointError(
            f"{target}: on probe prompts a label's probability differs by {difference:.2g} from {base} with the "
            f"adapter {source}; at most {allowed:g} is required in {dtype}; merge again with axolotl's merge_lora"
        )
    for name in (*_TOKENIZER_FILES, CARD_NAME):
        if (source / name).exists():
            _copy_whole(source / name, target / name)
        else:
            (target / name).unlink(missing_ok=True)  # the base model's
    read_recipe(target / CARD_NAME, PromptEncoder(load_tokenizer(str(target))))
    return difference


def _score_probes(encoder: PromptEncoder, name: str, adapter: str | None = None) -> tuple[np.ndarray, str]:
    """Return the labels' probabilities after probe prompts, shape (prompts, 2), and the type of the weights."""
    from pair_pm.engines.transformers_engine import TransformersEngine

    model = load_model(name, adapter=adapter, device="cpu", dtype="auto")
    engine = TransformersEngine(model, encoder.labels.label_ids)
    return np.exp(engine.label_logprobs(encoder.encode(PROBE_PROMPTS))), str(model.dtype).removeprefix("torch.")


def _copy_whole(source: Path, target: Path) -> None:
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, fresh)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)
