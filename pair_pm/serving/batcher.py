"""What requests wait for together is computed together: prompts of many requests in one call of the engine.

It merges prompts, not requests: both orders of a pair, the rounds of a ranking and the pairs of a file are all prompts,
and those that share a conversation share its prefix in the engine, whoever sent them.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from pair_pm.engines import Engine
from pair_pm.engines.prefix_tree import count_tokens, split_by_tokens
from pair_pm.serving.desks import settle

logger = logging.getLogger(__name__)

# Of a batch, kept for whoever has waited longest: what is new and small goes first, and nobody waits for ever.
_SHARE_OF_THE_OLDEST = 0.25
_SPEED_MEMORY = 0.8  # of the running mean of tokens a second


@dataclass
class _Job:
    """The prompts of one call, on their way through one or more batches.

    Attributes:
        prompts: Those that differ, in the order of their tokens.
        places: For each prompt of the call, which of these it is.
        served: How much its request has had before, in tokens.
        tokens_waiting: Of the prompts that are in no batch yet.
    """

    prompts: list[tuple[int, ...]]
    places: list[int]
    served: int
    tokens_waiting: int
    future: Future = field(default_factory=Future)
    answers: list[np.ndarray] = field(default_factory=list)
    taken: int = 0

    @property
    def waiting(self) -> list[tuple[int, ...]]:
        """The prompts that are in no batch yet."""
        return self.prompts[self.taken :]


@dataclass(frozen=True)
class Batch:
    """What was computed at once, for the metrics: how many calls of how many prompts and tokens, and what was saved."""

    calls: int
    prompts: int
    tokens: int
    tokens_computed: int


class Batcher:
    """Merges the prompts of concurrent calls into batches of an engine in this process.

    A batch takes what had least so far first, so that a long ranking does not keep single comparisons waiting, and a
    quarter of it goes to the call that has waited longest, so that they do not keep the ranking waiting either.

    Args:
        engine: Called from one thread alone.
        window_s: How long at most the first prompts after a pause wait for company: for as many calls as came
            together last time. A client on its own does not wait, and while the engine is busy they gather anyway.
        observe: Takes each `Batch`.
    """

    def __init__(self, engine: Engine, window_s: float, observe: Callable[[Batch], None] = lambda batch: None):
        self.max_prompt_tokens = engine.max_prompt_tokens
        self._engine = engine
        self._window_s = window_s
        self._observe = observe
        self._changed = threading.Condition()
        self._jobs: list[_Job] = []  # in the order of their arrival
        self._tokens_a_second = 0.0
        self._last_calls = 1  # that were computed together
        self._is_closed = False
        threading.Thread(target=self._run, name="batcher", daemon=True).start()

    def submit(self, prompts: Sequence[Sequence[int]], served: int = 0) -> Future:
        """Return the future log-probabilities of the labels, float64, shape (prompts, 2); cancel it to give it up.

        Args:
            prompts: Token ids.
            served: How many tokens this request had before: those that had less go first.
        """
        # Equal prompts are scored once: in different batches their last digits could differ, and equal responses
        # would not tie.
        distinct = sorted({tuple(prompt) for prompt in prompts})
        place_of = {prompt: place for place, prompt in enumerate(distinct)}
        job = _Job(distinct, [place_of[tuple(prompt)] for prompt in prompts], served, sum(map(len, distinct)))
        with self._changed:
            if self._is_closed:
                job.future.cancel()
                return job.future
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    @property
    def waiting_prompts(self) -> int:
        """How many prompts are in no batch yet."""
        with self._changed:
            return sum(len(job.prompts) - job.taken for job in self._jobs)

    def estimate_wait_s(self) -> float:
        """Return about how long what waits now will take; 0 where nothing was computed yet."""
        with self._changed:
            tokens = sum(job.tokens_waiting for job in self._jobs)
            return tokens / self._tokens_a_second if self._tokens_a_second else 0.0

    def close(self) -> None:
        """Give up what waits; the thread ends after the batch that it is at."""
        with self._changed:
            self._is_closed = True
            for job in self._jobs:
                job.future.cancel()
            self._changed.notify()

    def _run(self) -> None:
        while not self._is_closed:
            try:
                self._compute_next()
            except Exception as error:  # a defect of ours: nobody may wait for ever, and the next ones may fare better
                logger.exception("the batch failed outside the engine")
                with self._changed:
                    failed, self._jobs = self._jobs, []
                for job in failed:
                    settle(job.future, error)

    def _compute_next(self) -> None:
        with self._changed:
            if not self._jobs:
                self._changed.wait_for(lambda: self._jobs or self._is_closed)
                self._wait_for_company()
            shares = [] if self._is_closed else self._take_batch()
        if shares:
            self._last_calls = len(shares)
            self._compute(shares)

    def _wait_for_company(self) -> None:
        budget = self._engine_budget()
        self._changed.wait_for(
            lambda: (
                self._is_closed
                or len(self._jobs) >= self._last_calls
                or sum(job.tokens_waiting for job in self._jobs) >= budget
            ),
            self._window_s,
        )

    def _engine_budget(self) -> int:
        return getattr(self._engine, "max_batch_tokens", 8192)

    def _take_batch(self) -> list[tuple[_Job, list[tuple[int, ...]]]]:
        """Return which prompts of which jobs come next; none where nobody waits for any."""
        self._jobs = [job for job in self._jobs if job.taken < len(job.prompts) and not job.future.done()]
        if not self._jobs:
            return []
        left = budget = self._engine_budget()
        by_service = sorted(self._jobs, key=lambda job: job.served)  # among equals the oldest first
        turns = [(job, budget) for job in by_service]
        if by_service[0] is not self._jobs[0]:
            turns.insert(0, (self._jobs[0], int(_SHARE_OF_THE_OLDEST * budget)))
        shares: dict[int, list[tuple[int, ...]]] = {}
        for job, most in turns:
            if left <= 0:
                break
            if share := self._take(job, min(most, left), must=not shares):
                left -= count_tokens(share)
                shares.setdefault(id(job), []).extend(share)
        taken = [(job, shares[id(job)]) for job in self._jobs if id(job) in shares]
        for job, share in taken:
            job.served += sum(map(len, share))
        return taken

    def _take(self, job: _Job, most: int, must: bool) -> list[tuple[int, ...]]:
        """Return the next prompts of a job, of at most so many tokens, or one prompt where there must be one."""
        if not job.waiting:
            return []
        share = next(split_by_tokens(job.waiting, most))
        if not must and count_tokens(share) > most:
            return []
        job.taken += len(share)
        job.tokens_waiting -= sum(map(len, share))
        return share

    def _compute(self, shares: Sequence[tuple[_Job, list[tuple[int, ...]]]]) -> None:
        prompts = [prompt for _, share in shares for prompt in share]
        started, computed_before = time.monotonic(), getattr(self._engine, "tokens_computed", 0)
        try:
            answers = self._engine.label_logprobs(prompts)
        except Exception as error:
            if len(shares) == 1:
                settle(shares[0][0].future, error)
            else:  # whose it is shows when each is asked alone
                for share in shares:
                    self._compute([share])
            return
        tokens = sum(map(len, prompts))
        self._note_speed(tokens / max(time.monotonic() - started, 1e-6))
        computed = getattr(self._engine, "tokens_computed", computed_before + tokens) - computed_before
        self._observe(Batch(len(shares), len(prompts), tokens, computed))
        for job, share in shares:
            job.answers.append(answers[: len(share)])
            answers = answers[len(share) :]
            if job.taken == len(job.prompts):
                settle(job.future, np.concatenate(job.answers)[job.places])

    def _note_speed(self, tokens_a_second: float) -> None:
        known = self._tokens_a_second or tokens_a_second
        self._tokens_a_second = _SPEED_MEMORY * known + (1 - _SPEED_MEMORY) * tokens_a_second
