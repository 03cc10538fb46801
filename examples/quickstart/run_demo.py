"""The whole main job on generated data, by the five public commands, each printed before it runs.

    python examples/quickstart/run_demo.py

A smoke test of the machinery, not a claim of quality: what decides these pairs is easy. It fails where the trained
model misses what it must reach on conversations that it was never trained on.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent.relative_to(ROOT)
RUN = HERE / "run"
REQUIRED_ACCURACY = 0.95
REQUIRED_CONSISTENCY = 0.95


def run(command: str) -> str:
    """Print a command, run it in the repository, and return what it wrote to stdout; stop the demo if it fails."""
    print(f"\n$ {command}", flush=True)
    started = time.monotonic()
    done = subprocess.run(shlex.split(command), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stdout)
        sys.exit(f"the command failed with exit code {done.returncode}")
    print(f"({time.monotonic() - started:.0f} s)", flush=True)
    return done.stdout


def show_table(training_log: str) -> str:
    """Return the table that a training run ends with."""
    lines = training_log.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Training  "))
    end = next(number for number, line in enumerate(lines) if number > start and line.startswith("└"))
    return "\n".join(lines[start : end + 1])


def main() -> int:
    """Run the demo and return 0 where the model reached what it must."""
    os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # so small a model is slower on two threads than on one
    shutil.rmtree(ROOT / RUN, ignore_errors=True)
    run(f"python {HERE}/make_quickstart.py")
    data = f"--dataset {HERE}/data/preferences.jsonl --output {RUN}/pairs.jsonl --both-orders --eval-fraction 0.02"
    print(run(f"python process_pair_data.py {data}"))
    print(run(f"python prepare_model.py --model {HERE}/base_model --output {RUN}/prepared"))
    print(show_table(run("torchrun --nproc_per_node 1 -m axolotl.cli.train config/tiny-cpu.yml")))
    evaluation = f"--dataset {HERE}/data/heldout.jsonl --output {RUN}/report --perturb --fit-temperature"
    summary = json.loads(run(f"python evaluate_pair_rm.py --model {RUN}/model {evaluation}"))
    row = json.loads((ROOT / HERE / "data" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[0])
    pair = {"messages": row["chosen"][:-1], "response_a": row["chosen"][-1]["content"],
            "response_b": row["rejected"][-1]["content"]}  # fmt: skip
    (ROOT / RUN / "pair.json").write_text(json.dumps(pair, indent=2), encoding="utf-8")
    verdict = run(f"python serve_pair_rm.py compare --model {RUN}/model --input {RUN}/pair.json")

    print(f"\nOne comparison in full\n{json.dumps(pair, indent=2)}\n{verdict}")
    return show_result(summary)


def show_result(summary: dict) -> int:
    """Print the report's main numbers, where the whole of it lies, and what the model must reach."""
    accuracy, consistency = summary["accuracy"], summary["position_consistency"]
    print(cut_summary((ROOT / RUN / "report" / "report.md").read_text(encoding="utf-8")))
    print(f"The report, with plots: {RUN}/report/report.html")
    print(f"Required: accuracy {REQUIRED_ACCURACY} (found {accuracy:.3f}), "
          f"verdicts that survive the swap {REQUIRED_CONSISTENCY} (found {consistency:.3f})")  # fmt: skip
    print("This shows that the machinery works; it says nothing about the quality of a model on real preferences.")
    print(f"Try the model in a browser or over HTTP: python serve_pair_rm.py serve --model {RUN}/model")
    if accuracy < REQUIRED_ACCURACY or consistency < REQUIRED_CONSISTENCY:
        print("FAILED: the model misses what is required.", file=sys.stderr)
        return 1
    return 0


def cut_summary(report: str) -> str:
    """Return a report in Markdown down to the end of its section "At a glance"."""
    return report[: report.index("\n## ", report.index("## At a glance"))].rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
