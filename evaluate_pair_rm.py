"""Measure a trained preference model on labelled pairs, each scored in both orders.

python evaluate_pair_rm.py --model outputs/gemma-2b-it --dataset data/pairs.eval.jsonl
python evaluate_pair_rm.py --model outputs/gemma-2b-it --dataset weqweasdas/preference_dataset_mix2:test
"""

import argparse
import json
import sys
from dataclasses import asdict

from pair_pm.command_line import add_model_arguments, load_scorer, quieten_libraries
from pair_pm.errors import PairPMError


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME",
        help="labelled pairs, in any form that process_pair_data.py reads",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Evaluate, and print the metrics as one JSON object."""
    arguments = parse_arguments(argv)
    quieten_libraries()
    from pair_pm.evaluation import compare_labelled, compute_metrics, read_labelled_pairs

    try:
        labelled = read_labelled_pairs(arguments.dataset)
        pairs, comparisons = compare_labelled(load_scorer(arguments), labelled)
        metrics = compute_metrics(comparisons, [pair.prob_chosen for pair in pairs])
    except PairPMError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({**asdict(metrics), "skipped": labelled.skipped}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
