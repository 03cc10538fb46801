"""Turn preference data into the A/B data that a pairwise preference model is trained on.

    python process_pair_data.py --dataset preferences.jsonl --output data/pairs.jsonl --both-orders
    python process_pair_data.py --dataset hendrydong/preference_700K --dataset more.parquet --eval-fraction 0.01 \\
        --tokenizer google/gemma-2b-it --max-length 3072 --output data/pairs.jsonl
"""

import argparse
import shlex
import signal
import sys

from pair_pm.errors import PairPMError


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", action="append", required=True, metavar="NAME",
        help="preference data: .jsonl, .json, .parquet (.gz too for JSON), a save_to_disk folder[:split], or a hub "
        "name[@revision][:split]; repeatable")  # fmt: skip
    add("--output", required=True, help="x.jsonl, x.parquet or a folder; beside it x.summary.json")
    add("--eval-fraction", type=_fraction, default=0.0, metavar="F",
        help="hold out this share of first user messages as x.eval.jsonl")  # fmt: skip
    add("--both-orders", action="store_true", help="write each pair in both orders, side by side")
    add("--ties", choices=("drop", "keep", "votes"), default="drop",
        help="keep: rows labelled as ties stay, with prob_a 0.5 and a drawn label; votes: with their prob_chosen as "
        "target, 0.5 where they have none")  # fmt: skip
    add("--min-margin", type=float, metavar="X", help="keep pairs whose two scores differ by at least X")
    add("--margin-columns", type=_two_names, default=("chosen_score", "rejected_score"), metavar="A,B",
        help="columns of the two scores (default: chosen_score,rejected_score)")  # fmt: skip
    add("--tokenizer", metavar="NAME_OR_PATH", help="count tokens through this model's chat template")
    add("--max-length", type=int, metavar="N", help="drop rows whose whole training sequence is longer; never cut")
    add("--decontaminate-against", nargs="+", action="extend", default=[], metavar="NAME",
        help="evaluation data, RewardBench included: drop rows whose prompt, or whose response of 50 words or more, "
        "stands in it; repeatable")  # fmt: skip
    add("--seed", type=_seed, default=42, help="of the position draw and the evaluation split (default: 42)")
    add("--strict", action="store_true", help="stop at the first defective row")
    add("--rejects", metavar="FILE", help="write the dropped rows, each with its reason, as JSON lines")
    add("--num-proc", type=int, default=1, metavar="N", help="processes; the output is the same for any number")
    add("--push-to-hub", metavar="NAME", help="upload the result to this data set on the hub as well")
    add("--private", action="store_true", help="with --push-to-hub: create it private")
    arguments = parser.parse_args(argv)
    if arguments.max_length is not None and not arguments.tokenizer:
        parser.error("--max-length counts tokens: it needs --tokenizer")
    if arguments.num_proc < 1:
        parser.error("--num-proc must be at least 1")
    return arguments


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to under 1")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} does not fit into 64 bits")
    return value


def _two_names(text: str) -> tuple[str, str]:
    names = text.split(",")
    if len(names) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not two column names, A,B")
    return names[0], names[1]


def main(argv: list[str] | None = None) -> int:
    """Convert, and print what came of each row."""
    arguments = parse_arguments(argv)
    from pair_pm.pair_conversion import ConversionOptions
    from pair_pm.pair_dataset import build_pair_dataset
    from pair_pm.pair_output import push_to_hub

    options = ConversionOptions(
        seed=arguments.seed,
        ties=arguments.ties,
        both_orders=arguments.both_orders,
        eval_fraction=arguments.eval_fraction,
        min_margin=arguments.min_margin,
        margin_columns=arguments.margin_columns,
        tokenizer=arguments.tokenizer,
        max_length=arguments.max_length,
        decontaminate_against=tuple(dict.fromkeys(arguments.decontaminate_against)),
        keep_rows=arguments.rejects is not None,
    )
    try:
        summary = build_pair_dataset(
            arguments.dataset,
            arguments.output,
            options,
            num_proc=arguments.num_proc,
            strict=arguments.strict,
            rejects=arguments.rejects,
            command=shlex.join(["python", "process_pair_data.py", *(sys.argv[1:] if argv is None else argv)]),
        )
        print(summary.to_table())
        if arguments.push_to_hub:
            push_to_hub(arguments.output, arguments.push_to_hub, private=arguments.private)
    except (PairPMError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that the temporary folder goes
    sys.exit(main())
