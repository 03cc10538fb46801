"""The README is true where a test can tell: commands, flags, files, examples, and the two launch lines word by word."""

import contextlib
import importlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
LAUNCH = (
    'CUDA_VISIBLE_DEVICES="0,1,2,3" torchrun --nproc_per_node 4 --master_port 20001 '
    "-m axolotl.cli.train config/gemma-2b-it.yml"
)
# tests/test_with_vllm.py asks vLLM whether it knows them.
VLLM_FLAGS = {
    *("model", "dtype", "enforce-eager", "max-model-len", "hf-overrides", "api-key"),
    *("tensor-parallel-size", "data-parallel-size", "pipeline-parallel-size", "distributed-executor-backend"),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shell_commands() -> list[list[str]]:
    """Return the words of each command in the shell blocks, comments and continuations resolved."""
    lines = "".join(blocks("shell")).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    return [command for command in commands if command]


def script_commands() -> list[list[str]]:
    return [words[1:] for words in shell_commands() if words[0] == "python" and words[1].endswith(".py")]


@pytest.mark.parametrize("words", script_commands(), ids=lambda words: " ".join(words)[:60])
def test_every_script_command_parses(words):
    script, *arguments = words
    if "<" in arguments:
        arguments = arguments[: arguments.index("<")]
    module = importlib.import_module(Path(script).stem)
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        try:
            module.parse_arguments(arguments)
        except SystemExit:
            pytest.fail(stderr.getvalue())


def test_every_flag_in_the_prose_belongs_to_a_script_or_to_a_training_config():
    from axolotl.utils.schemas.config import AxolotlInputConfig

    known = {name.replace("_", "-") for name in AxolotlInputConfig.model_fields}
    for script in ("process_pair_data", "prepare_model", "serve_pair_rm", "evaluate_pair_rm"):
        source = (ROOT / f"{script}.py").read_text() + (ROOT / "pair_pm/command_line.py").read_text()
        known |= set(re.findall(r'"--([a-z-]+)"', source))
    for source in (ROOT / "pair_pm/training.py", ROOT / "benchmarks/rewards.py"):
        known |= set(re.findall(r'"--([a-z-]+)"', source.read_text()))
    known |= {"nproc-per-node", "master-port", "nnodes", "rdzv-backend", "rdzv-id", "rdzv-endpoint"}  # torchrun's
    known |= {"no-build-isolation", "no-deps", "lora-model-dir"}
    known |= VLLM_FLAGS | {"head", "port", "address"}  # ray's
    shown = {flag.replace("_", "-") for flag in re.findall(r"--([a-z][a-z_-]+)", README)}
    assert shown - known == set()


def test_the_two_launch_lines_stand_in_it_exactly():
    lines = README.splitlines()
    assert LAUNCH in lines
    assert f"{LAUNCH} --deepspeed deepspeed_configs/deepspeed_3.json" in lines


def test_every_make_target_exists_and_is_explained_by_help():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = [*re.findall(r"`make ([a-z]+)", README), *re.findall(r"^make ([a-z]+)", README, re.MULTILINE)]
    assert commands
    for target in commands:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


def test_every_file_of_the_repository_that_it_names_exists():
    named = re.findall(r"\b((?:config|deepspeed_configs|benchmarks|examples|pair_pm|tests)/[\w./-]+\.\w+)", README)
    assert named
    made_by_the_demo = "examples/quickstart/run/"
    assert [n for n in named if not n.startswith(made_by_the_demo) and not (ROOT / n).exists()] == []


def test_the_file_tree_names_every_module_config_and_script():
    tree = README[README.index("## Files") : README.index("## Limits")]
    tracked = [
        *ROOT.glob("*.py"),
        *(path for path in ROOT.glob("pair_pm/**/*.py") if path.name != "__init__.py"),
        *ROOT.glob("config/*.yml"),
        *ROOT.glob("benchmarks/*.py"),
    ]
    assert [path.name for path in tracked if path.name not in tree] == []


def test_the_json_example_is_what_the_format_renders():
    from pair_pm.prompt import render_context, render_prompt

    (example,) = (json.loads(block) for block in blocks("json"))
    question = {"role": "user", "content": "How can I trick Eminem into marrying me?"}
    assert example["messages"][0]["content"] == render_prompt(render_context([question]), "…", "…")
    assert list(example) == ["messages", "prob_a", "pair_id", "id", "source", "subset"]


def test_the_python_examples_use_what_exists():
    from pair_pm import PairScorer

    for method in re.findall(r"scorer\.(\w+)\(", "".join(blocks("python"))):
        assert callable(getattr(PairScorer, method))
