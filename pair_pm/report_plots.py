"""The plots of a report, as SVG that stands inside a page and takes its colours from there.

Marks, hatches and dashes tell things apart, never a colour alone. Colours are names of the page's (`var(--ink)`), so
that a plot is as readable on a dark page, or printed, as on a light one. Text stays text, in the reader's own font.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from pair_pm.evaluation_report import Estimate, EvaluationReport, ReliabilityBin
from pair_pm.predictions import Predictions
from pair_pm.report_document import name_subset
from pair_pm.report_tables import ALL_PAIRS

# Stand for the page's colours while matplotlib draws; each is a colour that it does not use by itself.
_INK, _FAINT, _BLUE, _ORANGE, _PAPER = "#010203", "#b0b1b2", "#0072b2", "#d55e00", "#fdfeff"
_PAGE_COLOURS = {_INK: "--ink", _FAINT: "--faint", _BLUE: "--blue", _ORANGE: "--orange", _PAPER: "--paper"}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pair_pm",
    "text.parse_math": False,  # a subset may be called "$x$"
    "font.size": 10,
    "hatch.linewidth": 0.6,
    "hatch.color": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
}
_MOST_SUBSETS = 40
_MOST_MARKS = 2000
_WIDTH = 7.2  # inches
_MODEL, _BIN = "model, with 95% interval", "bin, with 95% interval"


def draw_plots(report: EvaluationReport, predictions: Predictions) -> dict[str, str]:
    """Return the SVG of each plot that there is something to draw in, by its name in `PLOTS`."""
    import matplotlib

    decided = predictions.unedited
    decided = decided.where(decided.is_decided)
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser has fonts that matplotlib has not.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        if not len(decided):
            return {}
        return {name: _save(name, draw(report, predictions.unedited)) for name, draw in PLOTS.items()}


def _save(name: str, figure) -> str:
    """Return a figure as an `svg` element, its colours and identities made the page's."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in _PAGE_COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.strip()


def _make_axes(height: float, columns: int = 1, width: float = _WIDTH):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for each in axes:
        each.grid(color=_FAINT, alpha=0.4, linewidth=0.6)
        each.set_axisbelow(True)
    return figure, axes


def _add_legend(figure, axes, *labels: str) -> None:
    """Put the legend above the plot, where it hides nothing, in the order of these labels."""
    handle_of = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    shown = [label for label in labels if label in handle_of]
    figure.legend([handle_of[label] for label in shown], shown, loc="outside upper center", ncols=len(shown))


def _errors(estimates: Sequence[Estimate]) -> np.ndarray:
    """Return how far the intervals reach to both sides, in percent, shape (2, estimates); 0 where there is none."""
    reach = [(0, 0) if e.low is None else (max(0, e.value - e.low), max(0, e.high - e.value)) for e in estimates]
    return 100 * np.array(reach).T


def _percents(estimates: Sequence[Estimate]) -> list[float]:
    return [np.nan if estimate.value is None else 100 * estimate.value for estimate in estimates]


def draw_accuracy(report: EvaluationReport, _: Predictions):
    """Draw the accuracy of each subset with its interval, and the two baselines beside it."""
    subsets = [(name, group) for name, group in report.subsets.items() if group.accuracy.value is not None]
    shown = sorted(subsets, key=lambda item: -item[1].rows)[:_MOST_SUBSETS] if list(report.subsets) != [""] else []
    groups = [(ALL_PAIRS, report.overall), *((_name(name), group) for name, group in sorted(shown))]
    figure, [axes] = _make_axes(1.3 + 0.34 * len(groups))
    places = np.arange(len(groups))[::-1]
    accuracies = [group.accuracy for _, group in groups]
    axes.errorbar(_percents(accuracies), places, xerr=_errors(accuracies), fmt="o", color=_BLUE, capsize=3, zorder=3,
                  label=_MODEL)  # fmt: skip
    # A little above and below, so that equal numbers do not hide each other.
    baselines = (("longer_wins", ">", "longer wins", 0.2), ("bag_of_words", "s", "bag of words", -0.2))
    for baseline, mark, label, shift in baselines:
        values = _percents([getattr(group, baseline) for _, group in groups])
        axes.plot(values, places + shift, mark, color=_ORANGE, markerfacecolor="none", markersize=5, label=label)
    axes.axvline(50, color=_INK, linestyle=":", linewidth=1)
    axes.set_yticks(places, [f"{name} ({group.rows:,})" for name, group in groups])
    axes.set_ylim(-0.6, len(groups) - 0.4)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("accuracy (% of pairs)")
    axes.set_ylabel("subset (pairs)")
    _add_legend(figure, axes, _MODEL, "longer wins", "bag of words")
    if len(shown) < len(subsets):
        axes.set_title(f"the {len(shown)} largest of {len(subsets)} subsets", fontsize=10)
    return figure


def _name(subset: str) -> str:
    name = name_subset(subset)
    return name if len(name) <= 32 else name[:31] + "…"


def draw_reliability(report: EvaluationReport, _: Predictions):
    """Draw how often verdicts are right against how sure they are, before and after a fit, or as it is without one."""
    fit = report.temperature_fit
    if fit and fit.before and fit.after:
        panels = [
            ("before", fit.before, "o", _ORANGE),
            (f"after, temperature {fit.temperature:.2f}", fit.after, "s", _BLUE),
        ]
    else:
        panels = [("as it is", report.calibration, "o", _BLUE)]
    figure, drawn = _make_axes(3.6, len(panels), _WIDTH if len(panels) > 1 else 4.4)
    for axes, (title, calibration, mark, colour) in zip(drawn, panels, strict=True):
        bins: list[ReliabilityBin] = [each for each in calibration.reliability if each.accuracy.value is not None]
        accuracies = [each.accuracy for each in bins]
        axes.plot([50, 100], [50, 100], color=_INK, linestyle="--", linewidth=1, label="calibrated")
        confidences = [100 * each.confidence for each in bins]
        axes.errorbar(confidences, _percents(accuracies), yerr=_errors(accuracies), fmt=mark, color=colour,
                      markersize=5, capsize=2, label=_BIN)  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlim(49, 101)
        axes.set_ylim(-3, 103)
        axes.set_xlabel("confidence in the verdict (%)")
    drawn[0].set_ylabel("right verdicts (% of pairs)")
    _add_legend(figure, drawn[0], _BIN, "calibrated")
    return figure


def draw_orders(report: EvaluationReport, unedited: Predictions):
    """Draw each pair by the probability of its better response in one order and in the other."""
    verdicts = unedited.where(unedited.is_decided).verdicts
    in_each, consistent = 100 * verdicts.prob_first_in_each, verdicts.is_consistent
    rows = len(in_each)
    shown = np.sort(np.random.default_rng(0).permutation(rows)[:_MOST_MARKS])
    figure, [axes] = _make_axes(5.0, width=5.2)
    for low in ((50, 0), (0, 50)):
        axes.fill_between([low[0], low[0] + 50], low[1], low[1] + 50, facecolor="none", hatch="///", edgecolor=_FAINT,
                          linewidth=0)  # fmt: skip
    for kept, mark, colour, label in (
        (consistent, "o", _BLUE, "same verdict"),
        (~consistent, "x", _ORANGE, "it changes"),
    ):
        places = shown[kept[shown]]
        fill = {"markerfacecolor": "none"} if mark == "o" else {}
        axes.plot(*in_each[places].T, mark, color=colour, markersize=4, markeredgewidth=0.8, alpha=0.7,
                  label=f"{label} ({100 * kept.mean():.0f}%)", **fill)  # fmt: skip
    axes.axhline(50, color=_INK, linewidth=0.8)
    axes.axvline(50, color=_INK, linewidth=0.8)
    in_a, in_b = (in_each > 50).T
    for x, y, text, inside in (
        (97, 97, "right in both", in_a & in_b),
        (97, 3, "always A", in_a & ~in_b),
        (3, 97, "always B", ~in_a & in_b),
        (3, 3, "wrong in both", ~in_a & ~in_b),
    ):
        axes.text(x, y, f"{text}: {100 * inside.mean():.0f}%", ha="right" if x > 50 else "left",
                  va="top" if y > 50 else "bottom", weight="bold", zorder=5,
                  bbox={"facecolor": _PAPER, "edgecolor": "none", "pad": 2, "alpha": 0.85})  # fmt: skip
    axes.set_xlim(-2, 102)
    axes.set_ylim(-2, 102)
    axes.set_aspect("equal")
    axes.set_xlabel("probability of the better response in slot A (%)")
    axes.set_ylabel("probability of the better response in slot B (%)")
    if len(shown) < rows:
        axes.set_title(f"{len(shown):,} of {rows:,} pairs, drawn at random", fontsize=10)
    _add_legend(figure, axes, *axes.get_legend_handles_labels()[1])
    return figure


def draw_length(report: EvaluationReport, _: Predictions):
    """Draw the accuracy of pairs by how much longer the better response is."""
    buckets = report.length.buckets
    accuracies, places = [bucket.accuracy for bucket in buckets], np.arange(len(buckets))
    figure, [axes] = _make_axes(3.9)
    axes.errorbar(places, _percents(accuracies), yerr=_errors(accuracies), fmt="o-", color=_BLUE, linewidth=1,
                  capsize=3, label=_MODEL)  # fmt: skip
    longer = [50 if bucket.low <= 0 <= bucket.high else 100 * (bucket.low > 0) for bucket in buckets]
    axes.step(places, longer, where="mid", color=_ORANGE, linestyle="--", linewidth=1.2, label="longer wins")
    axes.axhline(50, color=_INK, linestyle=":", linewidth=1)
    names = [
        _characters(b.low) if b.low == b.high else f"{_characters(b.low)} to {_characters(b.high)}" for b in buckets
    ]
    axes.set_xticks(places, names, rotation=35, ha="right")
    axes.set_ylim(-4, 104)
    axes.set_xlabel("length of the better response less the other's (characters)")
    axes.set_ylabel("accuracy (% of pairs)")
    _add_legend(figure, axes, _MODEL, "longer wins")
    return figure


def _characters(difference: int) -> str:
    return f"{difference:+,}".replace("-", "−") if difference else "0"


def draw_probabilities(report: EvaluationReport, unedited: Predictions):
    """Draw how often each probability is given to the better response, and where labelled ties lie."""
    edges = np.linspace(0, 100, 41)
    counts, _ = np.histogram(100 * unedited.where(unedited.is_decided).verdicts.prob_first, edges)
    figure, [axes] = _make_axes(3.3)
    centres, is_right = (edges[1:] + edges[:-1]) / 2, edges[:-1] >= 50
    for half, hatch, colour, label in ((is_right, "", _BLUE, "right"), (~is_right, "////", _ORANGE, "wrong")):
        bars = {"facecolor": colour} if not hatch else {"facecolor": "none", "hatch": hatch, "hatchcolor": colour}
        axes.bar(centres[half], counts[half], width=2.5, edgecolor=colour, linewidth=0.8, label=label, **bars)
    if report.ties:
        ties, _ = np.histogram(100 * unedited.where(unedited.is_labelled_tie).verdicts.prob_first, edges)
        axes.stairs(ties, edges, color=_INK, linewidth=1.5, linestyle="-", label="labelled a tie")
    axes.axvline(50, color=_INK, linestyle=":", linewidth=1)
    axes.set_xlim(0, 100)
    axes.set_xlabel("probability of the better response, both orders averaged (%)")
    axes.set_ylabel("pairs (count)")
    _add_legend(figure, axes, "right", "wrong", "labelled a tie")
    return figure


PLOTS: dict[str, Callable] = {
    "accuracy": draw_accuracy,
    "orders": draw_orders,
    "reliability": draw_reliability,
    "probabilities": draw_probabilities,
    "length": draw_length,
}
