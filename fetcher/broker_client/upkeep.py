"""The background thread: renews open leases, repeats settles until they are taken."""

import logging
import threading
import time
from collections import deque

import grpc

from fetcher.broker_client.connection import Connection
from fetcher.broker_client.lease import Lease
from fetcher.broker_client.wire import TRY_AGAIN, Settlement, renewal, seconds
from protos.tokenbroker.v1 import token_broker_pb2 as pb

log = logging.getLogger(__name__)

# Settles kept while the broker is away. Beyond it the oldest is dropped: the
# broker then learns of the spend from Keepa's count alone.
SETTLEMENTS_MAX = 10_000

# The first settle is sent by the caller, who must not be held up by a broker that hangs.
FIRST_SETTLE_TIMEOUT_S = 2.0

# Longest single wait of the thread for a broker that is away; such calls are
# sent at the very moment the connection comes back.
RETRY_TIMEOUT_S = 1.0
RETRY_PAUSE_S = 0.25
IDLE_PAUSE_S = 3600.0


# What was paid for is not forgotten for want of a token that is just being replaced.
SETTLE_AGAIN = TRY_AGAIN | {grpc.StatusCode.UNAUTHENTICATED}


class Upkeep:
    """Heartbeats and pending settles of one client."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._leases: dict[str, tuple[Lease, float]] = {}
        self._pending: deque[Settlement] = deque(maxlen=SETTLEMENTS_MAX)
        self._closing = False
        self._flush_until_s = 0.0
        self._thread = threading.Thread(target=self._run, name="broker-upkeep", daemon=True)
        self._thread.start()

    def keep(self, lease: Lease) -> None:
        """Renew *lease* every third of its time until it is settled."""
        with self._lock:
            self._leases[lease.lease_id] = (lease, time.monotonic() + lease.ttl_s / 3)
        self._wake.set()

    def renew_all_now(self) -> None:
        """Make every lease due: the connection was lost, the broker may be a new one."""
        with self._lock:
            self._leases = {name: (lease, 0.0) for name, (lease, _) in self._leases.items()}
        self._wake.set()

    def settle(self, lease: Lease, settlement: Settlement) -> None:
        """End *lease*; returns when the broker has it or it is queued for a retry."""
        with self._lock:
            self._leases.pop(lease.lease_id, None)
        if not self._send(settlement, FIRST_SETTLE_TIMEOUT_S, wait_for_ready=False):
            self.settle_later(settlement)

    def settle_later(self, settlement: Settlement) -> None:
        """Queue *settlement*; safe where a call would not be."""
        with self._lock:
            if len(self._pending) == SETTLEMENTS_MAX:
                log.warning("too many settles wait for the broker: the oldest is dropped")
            self._pending.append(settlement)
        self._wake.set()

    def close(self, timeout_s: float) -> int:
        """Deliver what is queued within *timeout_s* and stop; returns what is left."""
        self._flush_until_s = time.monotonic() + timeout_s
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s + RETRY_TIMEOUT_S)
        return len(self._pending)

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._pause_s())
            self._wake.clear()
            self._renew_due()
            self._deliver()
        while self._pending and time.monotonic() < self._flush_until_s:
            self._deliver()

    def _pause_s(self) -> float:
        with self._lock:
            if self._pending:
                return RETRY_PAUSE_S
            next_due_s = min((due_s for _, due_s in self._leases.values()), default=None)
        if next_due_s is None:
            return IDLE_PAUSE_S
        return max(0.0, next_due_s - time.monotonic())

    def _renew_due(self) -> None:
        now_s = time.monotonic()
        with self._lock:
            due = [lease for lease, due_s in self._leases.values() if due_s <= now_s]
        # Sent together: one that hangs must not let the others lapse.
        calls = [
            (
                lease,
                self._connection.stub.RenewLease.future(
                    renewal(lease.terms, lease.ttl_s),
                    timeout=RETRY_TIMEOUT_S,
                    wait_for_ready=True,
                ),
            )
            for lease in due
        ]
        for lease, call in calls:
            self._renewed(lease, call, asked_at_s=now_s)

    def _renewed(
        self, lease: Lease, call: "grpc.CallFuture[pb.RenewLeaseResponse]", *, asked_at_s: float
    ) -> None:
        try:
            answer = call.result()
        except grpc.RpcError as exc:
            if exc.code() in TRY_AGAIN:
                self._connection.refresh()
                self._due_again(lease, time.monotonic() + RETRY_PAUSE_S)
                return
            if not lease.settled:
                log.warning("lease %s is lost: %s", lease.lease_id, exc.details())
            lease.lost()
            with self._lock:
                self._leases.pop(lease.lease_id, None)
            return
        lease.renewed(epoch=answer.epoch, ttl_s=seconds(answer.ttl), asked_at_s=asked_at_s)
        self._due_again(lease, asked_at_s + lease.ttl_s / 3)

    def _due_again(self, lease: Lease, due_s: float) -> None:
        with self._lock:
            if lease.lease_id in self._leases:
                self._leases[lease.lease_id] = (lease, due_s)

    def _deliver(self) -> None:
        """Send queued settles in order until one is not taken."""
        while True:
            with self._lock:
                if not self._pending:
                    return
                settlement = self._pending.popleft()
            if not self._send(settlement, RETRY_TIMEOUT_S, wait_for_ready=True):
                with self._lock:
                    self._pending.appendleft(settlement)
                return

    def _send(self, settlement: Settlement, timeout_s: float, *, wait_for_ready: bool) -> bool:
        """Whether the broker has given its final answer to *settlement*."""
        request = settlement.request(time.monotonic())
        try:
            self._connection.stub.SettleLease(
                request,
                timeout=timeout_s,
                metadata=settlement.trace,
                wait_for_ready=wait_for_ready,
            )
        except grpc.RpcError as exc:
            if exc.code() in SETTLE_AGAIN:
                self._connection.refresh()
                return False
            log.warning("settle of lease %s not taken: %s", request.lease_id, exc.details())
        except ValueError:
            # grpc's word for a channel that was closed meanwhile.
            return False
        return True
