"""Measure a trained preference model on labelled pairs, each scored in both orders.

python evaluate_pair_rm.py --model outputs/gemma-2b-it --dataset data/pairs.eval.jsonl --output report/
python evaluate_pair_rm.py --model outputs/gemma-2b-it --dataset allenai/reward-bench-2 --against outputs/older
python evaluate_pair_rm.py --from-predictions report/predictions.parquet --output report/ --overwrite
"""

import argparse
import json
import sys
from pathlib import Path

from pair_pm.command_line import add_model_arguments, identify_model, load_scorer, quieten_libraries
from pair_pm.errors import PairPMError


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, required=False)
    add = parser.add_argument
    add("--dataset", metavar="NAME", help="labelled pairs, in any form that process_pair_data.py reads, or RewardBench")
    add("--from-predictions", metavar="FILE", help="the predictions.parquet of an earlier run, instead of a model")
    add("--output", metavar="DIR", help="folder for the report and the predictions (default: print a summary only)")
    add("--against", metavar="NAME_OR_PATH", help="another model on the same data, or its predictions: a .parquet file")
    add("--perturb", action="store_true", help="dress up the worse responses, and count the right verdicts that flip")
    add("--fit-temperature", action="store_true",
        help="fit a temperature and an order offset on half of the prompts, and judge them on the others")  # fmt: skip
    add("--save", action="store_true", help="with --fit-temperature: write them into the model's pair_pm.json")
    add("--seed", type=int, default=0, help="of what is drawn: resamples, halves, folds (default: 0)")
    add("--resamples", type=_resamples, default=1000, metavar="N", help="of the intervals' bootstrap (default: 1000)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    again.add_argument("--overwrite", action="store_true", help="replace the report, or what a run left of it")
    arguments = parser.parse_args(argv)
    _check(parser, arguments)
    return arguments


def _resamples(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return int(text)


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.from_predictions is None:
        if arguments.model is None or arguments.dataset is None:
            parser.error("give --model and --dataset, or --from-predictions")
    elif arguments.dataset or arguments.perturb:
        parser.error("--dataset and --perturb take a model: leave out --from-predictions")
    elif arguments.against and not arguments.against.endswith(".parquet"):
        parser.error("--from-predictions: --against takes another model's predictions, a .parquet file")
    if arguments.save and not (arguments.fit_temperature and arguments.model):
        parser.error("--save writes what --fit-temperature finds into the card of --model: it needs both")
    if arguments.output is None and (arguments.resume or arguments.overwrite):
        parser.error("--resume and --overwrite need --output")


def evaluate(arguments: argparse.Namespace, command: str) -> int:
    """Evaluate, write the files, and print the summary as one JSON object."""
    from pair_pm.evaluation import EvaluationOptions
    from pair_pm.evaluation_run import (
        OTHER_PREDICTIONS,
        PAGE,
        ReportFolder,
        check_savable,
        predict_with,
        report_and_save,
    )
    from pair_pm.labelled_source import read_labelled_pairs
    from pair_pm.predictions import read_predictions

    output = Path(arguments.output) if arguments.output is not None else None
    folder = ReportFolder(output, command, arguments.resume, arguments.overwrite)
    if finished := folder.find_finished():
        print(f"{output}: was finished already; nothing is left to do", file=sys.stderr)
        print(json.dumps(finished["summary"], indent=2))
        return 0
    save_into = choose_judge(arguments) if arguments.save else None
    if save_into:
        check_savable(save_into)
    labelled = other = None
    if arguments.from_predictions is not None:
        predictions = read_predictions(arguments.from_predictions)
    else:
        labelled = read_labelled_pairs(arguments.dataset)
        predictions = predict_with(choose_judge(arguments), labelled, folder, perturb=arguments.perturb)
    if arguments.against and arguments.against.endswith(".parquet"):
        other = read_predictions(arguments.against)
    elif arguments.against:
        other = predict_with(choose_judge(name_other(arguments)), labelled, folder, OTHER_PREDICTIONS)
    options = EvaluationOptions(command, arguments.seed, arguments.resamples, arguments.fit_temperature)
    report, problem = report_and_save(predictions, options, folder, other, save_into)
    print(json.dumps(report.summary, indent=2))
    if output is not None:
        print(f"report: {output / PAGE}", file=sys.stderr)
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


def name_other(arguments: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments of the other model: in this process, with what its own card says."""
    own = {"adapter": None, "engine": None, "engine_timeout_s": None, "temperature": None}
    return argparse.Namespace(**vars(arguments) | own | {"model": arguments.against})


def choose_judge(arguments: argparse.Namespace):
    """Return the model that the arguments name."""
    from pair_pm.evaluation_run import Judge

    return Judge(
        name=arguments.model,
        adapter=arguments.adapter,
        profile=arguments.profile,
        described=identify_model(arguments),
        load=lambda: load_scorer(arguments),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the evaluation."""
    arguments = parse_arguments(argv)
    words = sys.argv[1:] if argv is None else argv
    quieten_libraries()
    from pair_pm.evaluation_run import describe_command

    command = describe_command(["python", "evaluate_pair_rm.py", *words])
    try:
        return evaluate(arguments, command)
    except (PairPMError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        how = f"; go on with: {command} --resume" if arguments.output is not None else ""
        print(f"interrupted{how}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
