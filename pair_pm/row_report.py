"""What a training run would train on, for people to read: a table of each split's numbers, and whole rows."""

import sys
from collections.abc import Mapping

import numpy as np

from pair_pm.row_survey import SourceRows, TokenRows, find_needed_lengths

_SPLITS = {"datasets": "training", "test_datasets": "held out"}
_SHOWN_CHARACTERS = 600
_SHOWN_TOKENS = 20


def print_table(token_rows: Mapping[str, TokenRows], source_rows: Mapping[str, SourceRows], steps: str) -> None:
    """Print the numbers of each split side by side."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("")
    columns = []
    for key, rows in token_rows.items():
        table.add_column(_SPLITS[key], justify="right")
        columns.append(_describe_split(rows, source_rows[key]))
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    table.add_row("steps", steps)
    Console(width=120, file=sys.stdout).print(table)


def _describe_split(rows: TokenRows, source: SourceRows) -> dict[str, str]:
    from pair_pm.pair_batches import find_orders
    from pair_pm.pair_rows import find_enough

    both, alone = find_orders(rows.pairs)
    median, most, nearly_all = np.quantile(rows.lengths, (0.5, 0.9, 0.99), method="higher")
    return {
        "rows read": f"{source.read:,}",
        "rows kept": f"{len(rows.lengths):,}",
        "dropped as too long": f"{len(source.dropped_lengths):,}",
        "sequence_len that keeps 95%": f"{find_enough(find_needed_lengths(rows, source)):,}",
        "pairs in both orders": f"{len(both):,}",
        "pairs in one order": f"{len(alone):,}",
        "tokens a row: median": f"{median:,}",
        "90% have at most": f"{most:,}",
        "99% have at most": f"{nearly_all:,}",
        "longest": f"{rows.lengths.max():,}",
        "rows labelled A": f"{rows.is_a.mean():.1%}",
        "soft targets": f"{rows.soft:,}",
        "of them ties": f"{rows.ties:,}",
        "tokens with loss a row": "-".join(map(str, sorted({rows.loss_tokens.min(), rows.loss_tokens.max()}))),
    }


def show_row(tokenizer, row: Mapping) -> str:
    """Return a token row as text, the middle of a long one left out, and its last tokens with their ids."""
    pieces = [(token, label != -100) for token, label in zip(row["input_ids"], row["labels"], strict=True)]
    text, run = "", []
    for token, bears_loss in pieces:
        if bears_loss:
            text, run = text + tokenizer.decode(run) + f"⟦{tokenizer.decode([token])}⟧", []
        else:
            run.append(token)
    text += tokenizer.decode(run)
    if len(text) > _SHOWN_CHARACTERS:
        half = _SHOWN_CHARACTERS // 2
        text = f"{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}"
    shown = (f"{token} {tokenizer.decode([token])!r}" for token, _ in pieces[-_SHOWN_TOKENS:])
    marked = (f"⟦{one}⟧" if is_loss else one for one, (_, is_loss) in zip(shown, pieces[-_SHOWN_TOKENS:], strict=True))
    return f"{text}\nlast tokens: {'  '.join(marked)}"
