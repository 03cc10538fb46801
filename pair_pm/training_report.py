"""What a training run ends with: a table on the terminal and `training_report.png` in the output folder.

Both are made of the trainer's log history, which `trainer_state.json` holds too.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

REPORT_NAME = "training_report.png"
CHANCE = math.log(2)  # label loss, in nats, of a model that gives "A" and "B" the same probability

_METRICS = (
    ("eval_pair_accuracy", "accuracy", "1 is best; a coin has 0.5"),
    ("eval_position_consistency", "position consistency", "1 is best"),
    ("eval_label_loss", "label loss", f"0 is best; chance is ln 2 = {CHANCE:.3f}"),
    ("eval_label_mass", "label mass", "1 is best"),
    ("eval_prob_a", "how often A is answered", "0.5 is even"),
    ("eval_order_bias", "log-odds for slot A", "0 is even"),
)


def make_table(history: Sequence[Mapping], run: Mapping[str, str]):
    """Return the table of a run: what it did, and its first and last evaluation.

    Args:
        history: The trainer's log history.
        run: What is said of the run as a whole, by name.
    """
    from rich.table import Table

    evaluations = [entry for entry in history if "eval_loss" in entry]
    table = Table(title="Training", title_justify="left")
    table.add_column("")
    for name in ("first evaluation", "last evaluation", "reads as"):
        table.add_column(name)
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        table.add_row("step", str(first["step"]), str(last["step"]))
        for key, name, meaning in _METRICS:
            table.add_row(name, f"{first[key]:.4f}", f"{last[key]:.4f}", meaning)
        table.add_section()
    for name, value in run.items():
        table.add_row(name, "", value)
    return table


def draw_report(history: Sequence[Mapping], path: Path) -> None:
    """Draw label loss, accuracy, consistency and A-rate over the steps, to be read in grey as well."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    (loss, accuracy), (consistency, rate) = figure.subplots(2, 2, sharex=True)
    _draw(loss, history, "label_loss", "eval_label_loss", level=CHANCE, level_name="chance, ln 2")
    _draw(accuracy, history, "label_accuracy", "eval_pair_accuracy", level=0.5, level_name="chance")
    _draw(consistency, history, None, "eval_position_consistency")
    _draw(rate, history, None, "eval_prob_a", level=0.5, level_name="even")
    for axes, title, unit in (
        (loss, "Label loss", "nats a row"),
        (accuracy, "Accuracy", "share of pairs"),
        (consistency, "Verdicts that survive the swap", "share of pairs"),
        (rate, 'How often "A" is answered', "share of prompts"),
    ):
        axes.set(title=title, xlabel="optimizer step", ylabel=unit)
        if axes is not loss:
            axes.set_ylim(-0.02, 1.02)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _draw(axes, history, training_key, held_out_key, level=None, level_name=None) -> None:
    """Draw a line over the logging windows, one with marks over the evaluations, and a level to compare with."""
    for key, style in ((training_key, {"color": "0.6", "label": "training, by logging window"}),
                       (held_out_key, {"color": "black", "marker": "o", "label": "held-out pairs"})):  # fmt: skip
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), **style)
    if level is not None:
        axes.axhline(level, color="black", linestyle=":", linewidth=1, label=level_name)
