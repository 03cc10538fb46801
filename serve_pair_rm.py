"""Use a trained preference model: compare two responses to a conversation, in both orders.

    python serve_pair_rm.py compare --model outputs/gemma-2b-it --prompt "What is 2 + 2?" \\
        --response-a "4." --response-b "Who knows."
    python serve_pair_rm.py compare --model outputs/gemma-2b-it --input pair.json
"""

import argparse
import json
import sys
from pathlib import Path

from pair_pm.command_line import add_model_arguments, load_scorer, quieten_libraries
from pair_pm.errors import DataError, MissingPathError, PairPMError

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
    arguments = parser.parse_args(argv)
    texts = (arguments.prompt, arguments.response_a, arguments.response_b)
    if (arguments.input is None) != all(text is not None for text in texts) or (
        arguments.input is not None and any(text is not None for text in texts)
    ):
        parser.error("give either --input, or all of --prompt, --response-a and --response-b")
    return arguments


def read_input(name: str) -> tuple[object, str, str]:
    """Return messages and the two responses of a file, or of stdin for "-"."""
    if name != "-" and not Path(name).is_file():
        raise MissingPathError(f"{name}: no such file; required is JSON like {_INPUT_FORM}")
    try:
        pair = json.loads(sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8"))
        return pair["messages"], pair["response_a"], pair["response_b"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise DataError(f"{name}: {type(error).__name__} {error}; required is JSON like {_INPUT_FORM}") from error


def main(argv: list[str] | None = None) -> int:
    """Compare, and print the verdict as one JSON object."""
    arguments = parse_arguments(argv)
    quieten_libraries()
    try:
        if arguments.input is not None:
            messages, first, second = read_input(arguments.input)
        else:
            messages, first, second = arguments.prompt, arguments.response_a, arguments.response_b
        comparison = load_scorer(arguments).compare(messages, first, second)
    except PairPMError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(comparison.to_dict(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
