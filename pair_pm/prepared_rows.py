"""Where a run's token rows are kept, so that rows made otherwise are never trained on.

axolotl keeps them in a folder of `dataset_prepared_path` that is named by the config: the names of files and of the
tokenizer, not what is in them. After a change of the chat template, the tokenizer or the data under the same names it
would serve the old rows. Here the folder's name is a digest of their content as well.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path

from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH

from pair_pm.recipe import describe_encoder
from pair_pm.tokens import PromptEncoder

logger = logging.getLogger("axolotl.pair_pm")

_CHUNK_BYTES = 1 << 20


def separate_prepared_rows(cfg, encoder: PromptEncoder) -> None:
    """Point `dataset_prepared_path` at a folder of its own for this encoder and these data sets.

    Rows that are there for others stay where they are, unused, which is said.
    """
    base = Path(cfg.dataset_prepared_path or DEFAULT_DATASET_PREPARED_PATH)
    folder = base / f"rows-{digest_rows(encoder, [*cfg.datasets, *(cfg.test_datasets or [])], cfg.eval_sequence_len)}"
    others = sorted(path.name for path in base.glob("*") if path.is_dir() and path != folder)
    if others and not folder.exists():
        logger.warning(
            "%s holds token rows that another chat template, tokenizer or version of the data made (%s); they are not "
            "used, and the rows are tokenised anew into %s",
            *(base, ", ".join(others[:3]) + (", …" if len(others) > 3 else ""), folder.name),
        )
    cfg.dataset_prepared_path = str(folder)


def digest_rows(encoder: PromptEncoder, datasets: Iterable, eval_sequence_len: int | None = None) -> str:
    """Return a digest of what decides the token rows and axolotl's own name for them leaves out.

    Args:
        encoder: Counts with its chat template and the whole of its tokenizer.
        datasets: Stanzas of a config; each counts by its names and its local content.
        eval_sequence_len: Of the config.
    """
    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    tokenizer = backend.to_str() if backend is not None else sorted(encoder.tokenizer.get_vocab().items())
    decisive = [describe_encoder(encoder), tokenizer, eval_sequence_len]
    hasher = hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=8)
    for dataset in datasets:
        names = [str(dataset.get(key) or "") for key in ("path", "type", "name", "split", "revision", "data_files")]
        hasher.update(json.dumps(names).encode())
        for path in _find_files(dataset):
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    hasher.update(chunk)
    return hasher.hexdigest()


def _find_files(dataset) -> list[Path]:
    """Return the files of a local data set, [] for one on the hub."""
    named = dataset.get("data_files") or []
    paths = [Path(name) for name in (dataset["path"], *([named] if isinstance(named, str) else named))]
    return [
        file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*"))) if file.is_file()
    ]
