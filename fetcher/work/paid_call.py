"""One paid call to Keepa: lease, claim, call, settle, store. The same for pages and products.

Law:
1. While it waits for tokens, a process holds no claim, lock, connection or transaction. It
   looks for work, takes a lease for it, and claims only then. Where nothing is left to
   claim, the lease is settled as not sent.
2. The lease is settled the moment the call's outcome is known: before the reply is parsed,
   and before anything is written.
3. A reply was paid for: it is kept and written again and again while Postgres is away.
4. A reply is written where it is newer than what is stored, even if its claim was lost.
   The new holder does what follows from the claim.
5. A claim ends in one way: its work is stored, or the claim is released (the work is not at
   fault), failed (tried again, later each time) or buried (a person must look at it).
6. An error that is not expected here fails the claim before it goes on. Else heartbeats
   would keep the work from others for as long as the process lives.
7. After a stop no call begins. One that has no answer in time is given back; a reply that
   has come is written, and the process waits for that.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from fetcher.broker_client import Lease, LeaseLostError, Priority
from fetcher.errors import (
    DatabaseRefusedError,
    FetcherError,
    KeepaError,
    KeepaResponseError,
    KeepaThrottledError,
    KeepaUnavailableError,
)
from fetcher.keepa import Keepa, Reply
from fetcher.postgres.claims import Claim, WorkTable, fail_claims, release_claims
from fetcher.postgres.database import Connection
from fetcher.replies.record import MalformedReplyError
from fetcher.tracing import tracer
from fetcher.work.shared import StoppedError, Workplace
from fetcher.work.threads import STEP_AT_MOST_S
from fetcher.work.turns import Turn

log = structlog.get_logger(__name__)

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0


class KeyRefusedError(FetcherError):
    """Keepa refuses the key itself: nothing will work until a person acts."""

    def __init__(self, exc: KeepaResponseError) -> None:
        super().__init__(
            f"Keepa refuses the key ({exc}): check KEEPA_API_KEY and the subscription"
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a reply's claims: *lost* to others, or *unanswered* by the reply."""

    lost: Sequence[Claim] = ()
    unanswered: Sequence[Claim] = ()


class Job(ABC):
    """Claimed work that one call asks for."""

    # What the claims are, for logs.
    noun: ClassVar[str]
    table: ClassVar[WorkTable]

    @property
    @abstractmethod
    def claims(self) -> Sequence[Claim]:
        """The claims, at least one."""

    @property
    @abstractmethod
    def about(self) -> Mapping[str, str | int]:
        """Attributes that name the work in logs and spans."""

    @property
    @abstractmethod
    def doing(self) -> str:
        """The work in words, for people."""

    @abstractmethod
    def without(self, claims: Sequence[Claim]) -> "Job | None":
        """Returns the job without *claims*; None when nothing is left."""

    @abstractmethod
    def call(self) -> Reply:
        """Makes the call to Keepa. Raises KeepaError."""

    @abstractmethod
    def store(self, reply: Reply, workplace: Workplace) -> Stored:
        """Parses *reply* and persists all that follows from it, in one transaction.

        Raises:
            MalformedReplyError: The reply is not what was asked for.
        """

    @abstractmethod
    def bury(self, connection: Connection, claims: Sequence[Claim], error: str) -> Sequence[Claim]:
        """Sets *claims* aside; returns those that were lost."""


@dataclass(frozen=True, slots=True)
class Want:
    """Work that was found but not claimed: what to lease for it, and how to claim it.

    *claim* takes the units that were granted; it returns None when nothing is left.
    """

    span: str
    operation: str
    units: int
    min_units: int
    tokens_per_unit: float
    priority: Priority
    words: str
    claim: Callable[[Connection, int], Job | None]


class PaidCalls:
    """Makes the paid calls of one thread, one after the other.

    Args:
        workplace: What the threads of the process share.
        keepa: The thread's own client.
        turn: The turn of its kind; ends once work is claimed.
        outage: The back-off of its kind.
    """

    def __init__(self, workplace: Workplace, keepa: Keepa, turn: Turn, outage: "Outage") -> None:
        self.keepa = keepa
        self._workplace = workplace
        self._turn = turn
        self._outage = outage
        self._in_hand: tuple[Job, Lease] | None = None
        # Whether Keepa has answered the call in hand.
        self._is_answered = False

    def make(self, want: Want) -> bool:
        """Leases, claims and calls; returns False if nothing was left to claim.

        Raises:
            BrokerClientError: No lease.
            DatabaseAwayError: No claim; the lease was given back.
            KeyRefusedError: A person must act.
            StoppedError: The process ends while Postgres is away.
        """
        workplace = self._workplace
        # The broker may be away, or the bucket empty, for hours.
        workplace.doing(f"waiting for tokens for {want.words}", at_most_s=None)
        with (
            tracer.start_as_current_span(want.span),
            workplace.broker.lease(
                want.operation,
                units=want.units,
                min_units=want.min_units,
                tokens_per_unit=want.tokens_per_unit,
                priority=want.priority,
            ) as lease,
        ):
            workplace.doing(f"claiming {want.words}", at_most_s=STEP_AT_MOST_S)
            # One try only: tokens must not stay held while Postgres is away.
            job = workplace.attempt(lambda connection: want.claim(connection, lease.units))
            if job is None:
                return False
            self._turn.end()
            trace.get_current_span().set_attributes(job.about)
            self._is_answered = False
            self._in_hand = (job, lease)
            try:
                if workplace.stop.is_set():
                    # The tokens were granted just before: the lease ends as not sent.
                    self._release(job)
                else:
                    self._work(job, lease)
            except (StoppedError, KeyRefusedError):
                raise
            except Exception as exc:
                self._fail(job, job.claims, f"unexpected {type(exc).__name__}")
                raise
            finally:
                self._in_hand = None
        return True

    @property
    def claims(self) -> Sequence[Claim]:
        """The claims of the call that is under way."""
        held = self._in_hand
        return () if held is None else held[0].claims

    @property
    def is_writing(self) -> bool:
        """Whether a reply that was paid for is not written yet."""
        return self._in_hand is not None and self._is_answered

    def give_back(self) -> None:
        """Releases the job of a call without an answer so far; its cost is unknown."""
        if (held := self._in_hand) is not None and not self._is_answered:
            job, lease = held
            lease.settle_if_open()
            self._release(job)

    def _work(self, job: Job, lease: Lease) -> None:
        attempts_max = self._workplace.limits.attempts_max
        worn_out = [claim for claim in job.claims if claim.attempts >= attempts_max]
        if worn_out:
            self._bury(job, worn_out, "its holders died again and again")
            if (rest := job.without(worn_out)) is None:
                return
            job = rest
        try:
            self._workplace.doing(job.doing, at_most_s=self.keepa.longest_call_s)
            stored = self._call_and_store(job, lease)
        except (LeaseLostError, KeepaThrottledError) as exc:
            log.info("%s put back", job.noun, **job.about, reason=str(exc))
            self._release(job)
        except KeepaUnavailableError as exc:
            if exc.sent:
                self._fail(job, job.claims, str(exc))
            else:
                self._release(job)
            self._outage.pause(exc)
        except KeepaResponseError as exc:
            self._refused(job, exc)
        except (MalformedReplyError, DatabaseRefusedError) as exc:
            self._fail(job, job.claims, str(exc))
        else:
            if stored.unanswered:
                self._fail(job, stored.unanswered, "the reply left it out")

    def _call_and_store(self, job: Job, lease: Lease) -> Stored:
        def call() -> Reply:
            reply = job.call()
            # Before the settle, which may take seconds: a stop must not give the job back.
            self._is_answered = True
            return reply

        try:
            reply = leased_call(lease, call, units=len(job.claims))
            self._outage.over()
            self._workplace.doing(f"writing what came of {job.doing}", at_most_s=STEP_AT_MOST_S)
            stored = job.store(reply, self._workplace)
        except (KeepaError, MalformedReplyError) as exc:
            self._workplace.keepa_errors.note(exc)
            raise
        if stored.lost:
            log.warning(
                "%s taken over meanwhile: only the reply's data kept",
                job.noun,
                **job.about,
                lost=len(stored.lost),
            )
        return stored

    def _refused(self, job: Job, exc: KeepaResponseError) -> None:
        if exc.concerns_key:
            self._release(job)
            raise KeyRefusedError(exc) from None
        if len(job.claims) == 1:
            # The same request would be refused again.
            self._bury(job, job.claims, str(exc))
        else:
            # It is unknown which of them Keepa refuses.
            self._fail(job, job.claims, str(exc))

    def _fail(self, job: Job, claims: Sequence[Claim], error: str) -> None:
        limits = self._workplace.limits
        last_try = [claim for claim in claims if claim.attempts + 1 >= limits.attempts_max]
        again = [claim for claim in claims if claim.attempts + 1 < limits.attempts_max]
        if last_try:
            self._bury(job, last_try, error)
        if again:
            delays_s = [limits.retry_delay(claim.attempts) for claim in again]
            log.warning("%s failed", job.noun, **job.about, error=error, retry_in_s=max(delays_s))
            change = partial(
                fail_claims, table=job.table, claims=again, error=error, delays_s=delays_s
            )
            self._change(job, change)

    def _bury(self, job: Job, claims: Sequence[Claim], error: str) -> None:
        log.error("%s put aside", job.noun, **job.about, error=error, count=len(claims))
        self._change(job, partial(job.bury, claims=claims, error=error))

    def _release(self, job: Job) -> None:
        self._change(job, partial(release_claims, table=job.table, claims=job.claims))

    def _change(self, job: Job, change: Callable[[Connection], Sequence[Claim]]) -> None:
        """Persists the end of claims; the new holders end those that were lost."""
        if lost := self._workplace.persist(change):
            log.info("claim lost", **job.about, lost=len(lost))


def odd(oddities: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Returns the oddities of a reply for its log line; nothing as a rule."""
    return {"oddities": dict(oddities)} if oddities else {}


def leased_call(lease: Lease, call: Callable[[], Reply], *, units: int | None = None) -> Reply:
    """Makes *call* and settles *lease* the moment its outcome is known.

    *units* is the number that the call asks for, where that is fewer than granted.

    Raises:
        LeaseLostError: Too little of the lease is left; nothing was sent.
        KeepaError: As the call raised it, settled.
    """
    lease.calling()
    try:
        with tracer.start_as_current_span("call", kind=SpanKind.CLIENT) as span:
            reply = call()
            if reply.envelope is not None:
                span.set_attribute("tokens_consumed", reply.envelope.tokens_consumed)
                span.set_attribute("tokens_left", reply.envelope.tokens_left)
    except KeepaThrottledError as exc:
        lease.settle_refused(exc.envelope)
        raise
    except KeepaUnavailableError as exc:
        if exc.sent:
            lease.settle_replied(exc.envelope, units=units)
        else:
            lease.settle_not_sent()
        raise
    except KeepaResponseError as exc:
        lease.settle_replied(exc.envelope, units=units)
        raise
    lease.settle_replied(reply.envelope, units=units)
    return reply


class Outage:
    """Backs off threads while Keepa is unreachable; logs the outage once."""

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._failures = 0

    def over(self) -> None:
        """Starts afresh: Keepa has answered."""
        if self._failures > 1:
            log.info("Keepa answers again")
        self._failures = 0

    def pause(self, exc: KeepaUnavailableError) -> None:
        """Waits, longer each time."""
        if self._failures == 0:
            log.warning("Keepa is not available: trying again", problem=str(exc))
        pause_s = min(FIRST_PAUSE_S * 2 ** min(self._failures, 10), LONGEST_PAUSE_S)
        self._failures += 1
        self._workplace.doing("waiting for Keepa", at_most_s=None)
        self._workplace.rest(pause_s)
