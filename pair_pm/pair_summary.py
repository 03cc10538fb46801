"""What a run of process_pair_data.py counted: printed at its end, and written beside the data as JSON."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pair_pm.decontamination import IndexSummary
from pair_pm.pair_conversion import ConversionOptions


@dataclass
class BuildSummary:
    """What went in, what came out, and why the rest did not; written beside the data as JSON.

    Attributes:
        formats: The recognised format of each named data set.
        rows_read: By data set.
        dropped: By source and reason.
        pairs_kept: By source.
        pairs_neutralised: Kept pairs in which control text was broken.
        held_against: The evaluation data whose rows were dropped; None where none was named.
        rows_written: By split; twice the pairs where both orders are written.
        label_a_share: Share of written rows whose label is "A".
        lengths: Percentiles of the prompt in characters and, with a tokenizer, of the training sequence in tokens.
    """

    formats: dict[str, str] = field(default_factory=dict)
    rows_read: Counter = field(default_factory=Counter)
    dropped: dict[str, Counter] = field(default_factory=dict)
    pairs_kept: Counter = field(default_factory=Counter)
    pairs_neutralised: int = 0
    held_against: IndexSummary | None = None
    rows_written: dict[str, int] = field(default_factory=dict)
    label_a_share: float = 0.0
    lengths: dict[str, dict[str, int]] = field(default_factory=dict)

    def count_dropped(self, source: str, reason: str) -> None:
        """Count one dropped row."""
        self.dropped.setdefault(source, Counter())[reason] += 1

    def to_table(self) -> str:
        """Return the counts as text, a line each."""
        kept = sum(self.pairs_kept.values())
        lines = [f"{name} ({self.formats[name]} format): {count:,} rows read" for name, count in self.rows_read.items()]
        lines += self.held_against.to_lines() if self.held_against else []
        for source in sorted({*self.pairs_kept, *self.dropped}):
            lines.append(f"{source}: {self.pairs_kept[source]:,} pairs kept")
            lines += [
                f"  dropped  {reason:<20} {count:>9,}"
                for reason, count in self.dropped.get(source, Counter()).most_common()
            ]
        lines.append(f"all: {kept:,} pairs kept, {self.pairs_neutralised:,} of them with control text neutralised")
        lines += [f"{split}: {rows:,} rows written" for split, rows in self.rows_written.items()]
        lines.append(f"label A in {self.label_a_share:.1%} of the rows")
        for unit, percentiles in self.lengths.items():
            shown = "  ".join(f"{name} {value:,}" for name, value in percentiles.items())
            lines.append(f"length in {unit}: {shown}")
        return "\n".join(lines)

    def dropped_by_reason(self) -> Counter:
        """Return how many rows each reason dropped, over all sources."""
        return sum(self.dropped.values(), Counter())


def write_summary(summary: BuildSummary, options: ConversionOptions, command: str, path: Path) -> None:
    """Write the summary, and how it came about, as JSON."""
    from pair_pm import __version__
    from pair_pm.prompt import CONTROL_SET_VERSION, PROMPT_FORMAT_VERSION

    versions = {
        "pair_pm": __version__,
        "prompt_format_version": PROMPT_FORMAT_VERSION,
        "control_set_version": CONTROL_SET_VERSION,
    }
    content = {
        **vars(summary),
        "held_against": summary.held_against and vars(summary.held_against),
        "options": asdict(options),
        "versions": versions,
        "command": command,
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
