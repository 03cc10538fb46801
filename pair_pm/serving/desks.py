"""Where prompts are handed in and answers come back later: merged (`batcher`), or passed on as they are."""

from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from pair_pm.engines.vllm_engine import VLLMEngine


class Desk(Protocol):
    """Where prompts are handed in: a `Batcher`, or a `PassThrough`."""

    max_prompt_tokens: int | None

    def submit(self, prompts: Sequence[Sequence[int]], served: int = 0) -> Future:
        """Return the future log-probabilities of the labels, shape (prompts, 2); cancelled when nobody wants them."""
        ...


class PassThrough:
    """Hands prompts to an engine that batches by itself and takes calls from many threads.

    Args:
        engine: Of vLLM servers.
        calls_at_once: At most so many; more wait.
    """

    def __init__(self, engine: "VLLMEngine", calls_at_once: int):
        self.max_prompt_tokens = engine.max_prompt_tokens
        self._engine = engine
        self._pool = ThreadPoolExecutor(calls_at_once, thread_name_prefix="engine")

    def submit(self, prompts: Sequence[Sequence[int]], served: int = 0) -> Future:
        """Return the future log-probabilities of the labels, shape (prompts, 2)."""
        answer: Future = Future()  # not the pool's: that one could not be cancelled once its call has begun
        self._pool.submit(self._call, prompts, answer)
        return answer

    def _call(self, prompts: Sequence[Sequence[int]], answer: Future) -> None:
        def check() -> None:
            if answer.cancelled():
                raise CancelledError

        try:
            check()
            settle(answer, self._engine.label_logprobs(prompts, check))
        except Exception as error:
            settle(answer, error)


def settle(answer: Future, outcome: np.ndarray | Exception) -> None:
    """Hand over an answer or an error, unless nobody waits for it any more."""
    try:
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)
    except InvalidStateError:  # given up, or refused meanwhile
        assert answer.done(), answer
