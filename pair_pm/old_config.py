"""An old training config -> the lines that replace its own.

Configs for this method used to name FastChat's strategies (`type: sharegpt.load_ultrachat`, `conversation: gemma`),
which axolotl no longer has and refuses. Later ones say `type: chat_template`, by which more than the label may bear
loss. This reads the raw YAML, because axolotl's own validation raises on the former.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import yaml

PLUGIN = "pair_pm.training.PairPMPlugin"
STANZA_TYPES = {"datasets": "pair_pm.pair_rows", "test_datasets": "pair_pm.both_orders"}

_DS_TYPES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".arrow": "arrow", ".csv": "csv"}
# What says where rows come from stays as it is.
_KEPT_KEYS = (
    *("path", "name", "split", "revision", "data_files", "ds_type", "trust_remote_code"),
    *("shards", "shards_idx", "preprocess_shards"),
)
_LABEL_ALONE = "the label alone bears loss"
_WHY_DROPPED = {
    "conversation": "the model's own chat template is used, as in serving",
    "chat_template": "the model's own is used, as in serving",
    "field_messages": "the column is messages, as process_pair_data.py writes it",
    "train_on_split": "split says it now",
    "roles_to_train": _LABEL_ALONE,
    "roles": "a row is one question of the user and one answer",
    "train_on_eos": _LABEL_ALONE,
    "train_on_eot": _LABEL_ALONE,
    "train_on_inputs": _LABEL_ALONE,
}
_WHY_DROPPED_ELSE = "rows are read as process_pair_data.py writes them"


@dataclass
class Replacement:
    """What is to stand in a config instead of its old lines.

    Attributes:
        lines: Top-level keys with their new values.
        reasons: What is dropped or changed, and why, a line each.
        problems: What is wrong with the old lines.
    """

    lines: dict = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_yaml(self) -> str:
        """Return the new lines as YAML, the reasons before them as comments."""
        comments = "".join(f"# {reason}\n" for reason in self.reasons)
        return comments + yaml.dump(self.lines, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow=False, indentless=False):
        """Indent the items of a list, as the configs do."""
        return super().increase_indent(flow, False)


def find_type_problems(config: Mapping) -> Iterator[str]:
    """Yield what is wrong with the types of the data sets' stanzas."""
    for key, type in STANZA_TYPES.items():
        for stanza in _stanzas(config, key):
            if stanza.get("type") != type:
                yield (
                    f"{key}: {stanza.get('path')} has type: {stanza.get('type')}; type: {type} is required, by which "
                    "the label alone bears loss; `python -m pair_pm.training check CONFIG` prints the stanza"
                )


def replace_old_lines(config: Mapping) -> Replacement | None:
    """Return what replaces the lines of a config that names other strategies or no plugin, None for one that is new."""
    replacement = Replacement(problems=list(find_type_problems(config)))
    if PLUGIN not in (config.get("plugins") or []):
        replacement.problems.append(f"plugins: {PLUGIN} is not among them; it is required: it trains and checks")
    if not replacement.problems:
        return None
    _replace_companions(config, replacement)
    for key in STANZA_TYPES:
        if stanzas := _stanzas(config, key):
            replacement.lines[key] = [_replace_stanza(key, stanza, replacement.reasons) for stanza in stanzas]
    return replacement


def _stanzas(config: Mapping, key: str) -> list[Mapping]:
    """Return the stanzas of a key; what is none, axolotl's validation refuses."""
    stanzas = config.get(key)
    return [one for one in stanzas if isinstance(one, Mapping)] if isinstance(stanzas, list) else []


def _replace_companions(config: Mapping, replacement: Replacement) -> None:
    """Add the lines that the stanzas need beside them, where the config does not have them."""
    plugins = config.get("plugins") or []
    if PLUGIN not in plugins:
        replacement.lines["plugins"] = [PLUGIN, *plugins]
    template = config.get("chat_template")
    if template != "tokenizer_default":
        replacement.lines["chat_template"] = "tokenizer_default"
        if template:
            replacement.reasons.append(f"chat_template: {template} is replaced: {_WHY_DROPPED['chat_template']}")
    if config.get("sample_packing") and config.get("eval_sample_packing") is not False:
        replacement.lines["eval_sample_packing"] = False
    if config.get("val_set_size"):
        replacement.lines["val_set_size"] = 0
        replacement.reasons.append(
            f"val_set_size: {config['val_set_size']} is replaced: it tears pairs apart; "
            "hold pairs out with process_pair_data.py --eval-fraction"
        )


def _replace_stanza(key: str, stanza: Mapping, reasons: list[str]) -> dict:
    """Return the new stanza of a data set, and add why it differs from the old one."""
    new = {name: stanza[name] for name in _KEPT_KEYS if stanza.get(name) is not None}
    if stanza.get("train_on_split"):
        new.setdefault("split", stanza["train_on_split"])
    if "ds_type" not in new and (ds_type := _guess_ds_type(str(stanza.get("path")))):
        new["ds_type"] = ds_type
    new["type"] = STANZA_TYPES[key]
    where = f"{key}, {stanza.get('path')}"
    for name in stanza:
        if name == "type" and stanza["type"] != new["type"]:
            reasons.append(f"{where}: type: {stanza['type']} is replaced: {_LABEL_ALONE}")
        elif name not in (*_KEPT_KEYS, "type"):
            reasons.append(f"{where}: {name}: {stanza[name]} is dropped: {_WHY_DROPPED.get(name, _WHY_DROPPED_ELSE)}")
    return new


def _guess_ds_type(path: str) -> str | None:
    """Return the kind of file that a name tells, None for folders and names on the hub."""
    name = path.removesuffix(".gz").removesuffix(".zst")
    return next((ds_type for suffix, ds_type in _DS_TYPES.items() if name.endswith(suffix)), None)
