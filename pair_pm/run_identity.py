"""Whether an output, or what an interrupted run left of it, was made from the same input, options and model."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pair_pm.errors import DataError, OutputExistsError, UnwritableError
from pair_pm.recipe import are_of_same_weights
from pair_pm.result_journal import read_header
from pair_pm.row_writers import KINDS
from pair_pm.scoring import PairScorer
from pair_pm.tokens import PROBE_PAIRS


@dataclass(frozen=True)
class RunPaths:
    """The files of one run: its output, `x.summary.json` beside it, and the journal, which is there until the end."""

    output: Path
    summary: Path
    journal: Path


def name_paths(output: str, input: Path) -> RunPaths:
    """Return the paths of a run, in a folder that is there.

    Raises:
        DataError: the output's name does not say a format.
        OutputExistsError: the output is the input, or a folder.
        UnwritableError: its folder cannot be made.
    """
    path = Path(output)
    if path.suffix not in KINDS:
        raise DataError(f"{output}: the ending {path.suffix!r} names no format; required is {' or '.join(KINDS)}")
    if path.is_dir() or path.resolve() == input.resolve():
        found = "a folder" if path.is_dir() else "the input itself"
        raise OutputExistsError(f"{output}: is {found}; a name of its own is required")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableError(f"{output}: {error.strerror}; a folder that can be written is required") from error
    return RunPaths(path, path.with_name(f"{path.stem}.summary.json"), path.with_name(f".{path.name}.part"))


def digest_input(path: Path) -> str:
    """Return a digest of a file, or of the files of a folder."""
    hasher = hashlib.blake2b(digest_size=16)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                hasher.update(hashlib.file_digest(opened, "blake2b").digest())
    return hasher.hexdigest()


def describe_answers(scorer: PairScorer) -> dict[str, object]:
    """Return what tells a model from another one in a folder of the same name: its log-odds on fixed pairs."""
    answers = [odds for comparison in scorer.compare_many(PROBE_PAIRS) for odds in comparison.log_odds_of_a]
    recipe = scorer.recipe
    return {"model_answers": answers, "sequence_len": recipe.sequence_len, "order_offset": recipe.order_offset}


def refuse_other_run(path: Path, found: Mapping, asked: Mapping) -> None:
    """Check that what made a file is what is asked for now.

    Raises:
        OutputExistsError: something differs; it is named with both values.
    """
    for name, value in asked.items():
        known = found.get(name)
        if not (_are_same_answers(value, known) if name == "model_answers" else value == known):
            raise OutputExistsError(
                f"{path}: was made with {name} {known!r}, now it is {value!r}; the same is required to "
                "resume; --overwrite starts anew"
            )


def _are_same_answers(asked: Sequence[float], known: Sequence[float] | None) -> bool:
    return known is not None and are_of_same_weights(asked, known)


def find_finished(paths: RunPaths, identity: Mapping, *, resume: bool) -> dict | None:
    """Return the summary of the output that a run finished, None where there is something left to do.

    Raises:
        OutputExistsError: something is there and `resume` was not asked for, or it was made by another run.
    """
    if paths.journal.exists():
        if not resume:
            raise OutputExistsError(
                f"{paths.journal}: left by an interrupted run; --resume is required to go on, --overwrite to start anew"
            )
        refuse_other_run(paths.journal, read_header(paths.journal) or identity, identity)
        return None
    taken = [path for path in (paths.output, paths.summary) if path.exists()]
    if taken and not resume:
        raise OutputExistsError(f"{taken[0]}: is there already; a new name is required, or --overwrite")
    if paths.output not in taken:
        return None
    try:
        summary = json.loads(paths.summary.read_text(encoding="utf-8"))
        found = summary.pop("identity")
    except (OSError, ValueError, KeyError) as error:
        raise OutputExistsError(
            f"{paths.output}: is there, and {paths.summary.name} does not say what made it; a new name is required, "
            "or --overwrite"
        ) from error
    refuse_other_run(paths.output, found, identity)
    return summary
