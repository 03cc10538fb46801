"""Does dressing up the worse response win it the verdict: edits that say nothing, and the right verdicts they flip.

Sources: judges that fall for length and markdown, Dubois et al., arXiv:2404.04475; for a confident opener or a mere
colon, Zhao et al., One Token to Fool LLM-as-a-Judge, arXiv:2507.08794.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pair_pm.evaluation_report import DistractionReport
from pair_pm.intervals import PromptBootstrap
from pair_pm.metrics import Verdicts
from pair_pm.predictions import Predictions

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_PADDING = (
    "\n\nThere is of course a lot more that could be said about this, and different people may put it differently. "
    "I hope that this is helpful. Please let me know if you have any further questions or would like me to go on."
)
_OPENER = "Certainly! Here is a clear, complete and accurate answer to your question.\n\n"


@dataclass(frozen=True)
class Edit:
    """A change of a response that leaves its content as it is.

    Attributes:
        does: What it does, in words.
        apply: Does it to a text.
    """

    does: str
    apply: Callable[[str], str]


def _embolden(text: str) -> str:
    """Set the first sentence of each paragraph in bold."""
    paragraphs = [_SENTENCE_END.split(part.strip(), maxsplit=1) for part in text.split("\n\n") if part.strip()]
    return "\n\n".join(" ".join([f"**{first}**", *rest]) for first, *rest in paragraphs)


def _itemise(text: str) -> str:
    """Make an item of a list of each sentence."""
    sentences = [part for line in text.splitlines() for part in _SENTENCE_END.split(line.strip()) if part]
    return "\n".join(f"- {sentence}" for sentence in sentences)


EDITS = {
    "bold": Edit("the first sentence of each paragraph in bold", _embolden),
    "list": Edit("each sentence an item of a list", _itemise),
    "padding": Edit("two closing sentences that say nothing", lambda text: text + _PADDING),
    "opener": Edit("an opening sentence that promises a good answer", lambda text: _OPENER + text),
    "colon": Edit("a colon at the end", lambda text: text.rstrip() + ":"),
}


def report_distraction(predictions: Predictions, resamples: int, seed: int) -> list[DistractionReport]:
    """Return what each edit does to the verdicts that were right without it; empty where no edit was asked for.

    An edit that made every pair too long for the model is there, with the reason for having no numbers.

    Args:
        predictions: Edited and unedited rows.
        resamples: Of the intervals.
        seed: Of the intervals.
    """
    if not (predictions["edit"] != "").any():
        return []
    original = predictions.where((predictions["edit"] == "") & predictions.is_decided)
    place_of = {key: place for place, key in enumerate(original["pair_key"])}
    # An edit can make a response shorter: then a pair may have been too long without it.
    has_original = np.array([key in place_of for key in predictions["pair_key"]])
    before = original.verdicts
    reports = []
    for name, edit in EDITS.items():
        edited = predictions.where((predictions["edit"] == name) & has_original)
        places = np.array([place_of[key] for key in edited["pair_key"]], dtype=int)
        after = edited.verdicts
        was_right = before.right[places] == 1
        flipped = was_right & (after.right != 1)
        shift = _log_odds_of_first(after) - _log_odds_of_first(before)[places]
        bootstrap = PromptBootstrap(edited["prompt_key"], resamples, seed)
        rate = np.where(was_right, flipped.astype(float), np.nan)
        estimates = bootstrap.estimate({"flip_rate": rate, "shift": shift}, shares=("flip_rate",))
        reports.append(DistractionReport(name, edit.does, int(was_right.sum()), int(flipped.sum()), **estimates))
    return reports


def _log_odds_of_first(verdicts: Verdicts) -> np.ndarray:
    return verdicts.log_probs[:, 0] - verdicts.log_probs[:, 1]
