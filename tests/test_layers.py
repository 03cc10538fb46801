"""The layers of the library: a module imports only from those below it, and heavy libraries only when needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "pair_pm"

# Lowest first. A module that is not written yet is simply absent from the folder.
LAYERS = (
    *("errors", "prompt", "preference", "preference_formats", "preference_source", "tokens", "recipe", "checkpoint"),
    *("labelled_pairs", "benchmark_rows", "word_runs", "decontamination"),
    *("pair_conversion", "pair_spool", "pair_summary", "pair_workers", "pair_index", "pair_output", "pair_dataset"),
    *("engines", "strengths", "ranking_methods", "contest", "ranking"),
    *("scoring", "metrics", "group_rewards", "rewards", "reference_reward"),
    *("template_layout", "policy_template", "serving"),
    *("result_journal", "row_writers", "run_identity", "scorable_rows", "preference_export", "row_task"),
    *("resumable_output", "score_file", "rank_file"),
    *("labelled_source", "predictions", "evaluation_report", "intervals"),
    *("calibration", "baselines", "temperature_fit", "distraction", "model_difference", "prediction_run"),
    *("reward_bench", "reward_bench_ties", "reward_bench_2", "evaluation"),
    *("report_document", "benchmark_tables", "calibration_tables", "report_tables", "report_plots", "report_page"),
    "evaluation_run",
    *("command_line", "saved_model", "merging", "pair_loss", "pair_rows", "both_orders", "prepared_rows", "resuming"),
    *("pair_batches", "live_numbers", "training_report", "pair_trainer"),
    *("old_config", "config_check", "row_survey", "row_report"),
    *("training_check", "training", "cpu_ranks"),
)
HEAVY = {"torch", "transformers", "axolotl", "datasets"}
# They subclass axolotl's or torch's classes; nothing imports them before they are needed.
HEAVY_THEMSELVES = {"pair_pm.engines.transformers_engine", "pair_pm.engines.tree_attention"} | {
    f"pair_pm.{name}"
    for name in (
        *("training", "pair_trainer", "live_numbers", "pair_batches", "pair_loss"),
        *("pair_rows", "both_orders", "prepared_rows", "cpu_ranks"),
    )
}

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def layer_of(module: str) -> str:
    """Return the row of the table that a module belongs to: engines is one row."""
    return module.split(".")[1]


def find_package_imports(source: str) -> list[str]:
    """Return the pair_pm modules that a source imports anywhere, functions included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: absolute imports only"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in found if name.startswith("pair_pm.")]


def find_upward_imports(module: str, source: str) -> list[str]:
    """Return what a module imports from its own row's upper neighbours."""
    own = LAYERS.index(layer_of(module))
    return [name for name in find_package_imports(source) if layer_of(name) in LAYERS[own + 1 :]]


@pytest.mark.parametrize("module", [module for module in MODULES if module != "pair_pm"])
def test_module_has_a_layer_and_imports_no_higher_one(module):
    assert layer_of(module) in LAYERS, f"{module} has no row in the table of layers"
    assert find_upward_imports(module, MODULES[module].read_text()) == []


def test_upward_import_is_seen_in_every_spelling():
    for line in ("import pair_pm.tokens", "from pair_pm import tokens", "from pair_pm.tokens import PromptEncoder"):
        assert find_upward_imports("pair_pm.prompt", f"def lazy():\n    {line}\n"), line
    assert find_upward_imports("pair_pm.tokens", "from pair_pm.prompt import LABELS") == []


def test_importing_a_module_does_not_import_a_heavy_library():
    modules = [module for module in MODULES if module not in HEAVY_THEMSELVES]
    assert "pair_pm.tokens" in modules
    # One process for all: it names the first module after whose import a heavy library is there.
    program = (
        "import importlib, sys\n"
        f"for module in {modules!r}:\n"
        "    importlib.import_module(module)\n"
        f"    heavy = sorted({HEAVY!r} & set(sys.modules))\n"
        "    if heavy: sys.exit(f'{module} imports {heavy}')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
