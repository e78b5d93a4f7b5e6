"""What a client owes the broker: renewals of open leases, and settles not yet taken.

No I/O. Both clients use it, the blocking one from several threads.
"""

import logging
import threading
import time
from collections import deque
from typing import Final

import grpc

from fetcher.broker_client.lease import HeldLease
from fetcher.broker_client.verdicts import is_worth_repeating
from fetcher.broker_client.wire import Settlement, seconds
from protos.tokenbroker.v1 import token_broker_pb2 as pb

log = logging.getLogger("fetcher.broker_client")

# Settles kept while the broker is away. Beyond it the oldest is dropped: Keepa's
# count then shows the broker what was spent.
SETTLEMENTS_MAX: Final = 10_000

# The caller sends the first settle: a broker that hangs must not hold it up.
FIRST_SETTLE_TIMEOUT_S: Final = 2.0

# Longest single wait of upkeep for a broker that is away. gRPC sends such calls the
# moment the connection is back.
RETRY_TIMEOUT_S: Final = 1.0
RETRY_PAUSE_S: Final = 0.25
IDLE_PAUSE_S: Final = 3600.0


class Duties:
    """Open leases with the times of their next renewals, and pending settles in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leases: dict[str, tuple[HeldLease, float]] = {}
        self._pending: deque[Settlement] = deque()
        # Failures so far of calls that will be repeated, by lease.
        self._failures: dict[str, int] = {}
        # When the upkeep looks at its duties next.
        self._looked_at_s = 0.0

    def keep(self, lease: HeldLease) -> bool:
        """Renews *lease* every third of its time until it is settled.

        Returns whether the upkeep must be woken: it would look too late.
        """
        due_s = time.monotonic() + lease.ttl_s / 3
        with self._lock:
            self._leases[lease.lease_id] = (lease, due_s)
            return due_s < self._looked_at_s

    def renew_all(self, by_s: float = 0.0) -> None:
        """Makes every lease due by *by_s*: the broker may be a new one."""
        with self._lock:
            self._leases = {
                name: (lease, min(due_s, by_s)) for name, (lease, due_s) in self._leases.items()
            }

    def due(self, now_s: float) -> list[HeldLease]:
        """Leases to renew now."""
        with self._lock:
            return [lease for lease, due_s in self._leases.values() if due_s <= now_s]

    def renewed(
        self, lease: HeldLease, answer: pb.RenewLeaseResponse, *, asked_at_s: float
    ) -> None:
        """Records that the broker has prolonged *lease*."""
        lease.renewed(epoch=answer.epoch, ttl_s=seconds(answer.ttl), asked_at_s=asked_at_s)
        self._due_again(lease, asked_at_s + lease.ttl_s / 3)

    def renewal_failed(self, lease: HeldLease, exc: grpc.RpcError) -> None:
        """Schedules another try for *lease*, or marks it as lost when *exc* is final."""
        if self._is_worth_repeating(lease.lease_id, exc):
            self._due_again(lease, time.monotonic() + RETRY_PAUSE_S)
            return
        if not lease.settled:
            log.warning("lease %s is lost: %s", lease.lease_id, exc.details())
        lease.lost()
        self.ended(lease)

    def ended(self, lease: HeldLease) -> None:
        """Stops renewing *lease*."""
        with self._lock:
            self._leases.pop(lease.lease_id, None)
            self._failures.pop(lease.lease_id, None)

    def settle_later(self, settlement: Settlement, *, first: bool = False) -> None:
        """Queues *settlement* at the end, or at the front if *first*."""
        with self._lock:
            if len(self._pending) == SETTLEMENTS_MAX:
                log.warning("too many settles wait for the broker: the oldest is dropped")
                self._pending.popleft()
            if first:
                self._pending.appendleft(settlement)
            else:
                self._pending.append(settlement)

    def next_settlement(self) -> Settlement | None:
        """Takes the oldest settle out of the queue."""
        with self._lock:
            return self._pending.popleft() if self._pending else None

    def settle_is_over(self, settlement: Settlement, exc: grpc.RpcError | None) -> bool:
        """Returns whether the broker's answer to *settlement*, or its error *exc*, is final."""
        lease_id = settlement.terms.lease_id
        if exc is not None and self._is_worth_repeating(lease_id, exc):
            return False
        with self._lock:
            self._failures.pop(lease_id, None)
        if exc is not None:
            log.warning("settle of lease %s not accepted: %s", lease_id, exc.details())
        return True

    @property
    def settles_left(self) -> int:
        """Settles that the broker has not taken yet."""
        return len(self._pending)

    def pause_s(self) -> float:
        """Returns the seconds until something is due."""
        now_s = time.monotonic()
        with self._lock:
            pause_s = RETRY_PAUSE_S
            if not self._pending:
                due_s = (due_s for _, due_s in self._leases.values())
                pause_s = max(0.0, min(due_s, default=now_s + IDLE_PAUSE_S) - now_s)
            self._looked_at_s = now_s + pause_s
        return pause_s

    def _due_again(self, lease: HeldLease, due_s: float) -> None:
        with self._lock:
            if lease.lease_id in self._leases:
                self._leases[lease.lease_id] = (lease, due_s)

    def _is_worth_repeating(self, lease_id: str, exc: grpc.RpcError) -> bool:
        with self._lock:
            failures = self._failures[lease_id] = self._failures.get(lease_id, 0) + 1
        return is_worth_repeating(exc, failures)
