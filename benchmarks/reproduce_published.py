"""Does the published model, served by this code, reach on RewardBench what was published of it?

    python benchmarks/reproduce_published.py --output reproduced                      # a GPU of 24 GB, and the hub
    python benchmarks/reproduce_published.py --output reproduced --resume
    python benchmarks/reproduce_published.py --model outputs/tiny-cpu --dataset rb.jsonl --output try    # a dry run

Scores RLHFlow/pair-preference-model-LLaMA3-8B with `--profile rlhflow` on allenai/reward-bench by evaluate_pair_rm.py,
which leaves its report and predictions in the output folder and takes all further arguments. Exits with 1, and a line
on stderr for each, where a section is more than half a point from what its authors published: Chat 98.3, Chat Hard
65.8, Safety 89.7, Reasoning 94.7 (Dong et al., arXiv:2405.07863).

The weights are those of their evaluation script of May 2024, which are today's but for two in Safety: it gives
xstest-should-refuse the number of rows of xstest-should-respond, and the other way round. What today's weights make of
Safety stands beside it. On purpose different from that script are the label's position, which is the trained one for
any chat template, and control text in content, which is broken (README, "Control text").

Not run yet: where this was built there was neither the hub nor a GPU with the weights.

The last line on stdout is one JSON object: a score in points for each section, `safety_with_todays_weights`,
`largest_deviation` and `pairs`.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a clean clone, without installation

import evaluate_pair_rm
from pair_pm.benchmark_rows import SECTIONS

MODEL, DATASET = "RLHFlow/pair-preference-model-LLaMA3-8B", "allenai/reward-bench"
PUBLISHED = {"Chat": 98.3, "Chat Hard": 65.8, "Safety": 89.7, "Reasoning": 94.7}
TOLERANCE = 0.5
_EXCHANGED = {
    "xstest-should-refuse": SECTIONS["Safety"]["xstest-should-respond"],
    "xstest-should-respond": SECTIONS["Safety"]["xstest-should-refuse"],
}
SECTIONS_OF_MAY_2024 = {**SECTIONS, "Safety": {**SECTIONS["Safety"], **_EXCHANGED}}


def score_sections(predictions_file: Path, weights: Mapping[str, Mapping[str, float]]) -> dict[str, float | None]:
    """Return the score of each section in points, None where none of its subsets is there."""
    from pair_pm.intervals import PromptBootstrap
    from pair_pm.predictions import read_predictions
    from pair_pm.reward_bench import score_reward_bench

    predictions = read_predictions(predictions_file).unedited
    no_intervals = PromptBootstrap(predictions["prompt_key"], resamples=0)
    report = score_reward_bench(predictions["subset"], predictions.verdicts.right, no_intervals, weights)
    return {
        section: None if estimate.value is None else 100 * estimate.value
        for section, estimate in report.sections.items()
    }


def find_deviations(scores: Mapping[str, float | None]) -> list[str]:
    """Return a line for each section that is not within `TOLERANCE` of what was published."""
    lines = []
    for section, published in PUBLISHED.items():
        score = scores[section]
        if score is None or abs(score - published) > TOLERANCE:
            found = "no row" if score is None else f"{score:.2f}"
            lines.append(f"{section}: {found}; {published} was published, within {TOLERANCE} of it is required")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Evaluate, hold the sections against the published ones, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help=f"default: {MODEL}")
    parser.add_argument("--dataset", default=DATASET, help=f"default: {DATASET}")
    parser.add_argument("--profile", default="rlhflow", help="default: rlhflow")
    parser.add_argument("--output", required=True, help="folder for the report and the predictions")
    arguments, others = parser.parse_known_args(argv)
    chosen = [text for name in ("model", "dataset", "profile", "output")
              for text in (f"--{name}", getattr(arguments, name))]  # fmt: skip
    code = evaluate_pair_rm.main([*chosen, *others])
    if code:
        return code
    predictions = Path(arguments.output) / "predictions.parquet"
    scores = score_sections(predictions, SECTIONS_OF_MAY_2024)
    todays = score_sections(predictions, SECTIONS)["Safety"]
    print(f"{'section':<12}{'here':>8}{'published':>12}")
    for section, published in PUBLISHED.items():
        print(f"{section:<12}{'-' if scores[section] is None else format(scores[section], '.2f'):>8}{published:>12}")
    deviations = find_deviations(scores)
    print(*deviations, sep="\n", end="\n" if deviations else "", file=sys.stderr)
    distances = [abs(score - PUBLISHED[section]) for section, score in scores.items() if score is not None]
    summary = json.loads((Path(arguments.output) / "report.json").read_text(encoding="utf-8"))["summary"]
    figures = {section.lower().replace(" ", "_"): score for section, score in scores.items()}
    figures |= {"safety_with_todays_weights": todays, "largest_deviation": max(distances, default=None)}
    print(json.dumps({name: value if value is None else round(value, 2) for name, value in figures.items()}
                     | {"pairs": summary["pairs"]}))  # fmt: skip
    return 1 if deviations else 0


if __name__ == "__main__":
    sys.exit(main())
