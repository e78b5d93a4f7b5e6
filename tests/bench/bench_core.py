"""Acquire and settle through the pure core alone: cycles a second on one core.

Beside it, the same number of dictionary updates by the same interpreter: a yardstick for
the machine, because a rate alone means little on a noisy one.
"""

import statistics
import time
from collections.abc import Iterator
from typing import Final

from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.bucket import Envelope
from broker.core.costs import SAMPLES_MIN
from broker.core.leases import Granted, LeaseRequest, Outcome, Priority, Settlement
from tests.bench.table import Row, at_least

OPEN_LEASES: Final = (0, 1_000, 10_000)
CYCLES: Final = 4_000
ROUNDS: Final = 5
TOKENS: Final = 5
RATE: Final = 500_000
TICK_MS: Final = 60_000
HOLDERS: Final = 64
SERVER_MS: Final = 1_758_000_000_000
GOAL: Final = at_least(60_000)
WHY: Final = (
    "a cycle makes some 330 calls, and the dearest part of it, 5 %, is to find out when to wake:"
    " no part stands out. A core compiled with mypyc makes 2.1 to 2.3 times as many"
)


class Bench:
    """One allocator with a full bucket and *open_leases* leases that stay open."""

    def __init__(self, open_leases: int) -> None:
        self.allocator = Allocator(AllocatorConfig(recovery_grace_ms=0), epoch=1, started_ms=0)
        self._left = 60 * RATE
        self._number = 0
        self._now_ms = 1
        self.allocator.probe_started(0)
        self.allocator.probe_answered(self._envelope(0), 0, 1)
        for _ in range(SAMPLES_MIN):
            self.allocator.costs.learn("deal", 1, TOKENS, 0)
        for _ in range(open_leases):
            self._acquire(ttl_ms=10 * TICK_MS)

    def cycle(self) -> None:
        """One request, granted at once and settled."""
        lease = self._acquire(ttl_ms=TICK_MS).lease
        self._left -= TOKENS
        settlement = Settlement(
            lease.lease_id,
            lease.epoch,
            lease.holder,
            lease.operation,
            lease.units,
            lease.tokens,
            Outcome.REPLIED,
            self._envelope(TOKENS),
        )
        self.allocator.settle(settlement, self._now_ms)
        self._drain()

    def _acquire(self, ttl_ms: int) -> Granted:
        self._number += 1
        # Five hundred cycles a tick at most would never reach the next one.
        self._now_ms += self._number % 64 == 0
        holder = f"h{self._number % HOLDERS}"
        lease_id = f"l{self._number}"
        request = LeaseRequest(lease_id, holder, "deal", 1, 1, 5.0, Priority.NORMAL, ttl_ms)
        self.allocator.acquire(request, self._now_ms)
        (outcome,) = self._drain()
        assert isinstance(outcome, Granted)
        return outcome

    def _drain(self) -> list[object]:
        """Does what the runtime does after every step."""
        self.allocator.take_records()
        outcomes: list[object] = list(self.allocator.take_outcomes())
        self.allocator.take_events()
        self.allocator.probe_wanted(self._now_ms)
        self.allocator.next_wake_ms(self._now_ms)
        return outcomes

    def _envelope(self, consumed: int) -> Envelope:
        return Envelope(
            server_time_ms=SERVER_MS + self._now_ms,
            processing_ms=0,
            tokens_left=self._left,
            tokens_consumed=consumed,
            refill_in_ms=TICK_MS - self._now_ms,
            refill_rate=RATE,
            token_flow_reduction=0.0,
        )


def updates_per_s() -> float:
    """Dictionary updates a second: the yardstick."""
    table: dict[int, int] = {}
    began_s = time.process_time()
    for number in range(200_000):
        table[number & 1023] = table.get(number & 1023, 0) + 1
    return 200_000 / (time.process_time() - began_s)


def rows(quick: bool) -> Iterator[Row]:  # noqa: FBT001 - as all benches
    """Rounds of all settings by turns, with the yardstick between."""
    benches = {count: Bench(count) for count in OPEN_LEASES[: 2 if quick else None]}
    cycles: dict[int, list[float]] = {count: [] for count in benches}
    updates: list[float] = []
    number = CYCLES // 8 if quick else CYCLES
    for _ in range(ROUNDS):
        updates.append(updates_per_s())
        for count, bench in benches.items():
            began_s = time.process_time()
            for _ in range(number):
                bench.cycle()
            cycles[count].append(number / (time.process_time() - began_s))
    for count, rates in cycles.items():
        rate = statistics.median(rates)
        yield Row(
            f"pure core, acquire + settle, {count:,} leases open",
            rate,
            "cycles/s",
            GOAL,
            f"{statistics.median(updates) / rate:,.0f} dictionary updates a cycle",
            WHY,
            {"cycles_per_s": rates, "updates_per_s": updates},
        )
