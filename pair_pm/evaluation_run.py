"""An evaluation from models and data to a folder of files: resumed if interrupted, or made from predictions alone."""

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pair_pm.checkpoint import find_file, load_tokenizer
from pair_pm.errors import ConfigError, DataError, OutputExistsError, PairPMError, UnwritableError
from pair_pm.evaluation import EvaluationOptions, evaluate
from pair_pm.evaluation_report import EvaluationReport, write_report
from pair_pm.labelled_pairs import LabelledPairs
from pair_pm.prediction_run import predict
from pair_pm.predictions import Origin, Predictions, write_predictions
from pair_pm.recipe import CARD_NAME, installed_versions
from pair_pm.report_document import to_markdown
from pair_pm.report_page import to_page
from pair_pm.report_plots import draw_plots
from pair_pm.report_tables import make_document
from pair_pm.result_journal import ResultJournal
from pair_pm.row_writers import written_whole
from pair_pm.scoring import PairScorer
from pair_pm.temperature_fit import save_fit
from pair_pm.tokens import PromptEncoder

PREDICTIONS, OTHER_PREDICTIONS, REPORT = "predictions.parquet", "against.parquet", "report.json"
TABLES, PAGE = "report.md", "report.html"


@dataclass(frozen=True)
class Judge:
    """A model that is to be evaluated.

    Attributes:
        name: Folder or hub name.
        adapter: Of a PEFT adapter, None for none.
        profile: See `PairScorer.from_pretrained`.
        described: How it is loaded, as JSON can hold it.
        load: Loads it.
    """

    name: str
    adapter: str | None
    profile: str
    described: Mapping[str, object]
    load: Callable[[], PairScorer]

    def find_card(self) -> Path | None:
        """Return the path of its card: the adapter's, or else the model's."""
        names = [name for name in (self.adapter, self.name) if name]
        return next((path for name in names if (path := find_file(name, CARD_NAME))), None)

    def read_card_digest(self) -> str | None:
        """Return the digest of its card, None where it has none."""
        path = self.find_card()
        try:
            return json.loads(path.read_text(encoding="utf-8"))["digest"] if path else None
        except (ValueError, LookupError, TypeError):
            return None  # what is wrong with it is said where the model is loaded


@dataclass(frozen=True)
class ReportFolder:
    """Where an evaluation goes.

    Attributes:
        path: The folder, made where it is not there; None to write nothing.
        command: The command line, without what says how to go on.
        resume: Go on where an interrupted run stopped.
        overwrite: Replace what is there.
    """

    path: Path | None
    command: str = ""
    resume: bool = False
    overwrite: bool = False

    def find_finished(self) -> dict | None:
        """Return the report that this very command finished, None where there is something to do.

        Raises:
            OutputExistsError: there is one that may not be replaced, or another process is writing one.
            UnwritableError: the folder cannot be made.
        """
        if self.path is None:
            return None
        report = self.path / REPORT
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnwritableError(f"{self.path}: {error.strerror}; a folder that can be written is required") from error
        if self.overwrite:
            for journal in self._list_journals():
                with ResultJournal(journal, anew=True):
                    pass
            return None
        if not report.exists():
            return None
        made_by = _read_finished(report)
        if self.resume and made_by.get("command") == self.command:
            return made_by
        raise OutputExistsError(
            f"{report}: is there already, made by {made_by.get('command')!r}; a new folder is required, or --overwrite"
        )

    def name_journal(self, table: str) -> Path | None:
        """Return where the results of an unfinished table are kept."""
        return self.path / f".{table}.part" if self.path else None

    def write(self, report: EvaluationReport, predictions: Predictions, other: Predictions | None) -> None:
        """Write all files, the report last, and remove the journals."""
        if self.path is None:
            return
        write_predictions(self.path / PREDICTIONS, predictions)
        if other is not None:
            write_predictions(self.path / OTHER_PREDICTIONS, other)
        document = make_document(report)
        for name, text in ((TABLES, to_markdown(document)), (PAGE, to_page(document, draw_plots(report, predictions)))):
            with written_whole(self.path / name) as fresh:
                fresh.write_text(text, "utf-8")
        write_report(self.path / REPORT, report)
        for journal in self._list_journals():
            journal.unlink()

    def _list_journals(self) -> list[Path]:
        journals = [self.name_journal(table) for table in (PREDICTIONS, OTHER_PREDICTIONS)]
        return [journal for journal in journals if journal.exists()]


def predict_with(
    judge: Judge, labelled: LabelledPairs, folder: ReportFolder, table: str = PREDICTIONS, *, perturb: bool = False
) -> Predictions:
    """Return what a model says of labelled pairs; errors as `predict` and `PairScorer.from_pretrained`."""
    origin = Origin(
        model=judge.name,
        options=dict(judge.described),
        card_digest=judge.read_card_digest(),
        versions=installed_versions(),
    )
    journal = folder.name_journal(table)
    return predict(judge.load(), labelled, origin, perturb=perturb, journal=journal, resume=folder.resume)


def report_and_save(
    predictions: Predictions,
    options: EvaluationOptions,
    folder: ReportFolder,
    other: Predictions | None = None,
    save_into: Judge | None = None,
) -> tuple[EvaluationReport, PairPMError | None]:
    """Compute the report, write the fitted temperature into the model's card where asked to, and write all files.

    Returns: The report, and why the temperature was not saved; the files are written in any case.
    """
    report, problem = evaluate(predictions, options, other), None
    if save_into is not None:
        try:
            report = dataclasses.replace(report, temperature_fit=_save(save_into, predictions.origin, report))
        except PairPMError as error:
            problem = error
    folder.write(report, predictions, other)
    return report, problem


def check_savable(judge: Judge) -> None:
    """Check that a fit can be written into a model's card, before anything is paid for.

    Raises:
        ConfigError: it has no card in a folder of this machine.
    """
    path = judge.find_card()
    if path is None or not any(path.parent == Path(name) for name in (judge.adapter, judge.name) if name):
        raise ConfigError(
            f"{judge.name}: no {CARD_NAME} in a folder on this machine; the card that training wrote is required to "
            "save a temperature in; without one, give --temperature where the model is used"
        )


def describe_command(words: Sequence[str]) -> str:
    """Return a command line without what says how to go on."""
    return shlex.join(word for word in words if word not in ("--resume", "--overwrite"))


def _save(judge: Judge, origin: Origin, report: EvaluationReport):
    check_savable(judge)
    path = judge.find_card()
    if origin.card_digest != judge.read_card_digest():
        raise ConfigError(
            f"{path}: is not the card that the model had when it made these predictions; predictions of the model as "
            "it is are required to save a temperature; compare anew"
        )
    tokenizer_of = judge.adapter if judge.adapter and find_file(judge.adapter, "tokenizer_config.json") else judge.name
    encoder = PromptEncoder(load_tokenizer(tokenizer_of), judge.profile)
    return save_fit(path.parent, encoder, report.temperature_fit)


def _read_finished(path: Path) -> dict:
    try:
        made_by = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; a report, or --overwrite, is required") from error
    return made_by if isinstance(made_by, dict) else {}
