"""What a run ends with: its table and its plot."""

import math

from matplotlib.image import imread
from rich.console import Console

from pair_pm.training_report import CHANCE, draw_report, make_table

LIVE = ("pair_accuracy", "position_consistency", "label_loss", "label_mass", "prob_a", "order_bias")


def evaluation(step: int, value: float) -> dict:
    return {"step": step, "eval_loss": 1.0} | {f"eval_{name}": value for name in LIVE}


HISTORY = [
    evaluation(0, 0.1),
    {"step": 10, "loss": 1.0, "label_loss": 0.7, "label_accuracy": 0.5},
    evaluation(10, 0.2),
    {"step": 20, "loss": 1.0, "label_loss": 0.6, "label_accuracy": 0.75},
    evaluation(20, 0.3),
]


def render(table) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_the_table_shows_the_first_and_the_last_evaluation_and_the_run():
    text = render(make_table(HISTORY, {"training rows": "1,234", "steps": "20"}))
    assert text.count("0.1000") == text.count("0.3000") == len(LIVE)
    assert "0.2000" not in text
    assert "chance is ln 2 = 0.693" in text
    assert "1,234" in text


def test_a_run_without_evaluation_has_a_table_of_the_run():
    text = render(make_table([HISTORY[1]], {"steps": "20"}))
    assert "steps" in text
    assert "accuracy" not in text


def test_the_chance_line_is_that_of_a_coin():
    assert math.log(2) == CHANCE


def test_the_plot_is_drawn_with_and_without_evaluations(tmp_path):
    draw_report(HISTORY, tmp_path / "whole.png")
    draw_report([HISTORY[1]], tmp_path / "bare.png")
    whole, bare = (imread(tmp_path / f"{name}.png") for name in ("whole", "bare"))
    assert whole.shape == bare.shape == (840, 1200, 4)
    assert (whole != bare).any()
    assert (whole[..., 0] == whole[..., 1]).all()  # black and grey: it reads without colour
