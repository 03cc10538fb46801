"""The card `pair_pm.json` that a trained model carries: how it was trained, and whether it is still the same.

Three kinds of field. *checked*: recomputed on loading, a difference refuses. *used*: read by the scorer, type and
range checked. *informative*: a difference is logged. A digest over the card shows that the rest was edited by hand.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from pair_pm.errors import RecipeError
from pair_pm.prompt import CONTROL_SET_VERSION, PROMPT_FORMAT_VERSION
from pair_pm.tokens import PROBE_PROMPTS, PromptEncoder, find_forgeable_text, require_chat_template

logger = logging.getLogger(__name__)

CARD_NAME = "pair_pm.json"
_FORMAT_VERSION = 1
_VERSIONED_PACKAGES = ("pair-pm", "transformers", "tokenizers", "torch", "axolotl")
# How far two runs of the same weights may lie apart, on other kernels, in other batches or on another machine: bfloat16
# moves a log-probability by a few hundredths of its size. Other weights move that of the losing label by whole units.
_ABSOLUTE_TOLERANCE, _RELATIVE_TOLERANCE = 0.5, 0.05


@dataclass(frozen=True)
class Recipe:
    """What a card says of a model beyond what is checked.

    Attributes:
        sequence_len: Longest training sequence in tokens, label and closing included; None where nobody said.
        temperature: Divides the log-odds of each order; fitted on labelled data, 1 before.
        order_offset: Log-odds before temperature that slot A has too many; fitted, used only where a single order is
            scored.
        probe_logprobs: Log-probabilities of the labels after each of `PROBE_PROMPTS`, by which a server that runs the
            weights is known; None where nobody measured them.
        accepted_control_text: Special tokens and turn marks that content can forge, accepted when training.
        versions: Of the packages that made the model.
        training: What the training run wants remembered.
    """

    sequence_len: int | None = None
    temperature: float = 1.0
    order_offset: float = 0.0
    probe_logprobs: tuple[tuple[float, float], ...] | None = None
    accepted_control_text: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=lambda: installed_versions())
    training: Mapping[str, object] = field(default_factory=dict)


def are_of_same_weights(found: Sequence[float], known: Sequence[float]) -> bool:
    """Return whether log-probabilities of labels, or log-odds of them, are the known ones up to rounding.

    Rounding is that of bfloat16; NaN is never the same.
    """
    return all(
        abs(one - other) <= _ABSOLUTE_TOLERANCE + _RELATIVE_TOLERANCE * abs(other)
        for one, other in zip(found, known, strict=True)
    )


def describe_run(cfg, encoder: PromptEncoder) -> Recipe:
    """Return what the card says of a training run, by its config."""
    return Recipe(
        sequence_len=cfg.sequence_len,
        accepted_control_text=tuple(find_forgeable_text(encoder.tokenizer)) if cfg.accept_control_text else (),
        training={
            "base_model": cfg.base_model,
            "datasets": [dataset.get("path") for dataset in cfg.datasets or []],
        },
    )


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that decide a model's numbers."""
    versions = {}
    for package in _VERSIONED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def make_card(encoder: PromptEncoder, recipe: Recipe) -> dict[str, dict]:
    """Return what a card says, by kind of field: checked, used, informative."""
    return {
        "checked": describe_encoder(encoder),
        "used": {
            "sequence_len": recipe.sequence_len,
            "temperature": recipe.temperature,
            "order_offset": recipe.order_offset,
            "probe_logprobs": recipe.probe_logprobs and [list(labels) for labels in recipe.probe_logprobs],
        },
        "informative": {
            "accepted_control_text": list(recipe.accepted_control_text),
            "versions": dict(recipe.versions),
            "training": dict(recipe.training),
        },
    }


def write_recipe(folder: Path, encoder: PromptEncoder, recipe: Recipe) -> Path:
    """Write the card of the model in `folder`, whole or not at all, and return its path."""
    card = make_card(encoder, recipe)
    path = Path(folder) / CARD_NAME
    fresh = path.with_name(f".{CARD_NAME}.{os.getpid()}")
    try:
        fresh.write_text(json.dumps({**card, "digest": _digest(card)}, indent=2) + "\n", encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def read_recipe(path: Path, encoder: PromptEncoder) -> Recipe:
    """Return what the card says, after checking it against the tokenizer and template beside it.

    Raises:
        RecipeError: a checked field differs, a used one is out of range, or the card was edited by hand.
    """
    card = _load_card(path)
    for name, expected in describe_encoder(encoder).items():
        found = card["checked"].get(name)
        if found != expected:
            raise RecipeError(
                f"{path}: {name} is {found!r}, but this tokenizer and chat template give {expected!r}; a model is "
                "required to be served with what it was trained with; restore the files of its folder"
            )
    used = card["used"]
    _check_used(path, used)
    if card.get("digest") != _digest({part: value for part, value in card.items() if part != "digest"}):
        raise RecipeError(f"{path}: digest does not fit the card, so it was edited by hand; the original is required")
    informative, probes = card["informative"], used.get("probe_logprobs")  # which older cards lack
    versions = informative.get("versions", {})
    _log_version_changes(path, versions)
    return Recipe(
        sequence_len=used["sequence_len"],
        temperature=float(used["temperature"]),
        order_offset=float(used["order_offset"]),
        probe_logprobs=probes and tuple((float(a), float(b)) for a, b in probes),
        accepted_control_text=tuple(informative.get("accepted_control_text", ())),
        versions=versions,
        training=informative.get("training", {}),
    )


def describe_encoder(encoder: PromptEncoder) -> dict[str, object]:
    """Return what decides a prompt's ids: the fields of a card that are checked."""
    labels = encoder.labels
    probe_ids = encoder.encode(PROBE_PROMPTS)
    return {
        "format_version": _FORMAT_VERSION,
        "prompt_format_version": PROMPT_FORMAT_VERSION,
        "control_set_version": CONTROL_SET_VERSION,
        "chat_template_sha256": hashlib.sha256(require_chat_template(encoder.tokenizer).encode()).hexdigest(),
        "bos_count": labels.bos_count,
        "label_ids": list(labels.label_ids),
        "header_ids": list(labels.header_ids),
        "probe_ids_sha256": hashlib.sha256(json.dumps(probe_ids).encode()).hexdigest(),
    }


def _load_card(path: Path) -> dict:
    try:
        card = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{path}: not JSON: {error}; the card that training wrote is required") from error
    for part in ("checked", "used", "informative"):
        if not isinstance(card, dict) or not isinstance(card.get(part), dict):
            raise RecipeError(f"{path}: the part {part!r} is missing; the card that training wrote is required")
    return card


def _check_used(path: Path, used: Mapping) -> None:
    requirements = {
        "sequence_len": ("null or an integer above 0", lambda x: x is None or (type(x) is int and x > 0)),
        "temperature": ("a finite number above 0", lambda x: _is_finite(x) and x > 0),
        "order_offset": ("a finite number", _is_finite),
        "probe_logprobs": (f"null or {len(PROBE_PROMPTS)} pairs of finite numbers", _is_null_or_pairs),
    }
    for name, (required, holds) in requirements.items():
        if not holds(used.get(name)):
            raise RecipeError(f"{path}: {name} is {used.get(name)!r}; {required} is required")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_null_or_pairs(value: object) -> bool:
    return value is None or (
        isinstance(value, list)
        and len(value) == len(PROBE_PROMPTS)
        and all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_finite, pair)) for pair in value)
    )


def _log_version_changes(path: Path, versions: Mapping[str, str]) -> None:
    for package, now in installed_versions().items():
        then = versions.get(package)
        if then and then != now:
            logger.warning("%s: trained with %s %s, served with %s", path, package, then, now)


def _digest(card: Mapping) -> str:
    canonical = json.dumps(card, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
