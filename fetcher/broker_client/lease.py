"""A lease: the right to make one call, and the duty to report its cost."""

import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from opentelemetry.trace import Span, SpanKind

from fetcher.broker_client.errors import ForkedError, LeaseLostError
from fetcher.broker_client.tracing import spans
from fetcher.broker_client.wire import Settlement, Terms
from fetcher.replies.envelope import Envelope
from protos.tokenbroker.v1 import token_broker_pb2 as pb

# A call that starts later might outlive its lease before the next heartbeat.
# A quarter of the lease for short ones, as in tests.
CALL_MARGIN_S = 2.0


class HeldLease:
    """Tokens held for one call; the base of both clients' leases, which differ in settling.

    The first settle counts and later ones do nothing: an exception after the settle
    can't report the call a second time. A child process can't settle the lease; the
    process that acquired it does.
    """

    def __init__(self, terms: Terms, *, ttl_s: float, waited_s: float) -> None:
        self._terms = terms
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._ttl_s = ttl_s
        self._ends_at_s = time.monotonic() + ttl_s
        self._calling_since_s: float | None = None
        self._settled = False
        self.waited_s = waited_s

    @property
    def lease_id(self) -> str:
        """The client's UUID of the lease."""
        return self._terms.lease_id

    @property
    def units(self) -> int:
        """Units granted; may be fewer than wanted when min_units was set."""
        return self._terms.units

    @property
    def tokens(self) -> int:
        """Tokens held."""
        return self._terms.tokens

    @property
    def terms(self) -> Terms:
        """What the broker granted, with its newest epoch."""
        return self._terms

    @property
    def ttl_s(self) -> float:
        """Length of one renewal in seconds."""
        return self._ttl_s

    @property
    def settled(self) -> bool:
        """Whether the outcome has been reported."""
        return self._settled

    @property
    def time_left(self) -> float:
        """Seconds until the lease lapses unless renewed; never negative."""
        return max(0.0, self._ends_at_s - time.monotonic())

    def calling(self) -> None:
        """Marks the start of the call; call it just before sending.

        Raises:
            LeaseLostError: The lease has lapsed or is about to.
            ForkedError: Another process acquired it.
        """
        if os.getpid() != self._process:
            raise ForkedError
        if self._settled or self.time_left < min(CALL_MARGIN_S, self._ttl_s / 4):
            raise LeaseLostError(f"lease {self.lease_id} ends too soon for a call")
        self._calling_since_s = time.monotonic()

    def renewed(self, *, epoch: int, ttl_s: float, asked_at_s: float) -> None:
        """Applies a heartbeat's answer; *ttl_s* counts from *asked_at_s*."""
        self._terms = replace(self._terms, epoch=epoch)
        self._ttl_s = ttl_s
        self._ends_at_s = asked_at_s + ttl_s

    def lost(self) -> None:
        """Lets no call start any more: the broker has dropped the lease."""
        self._ends_at_s = 0.0

    def _mark_settled(self) -> bool:
        """Returns whether the caller may settle: once, in the process that holds the lease."""
        if os.getpid() != self._process:
            return False
        with self._lock:
            first, self._settled = not self._settled, True
        return first

    def _settlement(
        self, outcome: pb.Outcome.ValueType, envelope: Envelope | None, units: int | None
    ) -> Settlement:
        """Returns the settlement of a lease that ends now."""
        now_s = time.monotonic()
        called = self._calling_since_s
        return Settlement(
            terms=self._terms if units is None else replace(self._terms, units=units),
            outcome=outcome,
            ended_at_s=now_s,
            envelope=envelope,
            call_duration_s=None if called is None else now_s - called,
        )


def settle_span(lease: HeldLease, outcome: pb.Outcome.ValueType) -> AbstractContextManager[Span]:
    """Opens the span of a settle; the settlement carries it to the broker."""
    about = {"lease": lease.lease_id, "outcome": pb.Outcome.Name(outcome)}
    return spans.begin("settle", kind=SpanKind.CLIENT, attributes=about)


class Lease(HeldLease):
    """A lease of `BrokerClient`."""

    def __init__(
        self,
        terms: Terms,
        *,
        ttl_s: float,
        waited_s: float,
        settle: Callable[["Lease", Settlement], None],
    ) -> None:
        super().__init__(terms, ttl_s=ttl_s, waited_s=waited_s)
        self._settle = settle

    def settle_replied(self, envelope: Envelope | None, *, units: int | None = None) -> None:
        """Reports an answer with its envelope, whatever the HTTP status.

        A reply without an envelope counts as an unknown cost. *units* is the number that
        the call asked for, where that is fewer than granted.
        """
        outcome = pb.OUTCOME_REPLIED if envelope is not None else pb.OUTCOME_UNKNOWN
        self._end(outcome, envelope, units)

    def settle_refused(self, envelope: Envelope | None) -> None:
        """Reports an HTTP 429: nothing was spent."""
        self._end(pb.OUTCOME_REFUSED, envelope)

    def settle_not_sent(self) -> None:
        """Gives the tokens back: no call was made."""
        self._end(pb.OUTCOME_NOT_SENT)

    def settle_unknown(self) -> None:
        """Reports a call without a usable answer: its cost is unknown."""
        self._end(pb.OUTCOME_UNKNOWN)

    def settle_if_open(self) -> None:
        """Settles the lease if it is still open: unknown if the call had begun, else not sent."""
        if self._calling_since_s is None:
            self.settle_not_sent()
        else:
            self.settle_unknown()

    def _end(
        self,
        outcome: pb.Outcome.ValueType,
        envelope: Envelope | None = None,
        units: int | None = None,
    ) -> None:
        if self._mark_settled():
            with settle_span(self, outcome):
                self._settle(self, self._settlement(outcome, envelope, units))


class AsyncLease(HeldLease):
    """A lease of `AsyncBrokerClient`."""

    def __init__(
        self,
        terms: Terms,
        *,
        ttl_s: float,
        waited_s: float,
        settle: Callable[["AsyncLease", Settlement], Awaitable[None]],
    ) -> None:
        super().__init__(terms, ttl_s=ttl_s, waited_s=waited_s)
        self._settle = settle

    async def settle_replied(self, envelope: Envelope | None, *, units: int | None = None) -> None:
        """Reports an answer with its envelope, whatever the HTTP status.

        A reply without an envelope counts as an unknown cost. *units* is the number that
        the call asked for, where that is fewer than granted.
        """
        outcome = pb.OUTCOME_REPLIED if envelope is not None else pb.OUTCOME_UNKNOWN
        await self._end(outcome, envelope, units)

    async def settle_refused(self, envelope: Envelope | None) -> None:
        """Reports an HTTP 429: nothing was spent."""
        await self._end(pb.OUTCOME_REFUSED, envelope)

    async def settle_not_sent(self) -> None:
        """Gives the tokens back: no call was made."""
        await self._end(pb.OUTCOME_NOT_SENT)

    async def settle_unknown(self) -> None:
        """Reports a call without a usable answer: its cost is unknown."""
        await self._end(pb.OUTCOME_UNKNOWN)

    async def settle_if_open(self) -> None:
        """Settles the lease if it is still open: unknown if the call had begun, else not sent."""
        if self._calling_since_s is None:
            await self.settle_not_sent()
        else:
            await self.settle_unknown()

    async def _end(
        self,
        outcome: pb.Outcome.ValueType,
        envelope: Envelope | None = None,
        units: int | None = None,
    ) -> None:
        if self._mark_settled():
            with settle_span(self, outcome):
                await self._settle(self, self._settlement(outcome, envelope, units))
