"""What the service does for requests: comparisons, rankings and rewards, by the code that the command line uses.

Comparisons run on the event loop and wait for the engine there. Rankings and rewards are rounds of comparisons with
arithmetic between them: each runs in a thread of its own, and waits there.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import mul

import numpy as np

from pair_pm.errors import PairPMError, PromptTooLongError
from pair_pm.group_rewards import reward_groups
from pair_pm.ranking import COMPARISONS_A_RESPONSE, rank
from pair_pm.recipe import installed_versions, make_card
from pair_pm.scoring import Comparison, EncodedPair, InputError, Item, OrderedComparison, PairScorer
from pair_pm.serving.batcher import Batch, Batcher
from pair_pm.serving.desks import PassThrough
from pair_pm.serving.measures import Measures
from pair_pm.serving.problems import Problem, describe_error, exceed, retry
from pair_pm.serving.settings import Settings
from pair_pm.serving.tickets import Ticket

_RANKINGS_AT_ONCE = 64
_READERS = 4
_QUICKLY_ENCODED = 20_000  # characters: a few milliseconds, which the event loop can spare
_CHARS_A_TOKEN = 16  # more than text has; what a request may feed is known before it is tokenised
_ENCODED_AT_ONCE = 256  # prompts, between two looks at whether anybody still waits
_PROBE: Item = ("What is 2 + 2?", "4.", "Who knows?")
_PROBE_TIMEOUT_S, _PROBE_KEPT_S = 5.0, 2.0
_ABSENCE_S = 2.0  # of all servers of the weights, before a request is told to come back


class RequestScorer(PairScorer):
    """The service's scorer for one request: on its ticket of the engine, with its verdicts counted."""

    def __init__(self, scorer: PairScorer, ticket: Ticket, measures: Measures):
        super().__init__(ticket, scorer.encoder, scorer.recipe)
        self._ticket = ticket
        self._most_chars = _CHARS_A_TOKEN * (scorer.engine.max_prompt_tokens or ticket.most_tokens)
        self._warned_of_label_mass = True  # the service warns once, at its start; from then on the metrics show it
        self._measures = measures

    def judge_pairs(self, pairs: Sequence[EncodedPair], logprobs: np.ndarray) -> list[Comparison]:
        """Return the comparisons."""
        comparisons = super().judge_pairs(pairs, logprobs)
        self._measures.note_comparisons(comparisons)
        return comparisons

    def compare_in_order(self, items: Sequence[Item]) -> list[OrderedComparison]:
        """Return the verdicts in one order."""
        comparisons = super().compare_in_order(items)
        self._measures.note_ordered(comparisons)
        return comparisons

    def _encode(self, texts: Sequence[str]) -> list:
        """Return the prompts, or what is wrong with each; a text of megabytes is too long without being tokenised."""
        results = [self._find_excess_of_text(text) for text in texts]
        usable = [text for text, problem in zip(texts, results, strict=True) if problem is None]
        encoded: list = []
        for start in range(0, len(usable), _ENCODED_AT_ONCE):
            self._ticket.check()
            encoded += super()._encode(usable[start : start + _ENCODED_AT_ONCE])
        rest = iter(encoded)
        return [problem or next(rest) for problem in results]

    def _find_excess_of_text(self, text: str) -> PromptTooLongError | None:
        if len(text) <= self._most_chars:
            return None
        return PromptTooLongError(
            f"prompt {text[:60]!r}…: {len(text)} characters; at most {self._most_chars} are required, "
            f"{_CHARS_A_TOKEN} for each token that the model takes"
        )


class Service:
    """A scorer for many requests at once.

    Args:
        scorer: Its engine is called from one thread, or from many where it says that it batches by itself.
        settings: What is allowed.

    Attributes:
        measures: What it counts.
        is_draining: Whether new requests are refused.
        under_way: Requests that were taken and are not answered yet.
        work: What is being done for them.
    """

    def __init__(self, scorer: PairScorer, settings: Settings):
        self.scorer = scorer
        self.settings = settings
        self.is_draining = False
        self.under_way = 0
        self.work: set[asyncio.Task] = set()
        [(shortest, _)] = scorer.encode_each([("?", ".", ".")])
        self._fewest_tokens = len(shortest.ids) - 3  # of any prompt: one of nothing but what stands around the texts
        self._rankings = ThreadPoolExecutor(_RANKINGS_AT_ONCE, thread_name_prefix="ranking")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="reader")  # no text waits for a ranking's end
        self._is_remote = getattr(scorer.engine, "calls_at_once", 1) > 1
        self._probed_at = self._computed_at = -np.inf
        self._probe: asyncio.Task | None = None
        self.measures = Measures(self._count_waiting, lambda: self.under_way)
        if self._is_remote:
            scorer.engine.absence_s = _ABSENCE_S
            self._desk = PassThrough(scorer.engine, settings.limits.requests)
        else:
            self._desk = Batcher(scorer.engine, settings.batch_window_s, self._note_batch)

    # ---- what is asked of it ----------------------------------------------------------------------------------------

    async def compare_each(self, items: Sequence[Item]) -> list[Comparison | InputError]:
        """Return the comparison of each (messages, first, second), or the error that keeps it from having one."""
        with self._issue_ticket() as ticket:
            scorer = RequestScorer(self.scorer, ticket, self.measures)
            chars = sum(2 * _count_chars(context, responses) for context, *responses in items)
            self._check_size(2 * len(items), chars)
            if chars <= _QUICKLY_ENCODED:
                results: list = scorer.encode_each(items)
            else:
                results = await self.read(scorer.encode_each, items)
            usable = [index for index, result in enumerate(results) if not isinstance(result, PairPMError)]
            comparisons = await _compare(scorer, ticket, [results[index] for index in usable])
            for index, comparison in zip(usable, comparisons, strict=True):
                results[index] = comparison
            return results

    async def rank(self, context, responses: Sequence[str], method: str, seed: int, **options):
        """Return the `Ranking` of responses; options as `pair_pm.ranking.rank_many` takes them."""
        most = count_most_calls(method, len(responses), options["budget"], options["orders"])
        self._check_size(most, most * _count_chars(context, responses, 2 / len(responses)))
        with self._issue_ticket() as ticket:
            scorer = RequestScorer(self.scorer, ticket, self.measures)
            return await _run_in(self._rankings, rank, scorer, context, responses, method, seed, **options)

    async def reward(self, groups: Sequence[tuple], method: str, on_overlong: str, seed: int):
        """Return the rewards of groups and their counts, as `reward_groups`, and the tokens that it took."""
        calls = [count_most_calls(method, len(set(texts)), None, None) for _, texts in groups]
        chars = (_count_chars(context, texts, 2 / len(texts)) for context, texts in groups)
        self._check_size(sum(calls), sum(map(mul, calls, chars)))
        with self._issue_ticket() as ticket:
            scorer = RequestScorer(self.scorer, ticket, self.measures)
            rewards = await _run_in(self._rankings, reward_groups, scorer, groups, method, on_overlong, seed)
            return *rewards, ticket.tokens

    async def read(self, function: Callable, *arguments):
        """Return what a function makes of texts, in a thread: long ones would hold up all other requests."""
        return await _run_in(self._readers, function, *arguments)

    async def check_ready(self) -> None:
        """Score a pair, unless one was scored a moment ago.

        Raises:
            Problem: it cannot be scored now.
        """
        if time.monotonic() - self._probed_at < _PROBE_KEPT_S:
            return
        if self._probe is None or self._probe.done():  # one for all who ask
            self._probe = asyncio.ensure_future(self._score_probe())
        await asyncio.shield(self._probe)

    async def _score_probe(self) -> None:
        [pair] = self.scorer.encode_each([_PROBE])
        with self._issue_ticket() as ticket:
            try:
                async with asyncio.timeout(_PROBE_TIMEOUT_S):
                    self.scorer.judge_pairs([pair], await ticket.ask([prompt.ids for prompt in pair]))
            except PairPMError as error:
                raise describe_error(error) from error
            except TimeoutError:
                if time.monotonic() - self._computed_at > self.settings.limits.request_timeout_s:
                    said = f"nothing was scored for {_PROBE_TIMEOUT_S:g} s; an engine that answers is required"
                    raise Problem(503, "engine_unavailable", said, "", retry(2)) from None
                # Else it is at work on what others asked: to be busy is to be ready.
        self._probed_at = time.monotonic()

    def describe_model(self) -> dict:
        """Return the model's name and card, the versions here, and what a request may ask for."""
        return {
            "model": self.settings.model_name,
            "card": make_card(self.scorer.encoder, self.scorer.recipe),
            "versions": installed_versions(),
            "engine": "remote" if self._is_remote else "in process",
            "max_prompt_tokens": self.scorer.engine.max_prompt_tokens,
            "limits": vars(self.settings.limits),
        }

    # ---- load, and its end ------------------------------------------------------------------------------------------

    def find_refusal(self) -> Problem | None:
        """Return why a new request is not taken now."""
        if self.is_draining:
            return Problem(503, "draining", "the service is stopping; send it again to its successor", "", retry(1))
        if self.under_way >= self.settings.limits.requests:
            wait_s = 1.0 if self._is_remote else self._desk.estimate_wait_s()
            return Problem(
                429, "too_many_requests",
                f"{self.under_way} requests are under way; at most {self.settings.limits.requests} are required "
                "(--max-requests of the service); send it again after Retry-After", "", retry(wait_s),
            )  # fmt: skip
        return None

    def give_up(self) -> None:
        """Stop working on all that is under way; to be called on the event loop."""
        for work in self.work:
            work.cancel()

    def close(self) -> None:
        """End its threads, where they wait for nothing."""
        if not self._is_remote:
            self._desk.close()
        for threads in (self._rankings, self._readers):
            threads.shutdown(wait=False, cancel_futures=True)

    # ---- inside -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _issue_ticket(self) -> Iterator[Ticket]:
        ticket = Ticket(self._desk, self.settings.limits.request_tokens)
        try:
            yield ticket
        finally:
            ticket.close()

    def _note_batch(self, batch: Batch) -> None:
        self._computed_at = time.monotonic()
        self.measures.note_batch(batch)

    def _count_waiting(self) -> int:
        return 0 if self._is_remote else self._desk.waiting_prompts

    def _check_size(self, prompts: int, chars: float) -> None:
        """Refuse a request for what is too much by its number alone: it would take memory before tokens are counted."""
        most = self.settings.limits.request_tokens
        if prompts * self._fewest_tokens > most:
            raise exceed("request", f"{prompts} prompts", most // self._fewest_tokens,
                f"{self._fewest_tokens} of --max-request-tokens for each")  # fmt: skip
        if chars > _CHARS_A_TOKEN * most:
            raise exceed("request", f"prompts of {chars:.0f} characters", _CHARS_A_TOKEN * most,
                f"{_CHARS_A_TOKEN} for each of --max-request-tokens")  # fmt: skip


async def _run_in(threads: ThreadPoolExecutor, function: Callable, *arguments, **options):
    return await asyncio.get_running_loop().run_in_executor(threads, partial(function, *arguments, **options))


async def _compare(
    scorer: RequestScorer, ticket: Ticket, pairs: Sequence[EncodedPair]
) -> list[Comparison | InputError]:
    """Return the comparisons, with the error in the place of a pair that the engine's memory does not hold."""
    if not pairs:
        return []
    try:
        return scorer.judge_pairs(pairs, await ticket.ask([prompt.ids for pair in pairs for prompt in pair]))
    except PromptTooLongError as error:
        if len(pairs) == 1:
            return [error]
        return [result for pair in pairs for result in await _compare(scorer, ticket, [pair])]


def _count_chars(context, responses: Sequence[str], share: float = 1.0) -> float:
    """Return about how many characters the prompt of a conversation and a share of the responses has."""
    said = len(context) if isinstance(context, str) else sum(len(message["content"]) for message in context)
    return said + share * sum(map(len, responses))


def count_most_calls(method: str, n: int, budget: int | None, orders: str | None) -> int:
    """Return how many prompts a ranking of n responses feeds at most."""
    pairs = n * (n - 1) // 2 if method == "round_robin" else n - 1
    if method in ("round_robin", "knockout"):
        return pairs if orders == "one" else 2 * pairs
    return budget or COMPARISONS_A_RESPONSE * n * (2 if orders == "both" else 1)
