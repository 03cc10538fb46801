"""A request's share of the engine: what it may spend, what it has spent, and giving it up."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future

import numpy as np

from pair_pm.serving.desks import Desk
from pair_pm.serving.problems import exceed


class Ticket:
    """One request's access to the engine; to code that waits in a thread, an engine itself.

    Args:
        desk: Takes the prompts.
        most_tokens: That it may feed.

    Attributes:
        most_tokens: See above.
        tokens: Fed so far.
    """

    def __init__(self, desk: Desk, most_tokens: int):
        self.max_prompt_tokens = desk.max_prompt_tokens
        self.tokens = 0
        self._desk = desk
        self.most_tokens = most_tokens
        self._lock = threading.Lock()
        self._is_closed = False
        self._answer: Future | None = None

    def label_logprobs(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the natural-log probabilities of "A" and "B" as next token, float64, shape (prompts, 2).

        Raises:
            Problem: the request has no tokens left.
            CancelledError: it was closed.
            What the engine raises.
        """
        return self._submit(prompts).result()

    async def ask(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the same, for code of the event loop."""
        return await asyncio.wrap_future(self._submit(prompts))

    def check(self) -> None:
        """Return if anybody still waits: for what takes long without the engine.

        Raises:
            CancelledError: it was closed.
        """
        if self._is_closed:
            raise CancelledError

    def close(self) -> None:
        """Give up what it waits for, and take no more: nobody wants its answer, or it is there."""
        with self._lock:
            self._is_closed = True
            if self._answer is not None:
                self._answer.cancel()

    def _submit(self, prompts: Sequence[Sequence[int]]) -> Future:
        tokens = sum(map(len, prompts))
        if self.tokens + tokens > self.most_tokens:
            raise exceed("request", f"{self.tokens + tokens} tokens", self.most_tokens, "--max-request-tokens")
        with self._lock:
            self.check()
            self._answer = self._desk.submit(prompts, self.tokens)
        self.tokens += tokens
        return self._answer
