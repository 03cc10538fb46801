"""How long a report of 20,000 predictions takes, and what of it.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --pairs 100000

Makes predictions of a simulated model on texts of a real length (responses of 20 to 400 words of a vocabulary with the
frequencies of language), writes them as `evaluate_pair_rm.py` does, and reports on them with `--from-predictions`,
`--fit-temperature` and `--against` in a process of its own, as a user would.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

WORDS = 30_000
SUBSETS = 23
PROMPTS_A_PAIR = 0.6


def write_texts(draw: np.random.Generator, texts: int) -> list[str]:
    """Return texts of words that are as frequent as those of a language, by Zipf's law."""
    words = np.array([f"word{number}" for number in range(WORDS)])
    weights = 1 / np.arange(1, WORDS + 1)
    lengths = draw.integers(20, 400, texts)
    drawn = words[draw.choice(WORDS, lengths.sum(), p=weights / weights.sum())]
    return [" ".join(part) for part in np.split(drawn, np.cumsum(lengths)[:-1])]


def simulate(pairs: int, seed: int):
    """Return the predictions of two models on the same pairs."""
    from simulated import make_predictions

    draw = np.random.default_rng(0)
    first, second = write_texts(draw, pairs), write_texts(draw, pairs)
    prompts = draw.integers(0, int(pairs * PROMPTS_A_PAIR), pairs)
    known = {
        "first": np.array(first, dtype=object),
        "second": np.array(second, dtype=object),
        "subset": np.array([f"subset {number}" for number in draw.integers(0, SUBSETS, pairs)], dtype=object),
        "prompt_key": np.array([f"{number:032x}" for number in prompts], dtype=object),
        "label": np.where(draw.random(pairs) < 0.05, "tie", "first").astype(object),
    }
    hardness = draw.normal(1, 2, pairs)
    return [
        make_predictions(hardness[:, None] * [1, -1] + draw.normal(0.3, 0.7, (pairs, 2)), **known) for _ in range(2)
    ]


def main() -> int:
    """Run and print the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20_000)
    arguments = parser.parse_args()
    from pair_pm.predictions import write_predictions

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("predictions.parquet", "against.parquet")]
        for path, predictions in zip(paths, simulate(arguments.pairs, seed=0), strict=True):
            write_predictions(path, predictions)
        print(f"{arguments.pairs} pairs; predictions.parquet {paths[0].stat().st_size / 1e6:.1f} MB")
        command = [sys.executable, "evaluate_pair_rm.py", "--from-predictions", str(paths[0])]
        started = time.monotonic()
        subprocess.run(
            [*command, "--against", str(paths[1]), "--fit-temperature", "--output", f"{folder}/report"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        seconds = time.monotonic() - started
        print(f"report with intervals, regression on words, temperature and another model: {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
