"""A/B rows on disk: JSON lines, Parquet or a `save_to_disk` folder by the output's name, whole or not at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pair_pm.errors import DataError, OutputExistsError, PairPMError

_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class OutputPaths:
    """The names of one output: `x.jsonl`, `x.eval.jsonl` and `x.summary.json`; likewise for Parquet and a folder."""

    main: Path
    held_out: Path
    summary: Path

    @property
    def kind(self) -> str:
        """One of "jsonl", "parquet" and "folder"."""
        return self.main.suffix.removeprefix(".") or "folder"


def name_output(output: str) -> OutputPaths:
    """Return the paths of an output.

    Raises:
        DataError: its name does not say a format.
        OutputExistsError: it would replace a folder that holds something else.
    """
    main = Path(output)
    if main.suffix not in (".jsonl", ".parquet", ""):
        raise DataError(f"{output}: the ending {main.suffix} names no format; required is .jsonl, .parquet or a folder")
    paths = OutputPaths(
        main=main,
        held_out=main.with_name(f"{main.stem}.eval{main.suffix}"),
        summary=main.with_name(f"{main.stem}.summary.json"),
    )
    for path in (paths.main, paths.held_out):
        if path.is_dir() and (paths.kind != "folder" or not _is_replaceable(path)):
            raise OutputExistsError(f"{path}: a folder that save_to_disk did not write; an unused name is required")
        if path.is_file() and paths.kind == "folder":
            raise OutputExistsError(f"{path}: a file, where a folder is to be written; an unused name is required")
    return paths


def _is_replaceable(folder: Path) -> bool:
    return (folder / "dataset_info.json").exists() or not any(folder.iterdir())


@contextmanager
def open_output(kind: str, path: Path) -> Iterator:
    """Open a writer: a callable that takes some whole A/B rows as JSON lines, bytes."""
    opened = {"jsonl": _open_jsonl, "parquet": _open_parquet, "folder": _open_folder}[kind](path)
    with opened as write:
        yield write


@contextmanager
def _open_jsonl(path: Path):
    with path.open("wb") as file:
        yield file.write


@contextmanager
def _open_parquet(path: Path):
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, _schema()) as writer, _in_blocks(writer) as write:
        yield write


@contextmanager
def _open_folder(path: Path):
    import datasets
    import pyarrow as pa

    stream = path.with_name(path.name + ".arrow")
    hasher = hashlib.blake2b(digest_size=8)

    def write_hashed(lines: bytes) -> None:
        hasher.update(lines)
        write(lines)

    with (
        pa.OSFile(str(stream), "wb") as file,
        pa.ipc.new_stream(file, _schema()) as writer,
        _in_blocks(writer) as write,
    ):
        yield write_hashed
    table = datasets.table.MemoryMappedTable.from_file(str(stream))
    # `datasets` caches what is computed from a table under its fingerprint. The default one holds the time of the
    # file, so that the same rows would not give the same folder; this one tells other rows apart.
    datasets.Dataset(table, fingerprint=hasher.hexdigest()).save_to_disk(str(path))
    stream.unlink()


@contextmanager
def _in_blocks(writer) -> Iterator:
    """Collect lines into tables of some size: a row group of the few rows that a chunk leaves reads slowly."""
    pending = []

    def flush() -> None:
        writer.write_table(_to_table(b"".join(pending)))
        pending.clear()

    def write(lines: bytes) -> None:
        pending.append(lines)
        if sum(map(len, pending)) >= _BLOCK_BYTES:
            flush()

    yield write
    if pending:
        flush()


def _schema():
    import pyarrow as pa

    text = pa.string()
    return pa.schema(
        [
            ("messages", pa.list_(pa.struct([("role", text), ("content", text)]))),
            ("prob_a", pa.float64()),
            *((name, text) for name in ("pair_id", "id", "source", "subset")),
        ]
    )


def _to_table(lines: bytes):
    import pyarrow as pa
    import pyarrow.json

    return pyarrow.json.read_json(
        pa.BufferReader(lines),
        # One block, so that no row is longer than a block, and batches do not depend on the number of cores.
        read_options=pyarrow.json.ReadOptions(block_size=len(lines) + 1, use_threads=False),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=_schema(), unexpected_field_behavior="error"),
    )


# ---- from a workspace into place, and to the hub -------------------------------------------------------------------


@contextmanager
def open_workspace(output: Path) -> Iterator[Path]:
    """Yield a temporary folder beside the output, on the same file system, so that a rename publishes from it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield workspace
    finally:
        shutil.rmtree(workspace)


def publish(workspace: Path, paths: OutputPaths, rejects: str | None) -> None:
    """Rename into place, the data last: where it is, all of it is."""
    publish_rejects(workspace, rejects)
    os.replace(workspace / "summary.json", paths.summary)
    for path in (paths.held_out, paths.main):
        fresh = workspace / path.name
        if fresh.exists():
            if path.is_dir():
                # Aside first, to go with the workspace: removing a large folder in place can be interrupted.
                os.replace(path, workspace / f"{path.name}.earlier")
            os.replace(fresh, path)


def publish_rejects(workspace: Path, rejects: str | None) -> None:
    """Move the rejected rows to where the user wants them, if anywhere."""
    if rejects:
        Path(rejects).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(workspace / "rejects.jsonl", rejects)


def push_to_hub(output: str, name: str, *, private: bool) -> None:
    """Upload a written A/B data set, its held-out split as the split "eval".

    Raises:
        PairPMError: the hub cannot be reached or refuses.
    """
    import datasets

    paths = name_output(output)
    files = {"train": str(paths.main), **({"eval": str(paths.held_out)} if paths.held_out.exists() else {})}
    if paths.kind == "folder":
        splits = datasets.DatasetDict({split: datasets.load_from_disk(path) for split, path in files.items()})
    else:
        splits = datasets.load_dataset("json" if paths.kind == "jsonl" else "parquet", data_files=files)
    try:
        splits.push_to_hub(name, private=private)
    except (OSError, ValueError) as error:
        found = " ".join(str(error).split())
        raise PairPMError(f"{name}: the hub did not take the data set: {found}; it is whole in {output}") from error
