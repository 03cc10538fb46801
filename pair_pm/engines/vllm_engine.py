"""The engine for vLLM servers: prompts in neighbouring batches over one or more of them, through their failures.

It imports no vLLM, whose requirements conflict with those of training: it speaks to servers over HTTP.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np

from pair_pm.engines.dispatch import Dispatch, split_neighbours
from pair_pm.engines.vllm_server import ExpectedModel, ServerFault, VLLMServer
from pair_pm.errors import ConfigError, EngineError

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 600.0
_REQUEST_SHARE = 0.2  # of the timeout: a slower answer is asked of another server, well before all is given up
_SHORTEST_REST_S, _LONGEST_REST_S = 0.5, 10.0
_UNSEEN_S = 5.0  # no server starts faster: one that was idle for longer may be another by now
# A server forms its own batches, of up to 256 prompts by default: requests under way together fill one, and large
# ones spare HTTP. Both are bounded in tokens as well, so that a request is work of seconds.
PROMPTS_A_REQUEST, TOKENS_A_REQUEST = 32, 32768
REQUESTS_AT_ONCE = 8


class _Member:
    """A server, and whether it may be asked: after a failure or an idle time it is examined before its next request."""

    def __init__(self, server: VLLMServer, examine: Callable[[VLLMServer], None]):
        self.server = server
        self.last_fault: Exception | None = None
        self._examine = examine
        self._lock = threading.Lock()  # of what is known of it; held for moments, because every answer needs it
        self._examination = threading.Lock()  # held while the server is asked, which may take long
        self._slots = threading.BoundedSemaphore(REQUESTS_AT_ONCE)  # of all calls together
        self._rest_s = _SHORTEST_REST_S
        self._rests_until = 0.0
        self._under_way = 0
        self._idle_since = time.monotonic()

    def is_ready(self) -> bool:
        """Return whether it may be asked, examining it where that is due."""
        if (is_known := self._is_known_to_be_ready()) is not None:
            return is_known
        with self._examination:
            if (is_known := self._is_known_to_be_ready()) is not None:  # while this thread waited for another's
                return is_known
            try:
                self._examine(self.server)
            except (ServerFault, EngineError) as fault:  # another model is as bad as none, while others answer
                with self._lock:
                    self._exclude(fault)
                return False
            with self._lock:
                if self.last_fault is not None:
                    logger.warning("%s: answers again", self.server.url)
                self.last_fault, self._rest_s, self._idle_since = None, _SHORTEST_REST_S, time.monotonic()
            return True

    def _is_known_to_be_ready(self) -> bool | None:
        """Return whether it may be asked, None where an examination is due."""
        with self._lock:
            if self.last_fault is None and (self._under_way or time.monotonic() - self._idle_since < _UNSEEN_S):
                return True
            return False if time.monotonic() < self._rests_until else None

    def label_logprobs(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the server's answer; errors as its own."""
        with self._slots:
            with self._lock:
                self._under_way += 1
            try:
                return self.server.label_logprobs(prompts)
            finally:
                with self._lock:
                    self._under_way -= 1
                    self._idle_since = time.monotonic()

    def exclude(self, fault: Exception) -> None:
        """Let it rest after a failure."""
        with self._lock:
            if self.last_fault is None:  # else it rests already, for another request's
                self._exclude(fault)

    def _exclude(self, fault: Exception) -> None:
        if self.last_fault is None:
            logger.warning("%s; others are asked meanwhile, and it again when it answers", fault)
        self.last_fault = fault
        self._rests_until = time.monotonic() + self._rest_s
        self._rest_s = min(2 * self._rest_s, _LONGEST_REST_S)


class VLLMEngine:
    """Scores prompts on vLLM servers that all serve the same model.

    Args:
        urls: Addresses, separated by commas.
        expected: What the servers must serve.
        timeout_s: How long no server may answer before a call fails; a fifth of it is how long one answer may take
            before another server is asked.

    Raises:
        ConfigError: an address is none.
        EngineError: no server answers, or one of them serves another model, too short prompts, or is too old.
    """

    calls_at_once = 2  # while servers answer one, the next is rendered and tokenised

    def __init__(self, urls: str, expected: ExpectedModel, timeout_s: float = DEFAULT_TIMEOUT_S):
        if not 0 < timeout_s < math.inf:
            raise ConfigError(f"engine timeout {timeout_s}: a finite number of seconds above 0 is required")
        addresses = dict.fromkeys(_check_url(url.strip()) for url in urls.split(","))
        servers = [VLLMServer(url, expected, _REQUEST_SHARE * timeout_s) for url in addresses]
        self._members = [_Member(server, self._examine) for server in servers]
        self._timeout_s = timeout_s
        self._open()

    def label_logprobs(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the natural-log probabilities of "A" and "B" as next token, float64, shape (prompts, 2).

        Raises:
            EngineError: no server answered for `timeout_s`, or one refuses the prompts.
        """
        # Equal prompts are sent once: in different batches their last digits could differ, and equal responses
        # would not tie.
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        distinct = list(places)
        logprobs = np.empty((len(distinct), 2))
        batches = split_neighbours(distinct, PROMPTS_A_REQUEST, TOKENS_A_REQUEST)
        answers = self._send([[distinct[index] for index in batch] for batch in batches])
        for batch, answer in zip(batches, answers, strict=True):
            logprobs[batch] = answer
        return logprobs[[places[tuple(prompt)] for prompt in prompts]]

    def _open(self) -> None:
        """Check all servers side by side; one that does not answer yet may join later."""
        with ThreadPoolExecutor(len(self._members)) as pool:
            outcomes = list(pool.map(_check, self._members))
        found = [(member.server, outcome) for member, outcome in zip(self._members, outcomes, strict=True)]
        answering = [(server, probes) for server, probes in found if not isinstance(probes, ServerFault)]
        if not answering:
            raise EngineError(
                f"{'; '.join(str(fault) for fault in outcomes)}; a server that answers is required; vLLM takes minutes "
                "to load a model: wait until its /health answers"
            )
        self.max_prompt_tokens = min(server.max_prompt_tokens for server, _ in answering)
        self._reference = answering[0][1], answering[0][0].url
        for server, probes in answering:
            server.compare_probes(probes, *self._reference)
        for member, outcome in zip(self._members, outcomes, strict=True):
            if isinstance(outcome, ServerFault):
                member.exclude(outcome)

    def _examine(self, server: VLLMServer) -> None:
        """Check a server that comes back: it may have been started anew, with something else."""
        server.compare_probes(server.check(), *self._reference)
        if server.max_prompt_tokens < self.max_prompt_tokens:
            raise EngineError(
                f"{server.url}: takes prompts of {server.max_prompt_tokens} tokens now; {self.max_prompt_tokens} are "
                "required, as at the start"
            )

    def _send(self, batches: Sequence[Sequence[Sequence[int]]]) -> list[np.ndarray]:
        """Return the answers to batches, each from whichever server answered it."""
        dispatch = Dispatch(len(batches), len(self._members))
        for lane, member in enumerate(self._members):
            for _ in range(min(REQUESTS_AT_ONCE, len(batches))):
                # Daemons: after Ctrl-C nobody waits for an answer that is under way.
                threading.Thread(target=_serve, args=(dispatch, batches, lane, member), daemon=True).start()
        try:
            return dispatch.wait(self._timeout_s)
        except TimeoutError as error:
            faults = [str(member.last_fault) for member in self._members if member.last_fault]
            raise EngineError(
                f"no server has answered for {self._timeout_s:g} s, and {error} are open "
                f"({'; '.join(faults) or 'all are slow'}); a server that answers is required; start it again, or wait "
                "longer with --engine-timeout-s"
            ) from error


def _check(member: _Member) -> np.ndarray | ServerFault:
    try:
        return member.server.check()
    except ServerFault as fault:
        return fault


def _serve(dispatch: Dispatch, batches: Sequence[Sequence[Sequence[int]]], lane: int, member: _Member) -> None:
    """Send batches to one server until all are answered; one of the threads that do."""
    try:
        while not dispatch.is_over:
            if not member.is_ready():
                dispatch.pause(_SHORTEST_REST_S)
            elif (number := dispatch.take(lane)) is not None:
                try:
                    dispatch.finish(number, member.label_logprobs(batches[number]))
                except ServerFault as fault:
                    member.exclude(fault)
                    dispatch.give_back(lane, number)
    except BaseException as error:  # raised again where the call waits
        dispatch.fail(error)


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that are none
        is_address = False
    if not is_address:
        raise ConfigError(f"engine {url!r}: no address of a server; http://host:port is required")
    return url
