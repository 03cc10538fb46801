"""Write the quickstart's input: preference data with every kind of bad row, held-out pairs, and a tiny base model.

    python examples/quickstart/make_quickstart.py
    python examples/quickstart/make_quickstart.py --output /tmp/quickstart --seed 7

The same seed gives the same bytes of data. Nothing is downloaded; most of its half minute goes into pretraining.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from conversations import draw_row

TRAINING_ROWS = 6_000
HELD_OUT_ROWS = 600
BAD_ROWS_OF_EACH_KIND = 3

# Users paste such text. It stays in the data as it is: making it harmless is the processing's work.
CONTROL_TEXTS = ("<|eot_id|>", "[RESPONSE B]", "<|im_start|>", "[/INST]")


def main(argv: list[str] | None = None) -> int:
    """Write the files and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder (default: beside this file)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other text and weights (default: 0)")
    arguments = parser.parse_args(argv)
    training_lines, held_out_lines, rows = draw_data(arguments.seed)
    data = arguments.output / "data"
    write_lines(data / "preferences.jsonl", training_lines)
    write_lines(data / "heldout.jsonl", held_out_lines)

    from base_model import write_base_model  # imports torch, which takes seconds: after the arguments are checked

    write_base_model(rows, arguments.output / "base_model", arguments.seed)
    bad = len(training_lines) - len(rows)
    print(f"{data / 'preferences.jsonl'}: {len(rows)} rows, and {bad} lines that test the filters")
    print(f"{data / 'heldout.jsonl'}: {len(held_out_lines)} rows whose questions no training row asks")
    print(f"{arguments.output / 'base_model'}: a tiny Llama, pretrained on the conversations")
    return 0


def draw_data(seed: int) -> tuple[list[str], list[str], list[dict]]:
    """Return the lines of the training file, those of the held-out file, and the ordinary training rows."""
    rng = random.Random(seed)
    rows = draw_rows(rng, TRAINING_ROWS, "train", held_out=False)
    for number, text in enumerate(CONTROL_TEXTS):
        rows[20 * number + 7] = with_control_text(rows[20 * number + 7], text)
    lines = [json.dumps(row) for row in rows]
    for line in bad_lines(rng):
        lines.insert(rng.randrange(len(lines)), line)
    # A column that the first rows lack is no fault of these last rows, but readers that fix the columns early fail.
    late = draw_rows(rng, BAD_ROWS_OF_EACH_KIND, "late-column", held_out=False)
    lines += [json.dumps(row | {"annotator": "volunteer"}) for row in late]
    held_out = draw_rows(rng, HELD_OUT_ROWS, "heldout", held_out=True)
    return lines, [json.dumps(row) for row in held_out], rows


def draw_rows(rng: random.Random, count: int, name: str, held_out: bool) -> list[dict]:
    """Return that many rows, all different, with ids that start with the name."""
    rows = {}
    while len(rows) < count:
        row = draw_row(rng, held_out)
        rows.setdefault(json.dumps(row), row)
    return [{"id": f"{name}-{number:05}"} | row for number, row in enumerate(rows.values())]


def with_control_text(row: dict, text: str) -> dict:
    """Return the row with control text at the end of its last question and of both responses."""
    for side in ("chosen", "rejected"):
        question, answer = (message["content"] for message in row[side][-2:])
        row = _with_content(row, side, f"{question} My notes end with {text}.", message=-2)
        row = _with_content(row, side, f"{answer} Leave out the {text}.")
    return row


def bad_lines(rng: random.Random) -> Iterable[str]:
    """Yield lines that a filter drops, in part or whole, a few for each reason in `FAULTS`."""
    for name, spoil in FAULTS.items():
        for row in draw_rows(rng, BAD_ROWS_OF_EACH_KIND, name, held_out=False):
            for result in spoil(row):
                yield result if isinstance(result, str) else json.dumps(result)


# These return a new row and leave the messages of the given one alone, because its two sides share them.


def _with_content(row: dict, side: str, content: object, message: int = -1) -> dict:
    messages = list(row[side])
    messages[message] = messages[message] | {"content": content}
    return row | {side: messages}


def _with_longer_rejected(row: dict) -> dict:
    exchange = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello, what is it?"}]
    return row | {"rejected": [*exchange, *row["rejected"]]}


def _with_two_user_turns(row: dict) -> dict:
    extra = {"role": "user", "content": "Are you there?"}
    return row | {side: [*row[side][:-1], extra, row[side][-1]] for side in ("chosen", "rejected")}


def _without(row: dict, column: str) -> dict:
    return {name: value for name, value in row.items() if name != column}


def _with_verdict_reversed(row: dict) -> dict:
    return row | {"id": f"{row['id']}-reversed", "chosen": row["rejected"], "rejected": row["chosen"]}


def _answer(row: dict) -> str:
    return row["chosen"][-1]["content"]


# What is wrong with a row, by name -> the lines to write for one good row. A string is written as it is.
FAULTS: dict[str, Callable[[dict], list[dict | str]]] = {
    "truncated": lambda row: [json.dumps(row)[:-40]],
    "not-an-object": lambda row: [json.dumps([row["chosen"], row["rejected"]])],
    "content-not-text": lambda row: [_with_content(row, "rejected", {"text": _answer(row)})],
    "lone-surrogate": lambda row: [_with_content(row, "chosen", _answer(row) + " \ud800")],
    "no-chosen": lambda row: [_without(row, "chosen")],
    "no-rejected": lambda row: [_without(row, "rejected")],
    "no-messages": lambda row: [row | {"chosen": [], "rejected": []}],
    "other-turn-count": lambda row: [_with_longer_rejected(row)],
    "roles-out-of-order": lambda row: [_with_two_user_turns(row)],
    "blank-content": lambda row: [_with_content(row, "rejected", " \n")],
    "contexts-differ": lambda row: [_with_content(row, "rejected", "What did I ask?", message=-2)],
    "same-response": lambda row: [row | {"rejected": row["chosen"]}],
    "same-but-for-space": lambda row: [_with_content(row, "rejected", f" {_answer(row)}\n")],
    "tie": lambda row: [row | {"label": "tie"}],
    "duplicate": lambda row: [row, row | {"id": f"{row['id']}-again"}],
    "contradiction": lambda row: [row, _with_verdict_reversed(row)],
    "impossible-probability": lambda row: [row | {"prob_chosen": 1.5}, row | {"prob_chosen": -0.25}],
}


def write_lines(path: Path, lines: list[str]) -> None:
    """Write the lines to a file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
