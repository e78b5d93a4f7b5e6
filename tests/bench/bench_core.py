"""Acquire and settle through the pure core alone: cycles a second on one core.

    python -m tests.bench.bench_core

Beside it, the same number of dictionary updates by the same interpreter: a yardstick for
the machine, because a rate alone means little on a noisy one.
"""

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Final

from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.bucket import Envelope
from broker.core.costs import SAMPLES_MIN
from broker.core.leases import Granted, LeaseRequest, Outcome, Priority, Settlement

OPEN_LEASES: Final = (0, 1_000, 10_000)
CYCLES: Final = 4_000
ROUNDS: Final = 5
TOKENS: Final = 5
RATE: Final = 500_000
TICK_MS: Final = 60_000
HOLDERS: Final = 64
SERVER_MS: Final = 1_758_000_000_000
GOAL: Final = 60_000


@dataclass(frozen=True, slots=True)
class Cycles:
    """One setting; per second of processor time."""

    open_leases: int
    cycles_per_s: float
    updates_per_s: float


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


def measure(open_leases: int) -> Cycles:
    """The medians of rounds taken by turns with the yardstick."""
    bench = Bench(open_leases)
    cycles, updates = [], []
    for _ in range(ROUNDS):
        updates.append(updates_per_s())
        began_s = time.process_time()
        for _ in range(CYCLES):
            bench.cycle()
        cycles.append(CYCLES / (time.process_time() - began_s))
    return Cycles(open_leases, statistics.median(cycles), statistics.median(updates))


def main() -> None:
    """Prints one line a setting."""
    results = [measure(count) for count in OPEN_LEASES]
    if "json" in sys.argv:
        json.dump([asdict(result) for result in results], sys.stdout, indent=1)
        return
    for result in results:
        print(  # noqa: T201 - the result
            f"{result.open_leases:6,} open: {result.cycles_per_s:8,.0f} cycles/s (goal {GOAL:,});"
            f" {result.updates_per_s / result.cycles_per_s:,.0f} dictionary updates a cycle"
        )


if __name__ == "__main__":
    main()
