"""Prometheus series of the broker, all beginning with `tokenbroker_`.

Every scrape reads the ledger's counts from it. Counted here is only what the ledger does
not keep: waits, and spend by operation and holder.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from broker.core.budgets import Mode
from broker.core.leases import BucketState, DenialReason, Outcome, Priority, Settled, Settlement
from broker.core.snapshot import BucketView
from broker.journal.status import JournalState
from broker.keepa_status import ProbeFailure
from broker.runtime import BrokerRuntime
from broker.telemetry.tallies import Durations, Tally
from protos.channel.reasons import Reason
from protos.process.metric_families import MetricFamilies

# An immediate grant takes milliseconds, a tick a minute, an empty bucket up to an hour.
WAIT_BUCKETS_S: Final = (0.005, 0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600)
# Holders come and go, and Prometheus keeps a series for each; hence the limit.
LABEL_VALUES_MAX: Final = 100
# Prometheus has scraped the last count many times by then.
LABEL_IDLE_S: Final = 3_600.0
OTHER: Final = "other"
# Refusals of the caller; the other reasons concern its request.
DOOR_REASONS: Final = (
    Reason.NO_CREDENTIALS,
    Reason.UNKNOWN_TOKEN,
    Reason.UNKNOWN_CERTIFICATE,
    Reason.WRONG_ROLE,
    Reason.FOREIGN_LEASE,
)

PRIORITIES: Final = {priority: priority.name.lower() for priority in Priority}

families: Final = MetricFamilies("tokenbroker")
gauge, gauges = families.gauge, families.gauges
counter, counters = families.counter, families.counters


class BoundedLabel:
    """Keeps the values of a label few; calls *forget* with a value before its series must go.

    A value idle for `LABEL_IDLE_S` goes when another one comes. Beyond `LABEL_VALUES_MAX`
    values at once, further ones share the label `other`.
    """

    def __init__(
        self, forget: Callable[[str], None], clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._forget = forget
        self._clock_s = clock_s
        # When each was last seen, the one idle longest first.
        self._seen_s: dict[str, float] = {}

    def __call__(self, value: str) -> str:
        """Returns the label for *value*."""
        now_s = self._clock_s()
        if self._seen_s.pop(value, None) is None:
            for idle in list(self._seen_s):
                if now_s - self._seen_s[idle] < LABEL_IDLE_S:
                    break
                del self._seen_s[idle]
                self._forget(idle)
            if len(self._seen_s) >= LABEL_VALUES_MAX:
                return OTHER
        self._seen_s[value] = now_s
        return value


class BrokerMetrics:
    """All metrics of a scrape."""

    def __init__(self, runtime: BrokerRuntime) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(BucketCollector(runtime))
        self._operation = BoundedLabel(
            lambda operation: self._operation_tokens.forget((operation,))
        )
        self._holder = BoundedLabel(self._forget_holder)
        self._wait = Durations(
            "tokenbroker_wait_seconds",
            "Time from a request to its grant.",
            "priority",
            WAIT_BUCKETS_S,
            self.registry,
        )
        self._settles = Tally(
            "tokenbroker_settles",
            "Settled leases by outcome of their call.",
            ["outcome"],
            self.registry,
        )
        self._operation_tokens = Tally(
            "tokenbroker_operation_spent_tokens",
            "Tokens spent by settled calls, by operation.",
            ["operation"],
            self.registry,
        )
        self._holder_tokens = Tally(
            "tokenbroker_holder_spent_tokens",
            "Tokens spent by settled calls, by holder.",
            ["holder"],
            self.registry,
        )
        self._implausible = Counter(
            "tokenbroker_implausible_reports",
            "Settled envelopes that did not fit Keepa's count, by holder and reason.",
            ["holder", "reason"],
            registry=self.registry,
        )
        self._eta_error = Histogram(
            "tokenbroker_eta_error_seconds",
            "Time between a grant and its ETA: the first one, and the last corrected one.",
            ["told"],
            buckets=WAIT_BUCKETS_S,
            registry=self.registry,
        )
        runtime.eta_listeners.append(self._eta_proved)
        self._refused = Counter(
            "tokenbroker_refused_calls",
            "Calls refused because of their caller, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self._held_back = Counter(
            "tokenbroker_held_back_calls",
            "Calls that waited because many of their connection had been refused.",
            registry=self.registry,
        )
        # Created at once: an alert needs the series before its first event.
        for priority in PRIORITIES.values():
            self._wait.create(priority)
        for outcome in Outcome:
            self._settles.add((outcome.value,), 0)
        for reason in DOOR_REASONS:
            self._refused.labels(reason.value)
        for told in ("first", "last"):
            self._eta_error.labels(told)

    def _forget_holder(self, holder: str) -> None:
        self._holder_tokens.forget((holder,))
        self._implausible.remove_by_labels({"holder": holder})

    def _eta_proved(self, first_ms: int, last_ms: int) -> None:
        self._eta_error.labels("first").observe(first_ms / 1000)
        self._eta_error.labels("last").observe(last_ms / 1000)

    def granted(self, priority: Priority, waited_ms: int) -> None:
        """Counts a lease granted after *waited_ms*."""
        self._wait.observe(PRIORITIES[priority], waited_ms / 1000)

    def refused(self, reason: Reason) -> None:
        """Counts a refused caller."""
        self._refused.labels(reason.value).inc()

    def held_back(self) -> None:
        """Counts a call of a connection that has many refused."""
        self._held_back.inc()

    def settled(self, settlement: Settlement, settled: Settled) -> None:
        """Counts a settled lease, but neither repeats nor unknown costs."""
        if settled.doubt is not None:
            holder = self._holder(settlement.holder)
            self._implausible.labels(holder, settled.doubt.value).inc()
        spent = settled.cost_tokens
        if spent is None:
            return
        self._settles.add((settlement.outcome.value,))
        self._operation_tokens.add((self._operation(settlement.operation),), spent)
        self._holder_tokens.add((self._holder(settlement.holder),), spent)

    def spent(self) -> tuple[dict[str, float], dict[str, float]]:
        """Tokens spent since the start, by operation and by holder."""
        operations, holders = self._operation_tokens.counts, self._holder_tokens.counts
        return (
            {operation: tokens for (operation,), tokens in operations.items()},
            {holder: tokens for (holder,), tokens in holders.items()},
        )


class BucketCollector(Collector):
    """Reads the bucket, the ledger's sums and the probes at every scrape."""

    def __init__(self, runtime: BrokerRuntime) -> None:
        self._runtime = runtime

    def describe(self) -> Iterable[Metric]:
        """Nothing: only a scrape yields the names, which are unique."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All series of this moment."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._journal()
        yield from self._by_label()

    def _gauges(self) -> Iterator[Metric]:
        synced = self._runtime.synced.is_set()
        yield gauge("synced", "1 once a balance has been read from Keepa.", synced)
        view, config = self._runtime.bucket(), self._runtime.allocator.config
        if view.state is BucketState.STANDBY:
            # What it last knew as leader, if anything, would stand beside the leader's.
            return
        yield gauge("balance_tokens", "Projected balance.", view.balance)
        yield gauge("reserved_tokens", "Tokens held for calls.", view.reserved)
        yield gauge("available_tokens", "Tokens that could be granted now.", view.available)
        yield gauge("capacity_tokens", "Maximum of tokens that refill can reach.", view.capacity)
        yield gauge("refill_rate_tokens", "Tokens that one refill brings.", view.refill_rate)
        yield gauge("refill_period_seconds", "Time between refills.", view.refill_period_ms / 1e3)
        yield gauge("tick_error_seconds", "Time of the last refill less its prediction.",
                     view.tick_error_ms / 1e3)  # fmt: skip
        yield gauge("floor_tokens", "Tokens that are never granted.", config.floor_tokens)
        yield gauge("max_debt_tokens", "Tokens that a lone lease may take below zero.",
                     self._runtime.allocator.quotes.debt_tokens)  # fmt: skip
        yield gauge("drift_tokens", "Observed less predicted balance at the last observation.",
                     view.drift_tokens)  # fmt: skip
        yield gauge("foreign_spend_tokens", "Tokens that others spent with the same key.",
                     view.foreign_tokens)  # fmt: skip
        yield gauge("open_leases", "Leases granted and not yet settled.", view.open_leases)
        yield gauge("oldest_lease_seconds", "Age of the oldest open lease; 0 without one.",
                     view.oldest_lease_ms / 1e3)  # fmt: skip
        yield gauge("waiting_requests", "Requests that wait for tokens.", view.waiting)
        yield gauge("epoch", "The broker's incarnation.", view.epoch)
        if (outlook := view.outlook) is not None:
            yield gauge("spend_tokens_per_hour", "Pace of spending of the last 15 minutes.",
                        outlook.spent_per_hour)  # fmt: skip
            if outlook.dry_ms is not None:
                yield gauge("dry_seconds", "Time until nothing is available at this pace.",
                            outlook.dry_ms / 1e3)  # fmt: skip
            if outlook.full_ms is not None:
                yield gauge("full_seconds", "Time until the bucket is full at this pace.",
                            outlook.full_ms / 1e3)  # fmt: skip
        if view.observation is not None and view.observation_age_ms is not None:
            yield gauge("observed_balance_tokens", "Balance last observed at Keepa.",
                         view.observation.envelope.tokens_left)  # fmt: skip
            yield gauge("observation_age_seconds", "Time since a balance was last observed.",
                         view.observation_age_ms / 1e3)  # fmt: skip

    def _counters(self) -> Iterator[Metric]:
        totals = self._runtime.allocator.ledger.totals
        yield counter("grants", "Leases granted.", totals.grants)
        yield counter("late_settles", "Settles after the lease had lapsed.", totals.late_settles)
        yield counter("expiries", "Leases that expired: no renewal came.", totals.expiries)
        yield counter("refusals", "Calls that Keepa refused (HTTP 429).", totals.refusals)
        yield counter("spent_tokens", "Tokens spent by settled calls.", totals.spent_tokens)
        yield counter("observations", "Balances observed at Keepa.", totals.observations)
        yield counter("stale_observations", "Balances older than one already seen.",
                       totals.stale_observations)  # fmt: skip

    def _journal(self) -> Iterator[Metric]:
        journal = self._runtime.journal_status
        states = {state.value: state is journal.state for state in JournalState}
        yield gauges("journal_state", "1 for the journal's present state.", "state", states)
        yield counter("journal_written_records", "Records written.", journal.written)
        yield counter("journal_lost_records", "Records that could not be kept.", journal.lost)
        yield gauge("journal_buffered_records", "Records that wait to be written.",
                    journal.buffered)  # fmt: skip
        yield gauge("journal_lag_seconds", "Age of the oldest record that is not written.",
                    journal.lag_ms / 1e3)  # fmt: skip

    def _by_label(self) -> Iterator[Metric]:
        view, failures = self._runtime.bucket(), self._runtime.probes.failures
        states = {state.value: state is view.state for state in BucketState}
        yield gauges("state", "1 for the broker's present state.", "state", states)
        denials = {reason.value: view.denials[reason] for reason in DenialReason}
        asked = self._runtime.allocator.probing.by_reason
        probes = {reason.value: count for reason, count in asked.items()}
        failed = {failure.value: failures.get(failure, 0) for failure in ProbeFailure}
        yield counters("denials", "Requests denied.", "reason", denials)
        yield counters("probes", "Status calls to Keepa, by reason.", "reason",
                        probes)  # fmt: skip
        yield counters("probe_failures", "Status calls without an answer.", "failure", failed)
        yield from self._budgets(view)
        yield gauges("drift_by_cause_tokens", "Sum of drift since the start; negative: Keepa"
                      " had less.", "cause", view.drift_by_cause)  # fmt: skip

    @staticmethod
    def _budgets(view: BucketView) -> Iterator[Metric]:
        labels = ["budget", "span"]
        limit = GaugeMetricFamily(
            "tokenbroker_budget_limit_tokens", "Tokens that a budget allows.", labels=labels
        )
        used = GaugeMetricFamily(
            "tokenbroker_budget_used_tokens", "Tokens spent or held in its span.", labels=labels
        )
        left = GaugeMetricFamily(
            "tokenbroker_budget_left_tokens", "Tokens that may still be spent.", labels=labels
        )
        resets = GaugeMetricFamily(
            "tokenbroker_budget_resets_seconds", "Time until a day or month ends.", labels=labels
        )
        enforced, denials, would_deny = {}, {}, {}
        for standing in view.budgets:
            name = standing.budget.name
            enforced[name] = standing.budget.mode is Mode.ENFORCE
            denials[name], would_deny[name] = standing.denied, standing.would_deny
            if standing.span is None:
                continue
            values = [name, standing.span.value]
            limit.add_metric(values, standing.limit)
            used.add_metric(values, standing.used)
            left.add_metric(values, standing.left)
            if standing.resets_ms is not None:
                resets.add_metric(values, standing.resets_ms / 1000)
        yield from (limit, used, left, resets)
        yield gauges("budget_enforced", "1; 0 in shadow mode.", "budget", enforced)
        yield counters("budget_denials", "Requests denied for a budget.", "budget", denials)
        yield counters("budget_would_deny", "Grants that a budget in shadow mode would have"
                       " denied or delayed.", "budget", would_deny)  # fmt: skip
