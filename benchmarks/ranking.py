"""What each ranking method reaches for its tokens, replayed from all verdicts of a trained judge on real arguments.

    python benchmarks/ranking.py                     # trains a judge first: about a quarter of an hour on two cores
    python benchmarks/ranking.py --model DIR         # with a judge that is there: three minutes

A model repeats its errors, so methods must not be tried on noise that is drawn anew for each comparison: that flatters
those which ask about the same candidates again and again. Here a judge compares all arguments of each prompt of
ukpconvarg1's held-out debates with each other, once, in both orders; the verdicts are kept in the work folder, and
every method is answered from them. A set is 8, 16 or 32 of a prompt's arguments; each method ranks it with several
seeds. The yardstick is the round robin over all pairs in both orders:

    spearman   rank correlation of the strengths with those of the round robin
    top1       how often the first is the round robin's first
    regret     by how much the round robin's first beats the others more often than the first does, in P(win)
    coverage   how often the 95% interval of a strength holds the round robin's strength

Beside the recorded judge stands a simulated one that is worse than any that was recorded: a fifth of the variance of
its log-odds is contradiction between pairs, a slot is preferred by 0.5, and by another amount for each pair; all of it
repeats as a model's errors do. Without a model of its own, the benchmark trains the soft arm of
benchmarks/real_preferences.py with seed 0.

Curves over tokens are drawn into ranking_recorded.png and ranking_simulated.png in the work folder. The last line on
stdout is one JSON object, names JUDGE_SIZE_METHOD_FIGURE: methods in one order at three calls a candidate, and, as
`METHOD_both`, in both orders at the same price or less, and `METHOD_both6` at twice that.
"""

import argparse
import hashlib
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a clean clone, without installation

from pair_pm.ranking import METHODS, best_of_n, rank_many  # noqa: E402

SIZES = (8, 16, 32)
SETS = 4  # of a size, from each prompt
SEEDS = 3
CALLS = (2, 3, 4, 6)  # a candidate
SPARSE = [method for method in METHODS if method != "round_robin"]


@dataclass(frozen=True)
class Set:
    """All verdicts on a set of candidates.

    Attributes:
        log_odds: Of A against B, for the candidate of the row in slot A and that of the column in B, shape (n, n).
        tokens: Fed for them, shape (n, n).
    """

    log_odds: np.ndarray
    tokens: np.ndarray

    def take(self, indices: Sequence[int]) -> "Set":
        """Return the verdicts on some of the candidates."""
        return Set(self.log_odds[np.ix_(indices, indices)], self.tokens[np.ix_(indices, indices)])


class RecordedComparer:
    """Answers from recorded verdicts; a group's messages are the number of its set, its responses their indices."""

    def __init__(self, sets: Sequence[Set]):
        self.sets = sets

    def compare_in_order(self, items: Sequence[tuple]) -> list:
        """Return what was recorded for each (set, in slot A, in slot B)."""
        from pair_pm.scoring import OrderedComparison

        found = [(self.sets[s].log_odds[i, j], self.sets[s].tokens[i, j]) for s, i, j in items]
        return [OrderedComparison(1 / (1 + np.exp(-one)), one, 1.0, int(tokens)) for one, tokens in found]

    def compare_many(self, items: Sequence[tuple]) -> list:
        """Return both orders of each (set, first, second), averaged."""
        from pair_pm.scoring import compare_logprobs

        first_in_a = self.compare_in_order(items)
        first_in_b = self.compare_in_order([(s, j, i) for s, i, j in items])
        return [
            compare_logprobs(
                np.log([[a.prob_a, 1 - a.prob_a], [b.prob_a, 1 - b.prob_a]]), (a.prompt_tokens, b.prompt_tokens)
            )
            for a, b in zip(first_in_a, first_in_b, strict=True)
        ]


# ---- judges ---------------------------------------------------------------------------------------------------------


def train_judge(folder: Path) -> Path:
    """Return a judge trained by the public commands on votes about other debates; it is made once."""
    from real_preferences import split_rows, train_arm

    model = folder / "judge" / "model"
    if not (model / "pair_pm.json").exists():
        train_arm(split_rows(validate=False)[0], "soft", 0, folder / "judge")
    return model


def read_prompts() -> dict[str, list[str]]:
    """Return the arguments to each prompt of the held-out debates."""
    from real_preferences import prompt_of, responses_of, split_rows

    arguments: dict[str, set[str]] = {}
    for row in split_rows(validate=False)[1]:
        arguments.setdefault(prompt_of(row), set()).update(responses_of(row))
    return {prompt: sorted(arguments[prompt]) for prompt in sorted(arguments)}


def record(model: Path, folder: Path) -> list[Set]:
    """Return all verdicts of a judge on the arguments of each prompt; they are kept in the folder."""
    prompts = read_prompts()
    parts = [prompts, [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(model.glob("*.safetensors"))]]
    kept = folder / f"verdicts-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}.json"
    if not kept.exists():
        from pair_pm import PairScorer

        scorer, recorded = PairScorer.from_pretrained(str(model)), []
        for prompt, arguments in prompts.items():
            print(f"recording {prompt[:60]!r}…, {len(arguments)} arguments", file=sys.stderr, flush=True)
            pairs = [(i, j) for i in range(len(arguments)) for j in range(len(arguments)) if i != j]
            verdicts = scorer.compare_in_order([(prompt, arguments[i], arguments[j]) for i, j in pairs])
            recorded.append(
                [(*pair, v.log_odds_of_a, v.prompt_tokens) for pair, v in zip(pairs, verdicts, strict=True)]
            )
        unfinished = kept.with_suffix(".tmp")
        unfinished.write_text(json.dumps(recorded), encoding="utf-8")
        unfinished.replace(kept)
    sets = []
    for verdicts in json.loads(kept.read_text(encoding="utf-8")):
        n = 1 + max(i for i, *_ in verdicts)
        log_odds, tokens = np.zeros((n, n)), np.zeros((n, n), dtype=int)
        for i, j, one, fed in verdicts:
            log_odds[i, j], tokens[i, j] = one, fed
        sets.append(Set(log_odds, tokens))
    return sets


def simulate(recorded: Sequence[Set]) -> list[Set]:
    """Return verdicts of a judge that contradicts itself, on sets as large and as long as the recorded ones."""
    draw, sets = np.random.default_rng(0), []
    for one in recorded:
        n = len(one.log_odds)
        strengths, contradiction = draw.normal(0, 1, n), draw.normal(0, 0.7, (n, n))
        fair = strengths[:, None] - strengths[None] + (contradiction - contradiction.T) / np.sqrt(2)
        sets.append(Set(fair + draw.normal(0.5, 0.3, (n, n)), one.tokens))
    return sets


def describe(name: str, sets: Sequence[Set]) -> dict[str, float]:
    """Print how consistent a judge is, and return it by name."""
    agreeing, explained = [], []
    for one in sets:
        off = ~np.eye(len(one.log_odds), dtype=bool)
        fair = (one.log_odds - one.log_odds.T) / 2
        strengths = fair.mean(axis=1)
        agreeing.append(np.mean((one.log_odds > 0)[off] != (one.log_odds.T > 0)[off]))
        explained.append(1 - (fair - strengths[:, None] + strengths[None])[off].var() / fair[off].var())
    print(
        f"\n{name}: verdicts that survive the swap {np.mean(agreeing):.3f}; variance of log-odds that one strength a "
        f"candidate explains {np.mean(explained):.3f}, least of a prompt {min(explained):.3f}"
    )
    return {f"{name}_position_consistency": np.mean(agreeing), f"{name}_explained": np.mean(explained)}


# ---- replay ---------------------------------------------------------------------------------------------------------


def draw_sets(prompts: Sequence[Set], size: int) -> list[Set]:
    """Return the sets of a size: draws from each prompt's candidates, or all of them where there are no more."""
    draw = random.Random(size)
    return [
        prompt.take(draw.sample(range(len(prompt.log_odds)), size))
        for prompt in prompts
        if len(prompt.log_odds) >= size
        for _ in range(SETS)
    ]


def replay(sets: Sequence[Set], size: int) -> dict[tuple[str, str, int], dict[str, float]]:
    """Return the mean figures of each (method, orders, calls a candidate) over sets and seeds."""
    comparer, groups = RecordedComparer(sets), [(number, range(size)) for number in range(len(sets))]
    yardsticks = rank_many(comparer, groups, resamples=0)
    full_tokens = np.mean([one.tokens for one in yardsticks])
    found = {
        ("round_robin", "both", size - 1): {
            "calls": size - 1,
            "tokens": full_tokens,
            "spearman": 1,
            "top1": 1,
            "regret": 0,
        }
    }
    options = [(method, orders, calls) for method in SPARSE for orders in ("one", "both") for calls in CALLS]
    for method, orders, calls in [("knockout", "both", 2), *options]:
        measured = []
        for seed in range(SEEDS):
            if method == "knockout":
                results = [best_of_n(comparer, *group, seed=seed) for group in groups]
            else:
                limits = {"budget": calls * size, "orders": orders, "resamples": 100 * ((orders, calls) == ("one", 3))}
                results = rank_many(comparer, groups, method, seed, **limits)
            measured += [measure(*one) for one in zip(sets, yardsticks, results, strict=True)]
        names = measured[0].keys()
        found[method, orders, calls] = {name: np.mean([one[name] for one in measured]) for name in names}
    return found


def measure(verdicts: Set, yardstick, result) -> dict[str, float]:
    """Return the figures of one result beside the round robin."""
    from scipy.stats import spearmanr

    n = len(verdicts.log_odds)
    in_a = 1 / (1 + np.exp(-verdicts.log_odds))
    win_rate = ((in_a + 1 - in_a.T) / 2).sum(axis=1) / (n - 1)  # the same 0.5 / (n - 1) too much for all
    best, first = yardstick.order[0], result.order[0] if hasattr(result, "order") else result.index
    figures = {"calls": result.calls / n, "tokens": result.tokens, "top1": float(first == best)}
    figures["regret"] = win_rate[best] - win_rate[first]
    if hasattr(result, "order"):
        figures["spearman"] = spearmanr(result.strengths, yardstick.strengths)[0]
        if result.intervals:
            held = zip(result.intervals, yardstick.strengths, strict=True)
            figures["coverage"] = np.mean([low <= one <= high for (low, high), one in held])
    return figures


# ---- what comes out -------------------------------------------------------------------------------------------------


def print_table(name: str, size: int, found: dict[tuple[str, str, int], dict[str, float]]) -> None:
    """Print a row for each method and price."""
    print(f"\n{name}, {size} candidates\n  method       orders   calls/n    tokens  spearman   top1  regret  coverage")
    for (method, orders, _), figures in found.items():
        spearman = f"{figures['spearman']:>9.3f}" if "spearman" in figures else f"{'':>9}"
        coverage = f"{figures['coverage']:>9.3f}" if "coverage" in figures else ""
        print(
            f"  {method:<12} {orders:<6}{figures['calls']:>10.2f}{figures['tokens']:>10.0f}{spearman}"
            f"{figures['top1']:>8.3f}{figures['regret']:>8.4f} {coverage}"
        )


def name_figures(name: str, size: int, found: dict[tuple[str, str, int], dict[str, float]]) -> dict[str, float]:
    """Return the figures that stand in the last line."""
    named = {}
    for (method, orders, calls), figures in found.items():
        if method == "knockout" or calls == 3 or (orders, calls) == ("both", 6):
            suffix = "" if orders == "one" or method == "knockout" else "_both6" if calls == 6 else "_both"
            named |= {f"{name}_{size}_{method}{suffix}_{figure}": value for figure, value in figures.items()}
    return named


def draw_plot(name: str, by_size: dict[int, dict[tuple[str, str, int], dict[str, float]]], path: Path) -> None:
    """Draw each figure over tokens, a column for each size, a colour for each method."""
    import matplotlib
    import matplotlib.ticker

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = ("spearman", "top1", "regret")
    figure, axes = plt.subplots(len(rows), len(by_size), figsize=(13, 10), sharex="col", sharey="row", squeeze=False)
    colours = dict(zip(["knockout", *SPARSE, "round_robin"], plt.get_cmap("tab10").colors, strict=False))
    for column, (size, found) in enumerate(by_size.items()):
        for row, figure_name in enumerate(rows):
            axis = axes[row][column]
            for method, orders in dict.fromkeys((method, orders) for method, orders, _ in found):
                points = [f for (m, o, _), f in found.items() if (m, o) == (method, orders) and figure_name in f]
                label = method if method in ("knockout", "round_robin") else f"{method}, {orders}"
                axis.plot(
                    [point["tokens"] / 1000 for point in points],
                    [point[figure_name] for point in points],
                    color=colours[method],
                    marker="*" if label == method else "o",
                    linestyle="-" if orders == "one" else ":",
                    label=label,
                )
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            axis.set_ylabel(figure_name if column == 0 else "")
        axes[0][column].set_title(f"{name} judge, {size} candidates")
        axes[-1][column].set_xlabel("thousands of prompt tokens a set")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"{path}: {', '.join(rows)} over tokens", file=sys.stderr)


def main() -> int:
    """Make or take a judge, record it, replay, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, metavar="DIR", help="a trained judge (default: one is trained)")
    parser.add_argument("--work-folder", type=Path, default=ROOT / "benchmarks" / "ranking_run")
    arguments = parser.parse_args()
    os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # so small a model is slower on two threads than on one
    folder = arguments.work_folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)

    recorded = record(arguments.model or train_judge(folder), folder)
    figures = {}
    for name, prompts in {"recorded": recorded, "simulated": simulate(recorded)}.items():
        figures |= describe(name, prompts)
        by_size = {size: replay(draw_sets(prompts, size), size) for size in SIZES}
        for size, found in by_size.items():
            print_table(name, size, found)
            figures |= name_figures(name, size, found)
        draw_plot(name, by_size, folder / f"ranking_{name}.png")
    print(json.dumps({name: round(float(value), 4) for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
