"""Labelled rows on disk, engines that answer by a rule, and predictions of models whose errors are known."""

import json
from collections.abc import Callable

import numpy as np
from conftest import make_small_tokenizer

from pair_pm.predictions import COLUMNS, Origin, Predictions
from pair_pm.scoring import PairScorer
from pair_pm.tokens import PromptEncoder

_DTYPES = {"string": object, "double": float, "int32": np.int32}


def make_row(question: str = "Q", chosen: str = "good", rejected: str = "bad", **more) -> dict:
    turns = [{"role": "user", "content": question}]
    sides = {"chosen": chosen, "rejected": rejected}
    return {side: [*turns, {"role": "assistant", "content": text}] for side, text in sides.items()} | more


def write_lines(path, *rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


class RuleEngine:
    """An engine that gives each prompt the log-odds of "A" that a rule gives its two responses.

    Args:
        rule: From response A and response B to log-odds.
        label_mass: Of every answer.
    """

    max_prompt_tokens = None

    def __init__(self, rule: Callable[[str, str], float], label_mass: float = 1.0):
        self.rule = rule
        self.label_mass = label_mass
        self.prompts = 0
        self.tokenizer = make_small_tokenizer()

    def label_logprobs(self, prompts):
        """Answer by the rule."""
        self.prompts += len(prompts)
        answers = []
        for ids in prompts:
            text = self.tokenizer.decode(ids)
            response_a, response_b = text.split("[RESPONSE A] ")[1].split(" [RESPONSE B] ")
            log_odds = self.rule(response_a, response_b.split(" \n")[0])
            answers.append([-np.logaddexp(0, -log_odds), -np.logaddexp(0, log_odds)])
        return np.array(answers) + np.log(self.label_mass)


def make_scorer(engine, recipe=None) -> PairScorer:
    """Return a scorer on an engine."""
    return PairScorer(engine, PromptEncoder(make_small_tokenizer()), recipe)


def make_predictions(log_odds: np.ndarray, origin: Origin | None = None, **columns) -> Predictions:
    """Return predictions with these log-odds of both orders, shape (rows, 2), and columns; prompts differ."""
    rows = len(log_odds)
    filled = {name: np.full(rows, "" if kind == "string" else 1, _DTYPES[kind]) for name, kind in COLUMNS.items()}
    numbered = np.array([f"{row:08}" for row in range(rows)], dtype=object)
    filled |= {
        "label": np.full(rows, "first", object),
        "first_index": np.zeros(rows, np.int32),
        "prompt_key": numbered,
        "pair_key": numbered,
        "log_odds_first_in_a": log_odds[:, 0],
        "log_odds_first_in_b": log_odds[:, 1],
    }
    given = {name: np.broadcast_to(np.asarray(v, _DTYPES[COLUMNS[name]]), rows).copy() for name, v in columns.items()}
    return Predictions(filled | given, origin or Origin(model="simulated", dataset="simulated"))
