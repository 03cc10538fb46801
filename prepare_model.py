"""Give a base model a pad token of its own and a chat template fit for training; finish a merged adapter.

python prepare_model.py --model meta-llama/Meta-Llama-3-8B-Instruct --output models/llama3_it_with_padding_token
python prepare_model.py --model ./my_base --output ./my_base_padded --chat-template template.jinja
python prepare_model.py --finish-merge outputs/llama3-8b-it-lora/merged
"""

import argparse
import sys

from pair_pm.command_line import quieten_libraries
from pair_pm.errors import PairPMError


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", metavar="NAME_OR_PATH", help="base checkpoint: a folder or a hub name")
    add("--output", metavar="DIR", help="folder to write")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="type of the written weights (default: as they are)",
    )
    add("--pad-token", metavar="TOKEN", help="use this token (default: a reserved one where the vocabulary has one)")
    add("--chat-template", metavar="FILE", help="use this Jinja chat template instead of the model's")
    add("--overwrite", action="store_true", help="replace a non-empty output folder")
    add(
        "--accept-control-text",
        action="store_true",
        help="accept special tokens and turn marks that content could forge (they are listed without it)",
    )
    add(
        "--finish-merge",
        metavar="DIR",
        help="instead: verify what axolotl's merge_lora wrote into this folder, and put tokenizer, chat template and "
        "card of the training run beside it",
    )
    add(
        "--adapter",
        metavar="DIR",
        help="with --finish-merge: the adapter (default: the folder around the merged model)",
    )
    arguments = parser.parse_args(argv)
    if not arguments.finish_merge and not (arguments.model and arguments.output):
        parser.error("--model and --output are required, or --finish-merge")
    if arguments.finish_merge and (arguments.model or arguments.output):
        parser.error("--finish-merge works on one folder: no --model, no --output")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Prepare, and say what was done."""
    arguments = parse_arguments(argv)
    quieten_libraries()
    from pair_pm.checkpoint import prepare_base_model
    from pair_pm.merging import finish_merge

    try:
        if arguments.finish_merge:
            difference = finish_merge(arguments.finish_merge, arguments.adapter)
            print(
                f"{arguments.finish_merge}: the merged model answers as base and adapter do (probabilities differ by "
                f"{difference:.1g} at most); tokenizer, chat template and card are those of the training run"
            )
            return 0
        done = prepare_base_model(
            arguments.model,
            arguments.output,
            dtype=arguments.dtype,
            pad_token=arguments.pad_token,
            chat_template=arguments.chat_template,
            overwrite=arguments.overwrite,
            accept_control_text=arguments.accept_control_text,
        )
    except PairPMError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{arguments.output}: {done.describe()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
