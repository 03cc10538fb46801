"""Use a trained preference model: compare two responses, all pairs of a file, the candidates of each row of one, or
serve it over HTTP.

    python serve_pair_rm.py compare --model outputs/gemma-2b-it --prompt "What is 2 + 2?" \\
        --response-a "4." --response-b "Who knows."
    python serve_pair_rm.py score --model outputs/gemma-2b-it --input data/unlabelled.jsonl --output data/scored.jsonl
    python serve_pair_rm.py rank --model outputs/gemma-2b-it --input data/samples.jsonl --output data/ranked.jsonl
    python serve_pair_rm.py serve --model outputs/gemma-2b-it
"""

import argparse
import json
import logging
import math
import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from pair_pm.command_line import add_model_arguments, identify_model, load_scorer, quieten_libraries
from pair_pm.errors import DataError, MissingPathError, PairPMError
from pair_pm.ranking import METHODS, ORDERS
from pair_pm.serving.settings import Limits, Settings

_INPUT_FORM = '{"messages": [{"role": "user", "content": …}, …], "response_a": …, "response_b": …}'


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", help="which of two responses is better; prints one JSON object")
    add_model_arguments(compare)
    compare.add_argument("--prompt", help="the user's message")
    compare.add_argument("--response-a", help="one response: the first, in the result")
    compare.add_argument("--response-b", help="the other: the second")
    compare.add_argument(
        "--input", metavar="FILE", help=f"a conversation and its responses instead, '-' for stdin: {_INPUT_FORM}"
    )
    score = commands.add_parser("score", help="every pair of a file: its rows with the verdicts")
    add_model_arguments(score)
    _add_file_arguments(score, "a conversation and two responses, or chosen and rejected", required=True)
    score.add_argument("--min-confidence", type=_confidence, metavar="P",
        help="with --as-preferences: drop pairs whose winner has less probability (default: 0.5)")  # fmt: skip
    rank = commands.add_parser("rank", help="the candidates of each row of a file: best to worst, with strengths")
    add_model_arguments(rank)
    _add_file_arguments(rank, "a conversation and a list of responses", required=False)
    _add_rank_arguments(rank)
    serve = commands.add_parser("serve", help="comparisons, rankings and rewards over HTTP, and a page to try them")
    add_model_arguments(serve)
    _add_serve_arguments(serve)
    arguments = parser.parse_args(argv)
    {"compare": _check_compare, "score": _check_score, "rank": _check_rank}.get(
        arguments.command, lambda parser, arguments: None
    )(parser, arguments)
    return arguments


def _add_file_arguments(parser: argparse.ArgumentParser, row: str, *, required: bool) -> None:
    add = parser.add_argument
    add("--input", required=True, metavar="FILE",
        help=f".jsonl, .json (also .gz), .parquet or a save_to_disk folder; a row holds {row}")  # fmt: skip
    without = "" if required else " (default: JSON lines to stdout)"
    add("--output", required=required, metavar="FILE", help=f"x.jsonl or x.parquet; beside it x.summary.json{without}")
    add("--as-preferences", action="store_true",
        help="write chosen, rejected and prob_chosen by the model's verdicts, not the rows as they came")  # fmt: skip
    add("--strict", action="store_true", help="stop at the first row that cannot be used; default: its error column")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    again.add_argument("--overwrite", action="store_true", help="replace the output, or what a run left of it")


def _add_rank_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--method", choices=METHODS, default="round_robin",
        help="which candidates are compared (default: round_robin, all pairs)")  # fmt: skip
    add("--budget", type=int, metavar="N",
        help="most prompts a row, for the methods that do not compare all pairs (default: 3 a candidate)")  # fmt: skip
    add("--orders", choices=ORDERS, help="of a compared pair (default: both for round_robin, one for the others)")
    add("--seed", type=int, default=0, help="of what a method draws (default: 0)")
    add("--pairs", choices=("best-worst", "all"),
        help="with --as-preferences: of each row the pair farthest apart (the default), or every pair")  # fmt: skip
    add("--min-margin", type=float, metavar="X",
        help="with --as-preferences: drop pairs whose strengths differ by less (default: 0)")  # fmt: skip
    add("--max-length-ratio", type=float, metavar="R",
        help="with --as-preferences: drop pairs with one response over R times as long as the other")  # fmt: skip


def _add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    add, limits = parser.add_argument, Limits()
    add("--host", default="127.0.0.1", help="address to listen on; others than this machine's own need an API key "
        "(default: 127.0.0.1)")  # fmt: skip
    add("--port", type=_port, default=8000, help="0 for any that is free (default: 8000)")
    add("--api-key-file", metavar="FILE", help="its first line is the key that requests must carry as a bearer's "
        "(default: PAIR_PM_API_KEY of the environment, if set)")  # fmt: skip
    add("--allow-origin", action="append", default=[], metavar="ORIGIN",
        help="web pages of this origin may ask, as https://host; may be repeated (default: none)")  # fmt: skip
    add("--model-name", help="what answers call the model (default: the last part of --model)")
    add("--policy-template", metavar="NAME_OR_PATH",
        help="tokenizer of the policy whose rendered prompts /get_reward takes: a folder or a hub name")  # fmt: skip
    add("--batch-window-ms", type=_at_least_zero, default=3.0, metavar="MS",
        help="how long the first request after a pause waits for others to be scored with (default: 3)")  # fmt: skip
    add(
        "--request-timeout-s",
        type=_above_zero,
        default=60.0,
        metavar="S",
        help="from the end of a request to its answer (default: 60)",
    )
    add("--body-timeout-s", type=_above_zero, default=30.0, metavar="S",
        help="until a request's body is there (default: 30)")  # fmt: skip
    add("--drain-timeout-s", type=_above_zero, default=30.0, metavar="S",
        help="after SIGTERM, for requests that were taken (default: 30)")  # fmt: skip
    for flag, default, help in (
        ("--max-requests", limits.requests, "under way at once; more are told to come back"),
        ("--max-body-bytes", limits.body_bytes, "of a request"),
        ("--max-responses", limits.responses, "to one conversation"),
        ("--max-messages", limits.messages, "of one conversation"),
        ("--max-pairs", limits.pairs, "of one batch, and groups of one request for rewards"),
        ("--max-request-tokens", limits.request_tokens, "that one request may feed, all its prompts together"),
    ):
        add(flag, type=_count, default=default, metavar="N", help=f"{help} (default: {default})")
    add("--log-prompts", action="store_true", help="let the log show what requests say")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"{text} is not a port from 0 to 65535")
    return value


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def _at_least_zero(text: str) -> float:
    return 0.0 if float(text) == 0 else _above_zero(text)


def _confidence(text: str) -> float:
    value = float(text)
    if not 0.5 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a probability from 0.5 to 1")
    return value


def _check_compare(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    texts = (arguments.prompt, arguments.response_a, arguments.response_b)
    if (arguments.input is None) != all(text is not None for text in texts) or (
        arguments.input is not None and any(text is not None for text in texts)
    ):
        parser.error("give either --input, or all of --prompt, --response-a and --response-b")


def _check_score(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.min_confidence is not None and not arguments.as_preferences:
        parser.error("--min-confidence drops preference rows: it needs --as-preferences")


def _check_rank(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    choices = (arguments.pairs, arguments.min_margin, arguments.max_length_ratio)
    if any(choice is not None for choice in choices) and not arguments.as_preferences:
        parser.error("--pairs, --min-margin and --max-length-ratio choose preference rows: they need --as-preferences")
    if arguments.budget is not None and arguments.method == "round_robin":
        parser.error("--budget: round_robin compares all pairs; choose another --method")
    if arguments.output is None and (arguments.as_preferences or arguments.resume or arguments.overwrite):
        parser.error("--as-preferences, --resume and --overwrite need --output")


def read_input(name: str) -> tuple[object, str, str]:
    """Return messages and the two responses of a file, or of stdin for "-"."""
    if name != "-" and not Path(name).is_file():
        raise MissingPathError(f"{name}: no such file; required is JSON like {_INPUT_FORM}")
    try:
        pair = json.loads(sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8"))
        return pair["messages"], pair["response_a"], pair["response_b"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise DataError(f"{name}: {type(error).__name__} {error}; required is JSON like {_INPUT_FORM}") from error


def compare(arguments: argparse.Namespace) -> None:
    """Compare, and print the verdict as one JSON object."""
    if arguments.input is not None:
        messages, first, second = read_input(arguments.input)
    else:
        messages, first, second = arguments.prompt, arguments.response_a, arguments.response_b
    print(json.dumps(load_scorer(arguments).compare(messages, first, second).to_dict(), indent=2))


def score(arguments: argparse.Namespace) -> None:
    """Score a file, and print the summary as one JSON object."""
    from pair_pm.score_file import ScoreTask

    min_confidence = arguments.min_confidence or 0.5
    _complete(arguments, ScoreTask(min_confidence), {"min_confidence": min_confidence})


def rank(arguments: argparse.Namespace) -> None:
    """Rank the rows of a file, and print them, or with an output the summary."""
    from pair_pm.preference_export import PairChoice
    from pair_pm.rank_file import RankOptions, RankTask, rank_rows
    from pair_pm.row_writers import to_json

    choice = PairChoice(arguments.pairs or "best-worst", arguments.min_margin or 0.0, arguments.max_length_ratio)
    # Preference rows do not show the intervals, and their bootstrap is most of what ranking costs beside the model.
    resamples = 0 if arguments.as_preferences else RankOptions.resamples
    options = RankOptions(arguments.method, arguments.seed, arguments.budget, arguments.orders, resamples, choice)
    if arguments.output is not None:
        _complete(arguments, RankTask(options), asdict(options))
        return
    for row in rank_rows(arguments.input, RankTask(options), load_scorer(arguments), strict=arguments.strict):
        print(to_json(row).decode(), end="", flush=True)


def serve(arguments: argparse.Namespace) -> None:
    """Serve the model until a signal, and end the process."""
    from pair_pm.policy_template import PolicyTemplate
    from pair_pm.serving.app import create_app
    from pair_pm.serving.server import is_local_address, open_socket, read_api_key, run, tune_process

    key = read_api_key(arguments.api_key_file)
    listener = open_socket(arguments.host, arguments.port, bool(key))
    settings = Settings(
        model_name=arguments.model_name or Path(arguments.model).name,
        api_key=key,
        allowed_origins=tuple(arguments.allow_origin),
        batch_window_s=arguments.batch_window_ms / 1000,
        log_prompts=arguments.log_prompts,
        limits=Limits(
            body_bytes=arguments.max_body_bytes,
            responses=arguments.max_responses,
            messages=arguments.max_messages,
            pairs=arguments.max_pairs,
            request_tokens=arguments.max_request_tokens,
            requests=arguments.max_requests,
            request_timeout_s=arguments.request_timeout_s,
            body_timeout_s=arguments.body_timeout_s,
        ),
    )
    template = arguments.policy_template and PolicyTemplate.from_pretrained(
        arguments.policy_template, arguments.max_messages
    )
    app = create_app(
        _load_in_a_thread_that_ends(arguments),
        settings,
        template,
        is_local=is_local_address(arguments.host) and not key,
    )
    logging.getLogger("pair_pm.serving").setLevel(logging.INFO)
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    address = f"http://{host}:{listener.getsockname()[1]}"
    ready = f"{settings.model_name} at {address}: a page to try it, and the API at {address}/docs"
    tune_process()
    run(app, listener, arguments.drain_timeout_s, lambda: print(ready, file=sys.stderr, flush=True))
    # A thread that still computes would abort the interpreter's own end, and one that waits for a server hold it up.
    logging.shutdown()
    os._exit(0)


def _load_in_a_thread_that_ends(arguments: argparse.Namespace):
    """Return the scorer, which another thread will use.

    Every thread that computes keeps OpenMP workers until it ends. With those of the thread that loaded the model beside
    its own, the thread that serves would have more workers than cores, which then sleep between any two operations: a
    small model takes twice as long.
    """
    with ThreadPoolExecutor(1) as loading:
        return loading.submit(load_scorer, arguments).result()


def _complete(arguments: argparse.Namespace, task, options: dict) -> None:
    from pair_pm.resumable_output import FileRun, complete_file

    run = FileRun(
        input=arguments.input,
        output=arguments.output,
        identity={
            "command": arguments.command,
            "as_preferences": arguments.as_preferences,
            "options": options,
            "model": identify_model(arguments),
        },
        as_preferences=arguments.as_preferences,
        strict=arguments.strict,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )
    summary = complete_file(run, task, lambda: load_scorer(arguments))
    if summary.was_finished:
        print(f"{arguments.output}: was finished already; nothing is left to do", file=sys.stderr)
    print(json.dumps(summary.to_dict(), indent=2))


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    arguments = parse_arguments(argv)
    quieten_libraries()
    try:
        {"compare": compare, "score": score, "rank": rank, "serve": serve}[arguments.command](arguments)
    except (PairPMError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted{_say_how_to_resume(arguments, argv)}", file=sys.stderr)
        return 130
    return 0


def _say_how_to_resume(arguments: argparse.Namespace, argv: list[str] | None) -> str:
    if getattr(arguments, "output", None) is None:
        return ""
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word not in ("--overwrite", "--resume")]
    return f"; go on with: {shlex.join(['python', 'serve_pair_rm.py', *words, '--resume'])}"


if __name__ == "__main__":
    sys.exit(main())
