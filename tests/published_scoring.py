"""The scoring functions of the package `rewardbench`, taken out of its source: importing it needs half of PyPI."""

import ast
import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

FUNCTIONS = ("calculate_scores_per_section", "sample_stats", "process_single_model")


def load_published_scoring() -> SimpleNamespace:
    """Return `FUNCTIONS` and the constants of the installed package; skip the test where it is not installed."""
    spec = importlib.util.find_spec("rewardbench")  # finds the package without importing it
    if spec is None:
        pytest.skip("rewardbench is not installed; pip install --no-deps rewardbench==0.1.4 is enough")
    folder = Path(spec.origin).parent
    constants: dict = {}
    exec((folder / "constants.py").read_text(), constants)
    tree = ast.parse((folder / "utils.py").read_text())
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS]
    # What its last lines make of the rows is not looked at; they only want a data set to put them in.
    names = {"np": np, "math": math, "Dataset": SimpleNamespace(from_dict=lambda columns: columns)}
    exec(compile(ast.Module(wanted, type_ignores=[]), "rewardbench/utils.py", "exec"), names)
    return SimpleNamespace(**{name: names[name] for name in FUNCTIONS}, **constants)
