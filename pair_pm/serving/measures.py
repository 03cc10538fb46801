"""What the service counts, for Prometheus: load, speed, and how the verdicts are spread, so that drift shows."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pair_pm.scoring import Comparison, OrderedComparison
from pair_pm.serving.batcher import Batch

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PROMPTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = tuple(2**power for power in range(6, 18))
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1)


class Measures:
    """The metrics of one service, in a registry of its own.

    Args:
        count_waiting_prompts: The queue's depth.
        count_requests: How many are under way.
    """

    def __init__(self, count_waiting_prompts: Callable[[], int], count_requests: Callable[[], int]):
        self.registry = registry = CollectorRegistry()
        name = "pair_pm_{}".format

        self._requests = Counter(name("requests"), "Requests answered", ["path", "status"], registry=registry)
        self._seconds = Histogram(
            name("request_seconds"), "From a request to its answer", ["path"], buckets=_SECONDS, registry=registry
        )
        self._hang_ups = Counter(name("hang_ups"), "Requests whose client left before the answer", registry=registry)
        self._pairs = Counter(
            name("pairs"), "Comparisons made, by whether both orders or one were scored", ["orders"], registry=registry
        )
        self._tokens = Counter(name("tokens"), "Tokens of the prompts scored", registry=registry)
        self._saved = Counter(
            name("prefix_tokens_saved"), "Of these, not computed because a prefix was shared", registry=registry
        )
        self._batch_prompts = Histogram(
            name("batch_prompts"), "Prompts computed together", buckets=_PROMPTS, registry=registry
        )
        self._batch_tokens = Histogram(
            name("batch_tokens"), "Tokens of the prompts computed together", buckets=_TOKENS, registry=registry
        )
        self._batch_calls = Histogram(
            name("batch_requests"), "Requests whose prompts were computed together", buckets=_PROMPTS, registry=registry
        )
        self._gap = Histogram(
            name("position_gap"), "How far the two orders of a pair lie apart", buckets=_SHARES, registry=registry
        )
        self._mass = Histogram(
            name("label_mass"), "Probability of A and B together, the smaller of the orders'", buckets=_SHARES,
            registry=registry,
        )  # fmt: skip
        Gauge(name("queue_prompts"), "Prompts that wait for a batch", registry=registry).set_function(
            count_waiting_prompts
        )
        Gauge(name("requests_under_way"), "Requests taken and not answered yet", registry=registry).set_function(
            count_requests
        )

    def note_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered; its path is a known one."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def note_hang_up(self) -> None:
        """Count a request whose client left."""
        self._hang_ups.inc()

    def note_batch(self, batch: Batch) -> None:
        """Count what was computed at once; padding can make it more than was asked for."""
        self._batch_prompts.observe(batch.prompts)
        self._batch_tokens.observe(batch.tokens)
        self._batch_calls.observe(batch.calls)
        self._saved.inc(max(0, batch.tokens - batch.tokens_computed))

    def note_comparisons(self, comparisons: Sequence[Comparison]) -> None:
        """Count verdicts in both orders."""
        self._pairs.labels("both").inc(len(comparisons))
        self._tokens.inc(sum(sum(one.prompt_tokens) for one in comparisons))
        for one in comparisons:
            self._gap.observe(one.position_gap)
            self._mass.observe(one.label_mass)

    def note_ordered(self, comparisons: Sequence[OrderedComparison]) -> None:
        """Count verdicts in one order."""
        self._pairs.labels("one").inc(len(comparisons))
        self._tokens.inc(sum(one.prompt_tokens for one in comparisons))
        for one in comparisons:
            self._mass.observe(one.label_mass)

    def render(self) -> bytes:
        """Return them in Prometheus' text format."""
        return generate_latest(self.registry)
