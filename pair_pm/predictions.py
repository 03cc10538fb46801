"""What a model says of labelled pairs, as a table: all that a report needs, so that no model is needed to make one.

`predictions.parquet` has the columns of `COLUMNS`, a row for each pair in both orders, and in its metadata, under
`pair_pm`, the fields of `Origin` as JSON. Pairs whose second response was edited (`--perturb`) stand in the same table
with the kind of edit in `edit`; everything but the numbers on distraction is computed from the rows where it is "".
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pair_pm.errors import DataError, MissingPathError
from pair_pm.labelled_pairs import FIRST, TIE
from pair_pm.metrics import Verdicts
from pair_pm.row_writers import written_whole

_METADATA = b"pair_pm"
_FORMAT = 1

# Arrow's type of each column; "first" is the response that is labelled the better one, where one is.
COLUMNS = {
    "id": "string",  # the row's own
    "source": "string",
    "subset": "string",
    "group": "string",  # the row of several completions that the pair is of; "" for a pair of its own
    "first_index": "int32",  # places among its completions, correct ones first; 0 and 1 for a pair of its own
    "second_index": "int32",
    "edit": "string",  # what was done to the second response; "" for nothing
    "label": "string",  # "first", "tie", or "unknown" where the labels say nothing of the two
    "prob_chosen": "double",  # how likely people, or a teacher, prefer the first; 0.5 for a tie
    "prompt_key": "string",  # identity of the conversation: what the bootstrap draws
    "pair_key": "string",  # identity of conversation and both responses as they came, before an edit
    "log_odds_first_in_a": "double",  # of "A" against "B", the first response in slot A; before temperature
    "log_odds_first_in_b": "double",  # the same with the first response in slot B
    "label_mass": "double",  # probability that "A" and "B" hold together, the smaller of the two orders'
    "prompt_tokens_first_in_a": "int32",
    "prompt_tokens_first_in_b": "int32",
    "prompt": "string",  # the conversation's last message
    "first": "string",
    "second": "string",
}


@dataclass(frozen=True)
class Origin:
    """Where predictions come from.

    Attributes:
        model: Name or path.
        options: How it was loaded, where that decides a verdict.
        card_digest: Of the model's card, None where it has none.
        temperature: That the verdicts are to be read with, of the card or the command line.
        order_offset: The card's, in log-odds before temperature.
        dataset: Its name.
        dataset_format: As `LabelledPairs.format`.
        dataset_digest: Of texts and labels.
        skipped: Rows that were not compared, by reason.
        versions: Of the packages that decide the numbers.
    """

    model: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    card_digest: str | None = None
    temperature: float = 1.0
    order_offset: float = 0.0
    dataset: str = ""
    dataset_format: str = ""
    dataset_digest: str = ""
    skipped: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """The table in memory.

    Attributes:
        columns: An array of shape (rows,) for each of `COLUMNS`; text as objects.
        origin: Where it comes from.
    """

    columns: Mapping[str, np.ndarray]
    origin: Origin

    def __len__(self) -> int:
        return len(self.columns["id"])

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def where(self, rows: np.ndarray) -> "Predictions":
        """Return the rows of a boolean mask or of indices."""
        return Predictions({name: column[rows] for name, column in self.columns.items()}, self.origin)

    @property
    def unedited(self) -> "Predictions":
        """The pairs as they came."""
        return self.where(self["edit"] == "")

    @property
    def is_decided(self) -> np.ndarray:
        """Whether the first response is labelled the better one: the rows that accuracy is of."""
        return self["label"] == FIRST

    @property
    def is_labelled_tie(self) -> np.ndarray:
        """Whether the two are labelled equally good."""
        return self["label"] == TIE

    def log_odds(self, temperature: float | None = None) -> np.ndarray:
        """Return the log-odds of "A" in both orders, shape (rows, 2), divided by the origin's temperature or another.

        The first column is of the order with the first response in slot A.
        """
        raw = np.stack([self["log_odds_first_in_a"], self["log_odds_first_in_b"]], axis=1)
        return raw / (self.origin.temperature if temperature is None else temperature)

    @property
    def verdicts(self) -> Verdicts:
        """What the model says, at the origin's temperature."""
        return Verdicts(self.log_odds(), self["label_mass"], self["prob_chosen"])

    def count_characters(self) -> np.ndarray:
        """Return the lengths of the two responses in characters, shape (rows, 2)."""
        return np.array([[len(text) for text in self[side]] for side in ("first", "second")], dtype=int).T


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the table as Parquet, whole or not at all; errors as `written_whole`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [pa.array(predictions[name], pa.type_for_alias(kind)) for name, kind in COLUMNS.items()]
    table = pa.table(arrays, names=list(COLUMNS))
    origin = {"format": _FORMAT, **dataclasses.asdict(predictions.origin)}
    table = table.replace_schema_metadata({_METADATA: json.dumps(origin).encode()})
    with written_whole(Path(path)) as fresh:
        pq.write_table(table, fresh, compression="zstd")


def read_predictions(path: Path) -> Predictions:
    """Return the table that `write_predictions` wrote.

    Raises:
        MissingPathError: there is no such file.
        DataError: it is no such table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    required = "a predictions.parquet that evaluate_pair_rm.py wrote is required"
    if not Path(path).is_file():
        raise MissingPathError(f"{path}: no such file; {required}")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}; {required}") from error
    metadata = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing or metadata.pop("format", None) != _FORMAT:
        found = f"lacks {', '.join(missing)}" if missing else "does not say in its metadata where it comes from"
        raise DataError(f"{path}: {found}; {required}")
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in COLUMNS}
    for name in ("log_odds_first_in_a", "log_odds_first_in_b", "label_mass", "prob_chosen"):
        defective = np.flatnonzero(~np.isfinite(columns[name]))
        if defective.size:
            raise DataError(
                f"{path}:{defective[0] + 1}: {name} is {columns[name][defective[0]]}; a finite number is required"
            )
    return Predictions(columns, Origin(**metadata))
