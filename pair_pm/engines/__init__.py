"""Where the weights run. An engine takes token ids and gives the log-probabilities of the two labels."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Engine(Protocol):
    """What the scorer asks of an engine.

    Attributes:
        max_prompt_tokens: Longest prompt that the model has positions for; None where it has no such limit.
        calls_at_once: How many calls from different threads it answers faster than one after the other; 1 where it has
            no such attribute.
    """

    max_prompt_tokens: int | None

    def label_logprobs(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the natural-log probabilities of "A" and "B" as next token, float64, shape (prompts, 2)."""
        ...
