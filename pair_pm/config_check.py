"""A training config before anything is tokenised: what it names that is not there, and what axolotl says of it."""

import contextlib
import difflib
import importlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from pair_pm.errors import ConfigError, MissingPathError, PairPMError
from pair_pm.old_config import STANZA_TYPES

_FILE_SUFFIXES = (".json", ".jsonl", ".parquet", ".arrow", ".csv", ".txt", ".gz", ".zst")
_LONGEST_REASON = 400


def read_config(path: str) -> dict:
    """Return the keys of a config as they stand in it.

    Raises:
        MissingPathError: there is no such file.
        ConfigError: it is not a mapping in YAML.
    """
    if not Path(path).is_file():
        raise MissingPathError(f"{path}: no such file; an axolotl config is required")
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {_one_line(error)}; YAML is required") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: it holds no keys; an axolotl config is required")
    return raw


def refuse_missing(raw: Mapping) -> None:
    """Refuse what is named and not there, all at once: axolotl finds them one by one, some of them late."""
    problems = []
    base = str(raw.get("base_model"))
    if _is_local(base) and not Path(base).is_dir():
        problems.append(f"base_model: {base}: no such folder; a checkpoint is required there; run prepare_model.py")
    for key in STANZA_TYPES:
        for path in (str(stanza.get("path")) for stanza in raw.get(key) or []):
            if _is_local(path) and not Path(path).exists():
                problems.append(f"{key}: {path}: no such file; A/B rows are required; run process_pair_data.py")
    deepspeed = raw.get("deepspeed")
    if isinstance(deepspeed, str) and not Path(deepspeed).is_file():
        problems.append(f"deepspeed: {deepspeed}: no such file; one of deepspeed_configs is required")
    if problems:
        raise ConfigError("\n".join(problems))


def _is_local(name: str) -> bool:
    """Return whether a name can only be a path: the hub knows `name` and `owner/name`, without a file's ending."""
    if "://" in name:
        return False
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(_FILE_SUFFIXES)


def find_unknown_keys(raw: Mapping) -> list[str]:
    """Return a line for each top-level key that neither axolotl nor a plugin of the config knows; axolotl drops them.

    Raises:
        ConfigError: a plugin cannot be imported, which axolotl would only log.
    """
    from axolotl.integrations.base import load_plugin
    from axolotl.utils.schemas.config import AxolotlInputConfig

    fields = dict(AxolotlInputConfig.model_fields)
    for name in raw.get("plugins") or []:
        try:
            arguments = load_plugin(name).get_input_args()
            fields |= _import(arguments).model_fields if arguments else {}
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"plugins: {name}: {_one_line(error)}; a class that can be imported is required"
            ) from error
    known = {*fields, *(field.alias for field in fields.values() if field.alias)}
    return [_describe_unknown(key, known) for key in raw if key not in known and key.partition("__")[0] not in known]


def _import(name: str):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _describe_unknown(key: str, known: set[str]) -> str:
    closest = difflib.get_close_matches(str(key), sorted(known), n=1)
    hint = f"; is {closest[0]} meant?" if closest else ""
    return f"{key}: neither axolotl nor a plugin knows this key, so it does nothing; a known one is required{hint}"


def load_config(path: str, raw: Mapping, overrides: Mapping):
    """Return the config as axolotl validates and completes it."""
    from axolotl.cli.config import load_cfg
    from axolotl.utils.schemas.config import AxolotlInputConfig

    # Without this axolotl opens an NCCL group for a config that names DeepSpeed.
    os.environ["AXOLOTL_IS_PREPROCESS"] = "1"
    try:
        # axolotl starts a new debug.log in output_dir: the one of a run that is there is not a check's to overwrite.
        with tempfile.TemporaryDirectory() as folder, explained(path):
            cfg = load_cfg(path, **{**overrides, "output_dir": folder}, is_preprocess=True)
    finally:
        del os.environ["AXOLOTL_IS_PREPROCESS"]
    cfg.output_dir = raw.get("output_dir") or AxolotlInputConfig.model_fields["output_dir"].default
    cfg.is_preprocess = False  # with it axolotl would tokenise what is already prepared
    return cfg


@contextlib.contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn what axolotl and its libraries raise for a config or data that cannot be used into lines of our form."""
    from pydantic import ValidationError

    try:
        yield
    except (PairPMError, AssertionError):
        raise
    except ValidationError as error:
        raise ConfigError("\n".join(_describe_invalid(where, one) for one in error.errors())) from error
    except Exception as error:  # broken files and names raise nearly anything there
        causes = [error]
        while (cause := causes[-1].__cause__) is not None:
            causes.append(cause)
        found = ": ".join(dict.fromkeys(f"{type(one).__name__} {_one_line(one)}" for one in (error, causes[-1])))
        raise ConfigError(f"{where}: {found[:_LONGEST_REASON]}; what axolotl can load is required") from error


def _describe_invalid(where: str, error: Mapping) -> str:
    key = ".".join(map(str, error["loc"])) or "the config"
    return f"{where}: {key}: {_one_line(error['msg']).removeprefix('Value error, ')}; what axolotl accepts is required"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
