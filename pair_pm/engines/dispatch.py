"""Batches of prompts on their way through several servers: each is answered once, whichever servers fail meanwhile.

Every server has a lane of neighbouring batches, so that prompts which share a beginning meet in the cache of one
server; a lane that is done takes over from the end of the longest other one.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

_CHECK_S = 0.5


class Dispatch:
    """The batches of one call, shared by the threads that send them.

    Args:
        batches: How many there are; they are known by their number.
        lanes: How many servers share them.
    """

    def __init__(self, batches: int, lanes: int):
        self._changed = threading.Condition()
        self._lanes = [deque(int(number) for number in share) for share in np.array_split(np.arange(batches), lanes)]
        self._answers: list[np.ndarray | None] = [None] * batches
        self._missing = batches
        self._last_answer = time.monotonic()
        self._error: BaseException | None = None

    @property
    def is_over(self) -> bool:
        """Whether every batch is answered, or the call has failed."""
        return self._missing == 0 or self._error is not None

    def take(self, lane: int) -> int | None:
        """Return the number of a batch to send, waiting while all are under way; None when it is over."""
        with self._changed:
            while not self.is_over:
                own, longest = self._lanes[lane], max(self._lanes, key=len)
                if own or longest:
                    return own.popleft() if own else longest.pop()
                self._changed.wait()  # one that is under way may come back
            return None

    def give_back(self, lane: int, number: int) -> None:
        """Leave a batch, whose server failed, to whoever is free first."""
        with self._changed:
            self._lanes[lane].append(number)  # at the end, where others take from
            self._changed.notify_all()

    def finish(self, number: int, answer: np.ndarray) -> None:
        """Record a batch's answer."""
        with self._changed:
            assert self._answers[number] is None, number
            self._answers[number] = answer
            self._missing -= 1
            self._last_answer = time.monotonic()
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End the call with an error."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def wait(self, patience_s: float, check: Callable[[], None] = lambda: None) -> list[np.ndarray]:
        """Return all answers, in the batches' order.

        Args:
            patience_s: How long no server may answer.
            check: Called now and then; what it raises ends the call.
        Raises:
            TimeoutError: no server answered for so long.
            BaseException: what the call has failed with.
        """
        try:
            while not self.is_over:
                left_s = self._last_answer + patience_s - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError(f"{self._missing} of {len(self._answers)} requests")
                with self._changed:
                    self._changed.wait_for(lambda: self.is_over, min(left_s, _CHECK_S))
                if not self.is_over:
                    check()
        except BaseException as error:  # Ctrl-C as well: no thread may send on
            self.fail(error)
        if self._error is not None:
            raise self._error
        return self._answers


def split_neighbours(prompts: Sequence[Sequence[int]], most_prompts: int, most_tokens: int) -> list[list[int]]:
    """Return indices of prompts in batches, those that share a beginning together; a long prompt goes alone."""
    batches: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(prompts)), key=lambda index: prompts[index]):
        tokens += len(prompts[index])
        if not batches or len(batches[-1]) == most_prompts or tokens > most_tokens:
            batches.append([])
            tokens = len(prompts[index])
        batches[-1].append(index)
    return batches
