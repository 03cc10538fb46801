"""What a report says, apart from how it looks: sections of sentences, tables and figures; and the same as Markdown.

`report_tables` makes one from numbers, `report_page` a web page of it. Cells are plain text: whoever renders them
escapes them, all of them, because names of subsets and texts of rows come from data.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pair_pm.evaluation_report import Estimate

MISSING = "–"
_NUMBER = re.compile(rf"[-−+]?\d|{MISSING}$")
_INTEGER = re.compile(r"\b\d+\b")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
# What Markdown, or a browser that shows it, would take for markup; an underscore inside a word is none.
_MARKUP = re.compile(r"[\\|`*<>~]|(?<!\w)_|_(?!\w)|(?<=\])(?=[(\[])")


@dataclass(frozen=True)
class Table:
    """Numbers with their names.

    Attributes:
        caption: What they are of.
        header: Names of the columns.
        rows: Texts, as many in each as there are columns; the first one names the row.
        notes: Sentences on single cells.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds numbers, which stand on the right."""
        return column > 0 and all(_NUMBER.match(row[column]) for row in self.rows)


@dataclass(frozen=True)
class Figure:
    """A plot's place.

    Attributes:
        name: One of `report_plots.PLOTS`.
        title: What it shows.
        text: How it is read; stands below it, and for it where it cannot be seen.
    """

    name: str
    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """A heading and what is below it: sentences, tables and figures."""

    title: str
    parts: Sequence[str | Table | Figure]


@dataclass(frozen=True)
class Document:
    """All of it."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]


@dataclass
class Notes:
    """Shows estimates, and keeps the reasons why one has no value or no interval."""

    reasons: dict[str, None] = field(default_factory=dict)

    def percent(self, estimate: Estimate) -> str:
        """Return a share as "71.2% [68.0, 74.3]"."""
        return self._show(estimate, lambda value: f"{100 * value:.1f}", "%")

    def points(self, estimate: Estimate) -> str:
        """Return a difference of shares as "+1.2 [-0.3, +2.7]"."""
        return self._show(estimate, lambda value: _sign(f"{100 * value:+.1f}"))

    def number(self, estimate: Estimate) -> str:
        """Return a number as "0.612 [0.580, 0.644]"."""
        return self._show(estimate, lambda value: _sign(f"{value:.3f}"))

    def signed(self, estimate: Estimate, decimals: int = 2) -> str:
        """Return a number that may lie on either side of 0 as "+0.12 [-0.03, +0.27]"."""
        return self._show(estimate, lambda value: _sign(f"{value:+.{decimals}f}"))

    def _show(self, estimate: Estimate, write, unit: str = "") -> str:
        if estimate.value is None:
            self.reasons[f"{MISSING} {estimate.reason}"] = None
            return MISSING
        if estimate.reason:
            self.reasons[_start_sentence(estimate.reason)] = None
        interval = "" if estimate.low is None else f" [{write(estimate.low)}, {write(estimate.high)}]"
        return f"{write(estimate.value)}{unit}{interval}"

    def take(self) -> list[str]:
        """Return the reasons so far as sentences, those that differ in a number as one, and forget them."""
        numbers: dict[str, list[int]] = {}
        for reason in self.reasons:
            found = _INTEGER.search(reason)
            template = reason[: found.start()] + "{}" + reason[found.end() :] if found else reason
            numbers.setdefault(template.rstrip("."), []).append(int(found[0]) if found else 0)
        self.reasons = {}
        return [
            template.replace("{}", " to ".join(map(str, sorted({min(values), max(values)})))) + "."
            for template, values in numbers.items()
        ]


def count(things: int) -> str:
    """Return a whole number with its thousands apart."""
    return f"{things:,}"


def name_subset(subset: str) -> str:
    """Return what a subset is called."""
    return clean(subset, 60) or "(no subset)"


def clean(text: str, longest: int = 300) -> str:
    """Return a text from data on one line, without what no page can show, at most so many characters."""
    text = " ".join(_CONTROL.sub(" ", str(text)).split())
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def to_markdown(document: Document) -> str:
    """Return the document without its figures, its tables aligned so that they read as plain text too."""
    blocks = [f"# {_escape(document.title)}", *map(_escape, document.lead)]
    for section in document.sections:
        blocks.append(f"## {_escape(section.title)}")
        for part in section.parts:
            if isinstance(part, Table):
                blocks += [f"**{_escape(part.caption)}**", _draw_table(part), *map(_escape, part.notes)]
            elif isinstance(part, str):
                blocks.append(_escape(part))
    return "\n\n".join(blocks) + "\n"


def _draw_table(table: Table) -> str:
    lines = [[_escape(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(table.header))]
    on_the_right = [table.is_numeric(column) for column in range(len(widths))]
    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, on_the_right, strict=True)]
    lines.insert(1, rule)
    columns = [
        [line[n].rjust(width) if on_the_right[n] else line[n].ljust(width) for line in lines]
        for n, width in enumerate(widths)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def _escape(text: str) -> str:
    return _MARKUP.sub(lambda found: f"\\{found[0]}", clean(text, 10_000).replace("&", "&amp;"))


def _sign(number: str) -> str:
    return number.replace("-", "−")


def _start_sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
