"""Prometheus series of the gateway, all beginning with `keepagateway_`."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

WAIT_BUCKETS_S: Final = (0.005, 0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800)
CALL_BUCKETS_S: Final = (0.05, 0.25, 0.5, 1, 2.5, 5, 10, 20, 60, 120, 600)
ENDPOINTS: Final = frozenset(
    ("token", "deal", "product", "query", "search", "category", "bestsellers", "seller")
) | {"topseller", "lightningdeal", "tracking", "graphimage"}
IDENTITIES_MAX: Final = 100
OTHER: Final = "other"


class GatewayMetrics:
    """All metrics of a scrape; callers choose names and paths, so labels are bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._identities: set[str] = set()
        who = ["identity", "endpoint"]
        self._calls = Counter(
            "keepagateway_calls",
            "Answers to callers, by HTTP status and by where they came from: keepa, shared,"
            " cache or gateway.",
            [*who, "status", "source"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "keepagateway_spent_tokens",
            "Tokens that calls have cost.",
            who,
            registry=self.registry,
        )
        self._refusals = Counter(
            "keepagateway_refusals",
            "Calls that were answered with an error of the gateway's own, by reason.",
            [*who, "reason"],
            registry=self.registry,
        )
        self._waits = Histogram(
            "keepagateway_wait_seconds",
            "Time that a call waited for its tokens.",
            who,
            buckets=WAIT_BUCKETS_S,
            registry=self.registry,
        )
        self._durations = Histogram(
            "keepagateway_keepa_seconds",
            "Time from sending a call to the end of its reply.",
            ["endpoint"],
            buckets=CALL_BUCKETS_S,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "keepagateway_waiting_calls",
            "Calls that wait for tokens now.",
            registry=self.registry,
        )
        self.open = Gauge(
            "keepagateway_open_calls", "Calls that Keepa answers now.", registry=self.registry
        )

    def answered(self, identity: str, endpoint: str, status: int, source: str) -> None:
        """Counts an answer to a caller."""
        self._calls.labels(*self._who(identity, endpoint), status, source).inc()

    def refused(self, identity: str, endpoint: str, reason: str) -> None:
        """Counts an answer of the gateway's own."""
        self._refusals.labels(*self._who(identity, endpoint), reason).inc()

    def granted(self, identity: str, endpoint: str, waited_s: float) -> None:
        """Counts a wait that has ended with a lease."""
        self._waits.labels(*self._who(identity, endpoint)).observe(waited_s)

    def replied(self, identity: str, endpoint: str, duration_s: float, tokens: int) -> None:
        """Counts a call that Keepa has answered."""
        labels = self._who(identity, endpoint)
        self._tokens.labels(*labels).inc(tokens)
        self._durations.labels(labels[1]).observe(duration_s)

    def _who(self, identity: str, endpoint: str) -> tuple[str, str]:
        if identity not in self._identities:
            if len(self._identities) >= IDENTITIES_MAX:
                identity = OTHER
            else:
                self._identities.add(identity)
        return identity, endpoint if endpoint in ENDPOINTS else OTHER
