"""The engine for vLLM servers: prompts in neighbouring batches over one or more of them, through their failures.

It imports no vLLM, whose requirements conflict with those of training: it speaks to servers over HTTP.
"""

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np

from pair_pm.engines.dispatch import Dispatch, split_neighbours
from pair_pm.engines.fleet import Fleet, Member
from pair_pm.engines.vllm_server import ExpectedModel, ServerFault, VLLMServer
from pair_pm.errors import ConfigError, EngineError

DEFAULT_TIMEOUT_S = 600.0
_REQUEST_SHARE = 0.2  # of the timeout: a slower answer is asked of another server, well before all is given up
# A server forms its own batches, of up to 256 prompts by default: requests under way together fill one, and large
# ones spare HTTP. Both are bounded in tokens as well, so that a request is work of seconds. Of smaller requests, from
# many calls at once, more are under way.
PROMPTS_A_REQUEST, TOKENS_A_REQUEST = 32, 32768
REQUESTS_AT_ONCE = 8


class VLLMEngine:
    """Scores prompts on vLLM servers that all serve the same model.

    Args:
        urls: Addresses, separated by commas.
        expected: What the servers must serve.
        timeout_s: How long no server may answer before a call fails; a fifth of it is how long one answer may take
            before another server is asked.
        absence_s: How long all servers may be known to be away before a call fails, as a service wants it; None: for
            as long as `timeout_s` lets it, so that a file's run outlives a server that is started again. A server that
            is only slow is not away.

    Attributes:
        absence_s: As above; it may be changed.

    Raises:
        ConfigError: an address is none, or a time is out of range.
        EngineError: no server answers, or one of them serves another model, too short prompts, or is too old.
    """

    calls_at_once = 2  # while servers answer one, the next is rendered and tokenised

    def __init__(
        self, urls: str, expected: ExpectedModel, timeout_s: float = DEFAULT_TIMEOUT_S, absence_s: float | None = None
    ):
        if not 0 < timeout_s < math.inf:
            raise ConfigError(f"engine timeout {timeout_s}: a finite number of seconds above 0 is required")
        if absence_s is not None and not 0 <= absence_s < math.inf:
            raise ConfigError(f"engine absence {absence_s}: None or a finite number of seconds from 0 is required")
        addresses = dict.fromkeys(_check_url(url.strip()) for url in urls.split(","))
        servers = [VLLMServer(url, expected, _REQUEST_SHARE * timeout_s) for url in addresses]
        self._fleet = Fleet(servers, self._examine, REQUESTS_AT_ONCE * TOKENS_A_REQUEST)
        self._timeout_s = timeout_s
        self.absence_s = absence_s
        self._open(servers)

    def label_logprobs(self, prompts: Sequence[Sequence[int]], check: Callable[[], None] = lambda: None) -> np.ndarray:
        """Return the natural-log probabilities of "A" and "B" as next token, float64, shape (prompts, 2).

        Args:
            prompts: Token ids.
            check: Called twice a second; what it raises ends the call, of which no further request is sent then.

        Raises:
            EngineError: no server answered for `timeout_s`, all were away for `absence_s`, or one refuses the prompts.
        """
        # Equal prompts are sent once: in different batches their last digits could differ, and equal responses
        # would not tie.
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        distinct = list(places)
        logprobs = np.empty((len(distinct), 2))
        batches = split_neighbours(distinct, PROMPTS_A_REQUEST, TOKENS_A_REQUEST)
        answers = self._send([[distinct[index] for index in batch] for batch in batches], check)
        for batch, answer in zip(batches, answers, strict=True):
            logprobs[batch] = answer
        return logprobs[[places[tuple(prompt)] for prompt in prompts]]

    def check_presence(self) -> None:
        """Return when at least one server may be asked.

        While one is known to answer this costs nothing; else servers are examined, for `fleet.PRESENCE_S` at most, by
        one of the threads that ask, and the others are told what was known before.

        Raises:
            EngineError: none may; with what each answered.
        """
        self._fleet.check_presence()

    def _open(self, servers: Sequence[VLLMServer]) -> None:
        """Check all servers side by side; one that does not answer yet may join later."""
        with ThreadPoolExecutor(len(servers)) as pool:
            outcomes = list(pool.map(_check, servers))
        found = list(zip(servers, outcomes, strict=True))
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
        for server, outcome in found:
            if isinstance(outcome, ServerFault):
                self._fleet.exclude(server, outcome)

    def _examine(self, server: VLLMServer) -> None:
        """Check a server that comes back: it may have been started anew, with something else."""
        server.compare_probes(server.check(), *self._reference)
        if server.max_prompt_tokens < self.max_prompt_tokens:
            raise EngineError(
                f"{server.url}: takes prompts of {server.max_prompt_tokens} tokens now; {self.max_prompt_tokens} are "
                "required, as at the start"
            )

    def _send(self, batches: Sequence[Sequence[Sequence[int]]], check: Callable[[], None]) -> list[np.ndarray]:
        """Return the answers to batches, each from whichever server answered it."""
        members = self._fleet.list_by_load()
        dispatch = Dispatch(len(batches), len(members))
        for number in range(min(len(batches), REQUESTS_AT_ONCE * len(members))):
            lane = number % len(members)
            home = members[lane] if len(batches) >= len(members) else None  # fewer have no neighbours to keep
            # Daemons: after Ctrl-C nobody waits for an answer that is under way.
            threading.Thread(target=self._serve, args=(dispatch, batches, lane, home), daemon=True).start()

        def check_all() -> None:
            check()
            self._check_absence()

        try:
            return dispatch.wait(self._timeout_s, check_all)
        except TimeoutError as error:
            raise EngineError(
                f"no server has answered for {self._timeout_s:g} s, and {error} are open "
                f"({'; '.join(self._fleet.list_faults()) or 'all are slow'}); a server that answers is required; start "
                "it again, or wait longer with --engine-timeout-s"
            ) from error

    def _check_absence(self) -> None:
        self._fleet.check_absence(math.inf if self.absence_s is None else self.absence_s)

    def _serve(
        self, dispatch: Dispatch, batches: Sequence[Sequence[Sequence[int]]], lane: int, home: Member | None
    ) -> None:
        """Send batches until all are answered; one of the threads that do."""
        try:
            while (number := dispatch.take(lane)) is not None:
                load = _weigh(batches[number])
                member = self._fleet.claim(load, home, lambda: dispatch.is_over)
                if member is None:
                    return
                try:
                    dispatch.finish(number, member.server.label_logprobs(batches[number]))
                except ServerFault as fault:
                    self._fleet.exclude(member.server, fault)
                    dispatch.give_back(lane, number)
                finally:
                    self._fleet.release(member, load)
        except BaseException as error:  # raised again where the call waits
            dispatch.fail(error)


def _check(server: VLLMServer) -> np.ndarray | ServerFault:
    try:
        return server.check()
    except ServerFault as fault:
        return fault


def _weigh(batch: Sequence[Sequence[int]]) -> int:
    """Return the tokens of a request, or the share of `TOKENS_A_REQUEST` that its number of prompts is."""
    by_number = math.ceil(TOKENS_A_REQUEST / PROMPTS_A_REQUEST) * len(batch)
    return min(TOKENS_A_REQUEST, max(by_number, sum(map(len, batch))))


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that are none
        is_address = False
    if not is_address:
        raise ConfigError(f"engine {url!r}: no address of a server; http://host:port is required")
    return url
