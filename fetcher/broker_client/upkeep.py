"""The background thread: renews open leases, repeats settles until the broker takes them."""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

import grpc

from fetcher.broker_client.connection import Connection
from fetcher.broker_client.duties import (
    FIRST_SETTLE_TIMEOUT_S,
    RETRY_PAUSE_S,
    RETRY_TIMEOUT_S,
    Duties,
)
from fetcher.broker_client.lease import HeldLease
from fetcher.broker_client.wire import Settlement, renewal
from protos.tokenbroker.v1 import token_broker_pb2 as pb

log = logging.getLogger(__name__)


class Upkeep:
    """Heartbeats and pending settles of one client."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._duties = Duties()
        self._wake = threading.Event()
        self._closing = False
        self._flush_until_s = 0.0
        self._logged: set[type[Exception]] = set()
        self._thread = threading.Thread(target=self._run, name="broker-upkeep", daemon=True)
        self._thread.start()

    def keep(self, lease: HeldLease) -> None:
        """Renews *lease* every third of its time until it is settled."""
        if self._duties.keep(lease):
            self._wake.set()

    def renew_all_now(self) -> None:
        """Makes every lease due: the connection was lost, the broker may be a new one."""
        self._duties.renew_all()
        self._wake.set()

    def refresh(self, turn: int, exc: grpc.RpcError) -> None:
        """Follows the leader after a call in *turn* of the connection that failed with *exc*.

        A new leader has no lease yet: they all are renewed soon.
        """
        if self._connection.refresh(turn, exc):
            self._duties.renew_all(time.monotonic() + RETRY_PAUSE_S)
            self._wake.set()

    def settle(self, lease: HeldLease, settlement: Settlement) -> None:
        """Ends *lease*; returns when the broker has the settlement or it is queued."""
        self._duties.ended(lease)
        try:
            is_over = self._send(settlement, FIRST_SETTLE_TIMEOUT_S, wait_for_ready=False)
        except Exception:
            # The caller holds a reply that was paid for: it must go on.
            log.exception("unexpected error in a settle: trying again")
            is_over = False
        if not is_over:
            self.settle_later(settlement)

    def settle_later(self, settlement: Settlement) -> None:
        """Queues *settlement* without a call to the broker."""
        self._duties.settle_later(settlement)
        self._wake.set()

    def close(self, timeout_s: float) -> int:
        """Delivers queued settles within *timeout_s* and stops; returns how many are left."""
        self._flush_until_s = time.monotonic() + timeout_s
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s + RETRY_TIMEOUT_S)
        return self._duties.settles_left

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._duties.pause_s())
            self._wake.clear()
            self._survive(self._renew_due)
            self._survive(self._deliver)
        while self._duties.settles_left and time.monotonic() < self._flush_until_s:
            self._survive(self._deliver)

    def _survive(self, work: Callable[[], None]) -> None:
        """Runs *work*; logs an unexpected error once, and does not end the thread for it.

        Without upkeep, leases lapse under their calls, and their costs are never reported.
        """
        try:
            work()
        except Exception as exc:
            if type(exc) not in self._logged:
                self._logged.add(type(exc))
                log.exception("unexpected error in the upkeep of leases: trying again")
            time.sleep(RETRY_PAUSE_S)

    def _renew_due(self) -> None:
        now_s, turn = time.monotonic(), self._connection.turn
        try:
            # Sent together: a renewal that hangs must not let the other leases lapse.
            calls = [
                (
                    lease,
                    self._connection.stub.RenewLease.future(
                        renewal(lease.terms, lease.ttl_s),
                        timeout=RETRY_TIMEOUT_S,
                        wait_for_ready=True,
                    ),
                )
                for lease in self._duties.due(now_s)
            ]
        except ValueError:
            # gRPC's error for a channel that was closed meanwhile: the client has gone.
            return
        for lease, call in calls:
            self._survive(partial(self._finish_renewal, lease, call, turn, asked_at_s=now_s))

    def _finish_renewal(
        self,
        lease: HeldLease,
        call: "grpc.CallFuture[pb.RenewLeaseResponse]",
        turn: int,
        *,
        asked_at_s: float,
    ) -> None:
        try:
            self._duties.renewed(lease, call.result(), asked_at_s=asked_at_s)
        except grpc.RpcError as exc:
            self._duties.renewal_failed(lease, exc)
            self.refresh(turn, exc)

    def _deliver(self) -> None:
        """Sends queued settles in order until the broker does not take one."""
        while (settlement := self._duties.next_settlement()) is not None:
            try:
                is_over = self._send(settlement, RETRY_TIMEOUT_S, wait_for_ready=True)
            except Exception:
                # Kept behind the others, which it must not block.
                self._duties.settle_later(settlement)
                raise
            if not is_over:
                self._duties.settle_later(settlement, first=True)
                return

    def _send(self, settlement: Settlement, timeout_s: float, *, wait_for_ready: bool) -> bool:
        """Returns whether the broker has given its final answer to *settlement*."""
        turn = self._connection.turn
        try:
            self._connection.stub.SettleLease(
                settlement.request(time.monotonic()),
                timeout=timeout_s,
                metadata=settlement.trace,
                wait_for_ready=wait_for_ready,
            )
        except grpc.RpcError as exc:
            self.refresh(turn, exc)
            return self._duties.settle_is_over(settlement, exc)
        except ValueError:
            # gRPC's error for a channel that was closed meanwhile.
            return False
        return self._duties.settle_is_over(settlement, None)
