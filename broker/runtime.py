"""The allocator in real time: the clock, the waits, the wake-up and the probe.

Rule 1: only `now_ms` reads the clock; the time of day stays in calendar.py.
Rule 2: `_follow_up` follows every call into the allocator, with no await between. It
        delivers outcomes, starts a wanted probe and sets the next wake-up. The event
        loop is the allocator's lock.
Rule 3: no step is taken, and no grant handed on, unless this broker leads at that moment.
Rule 4: outside of the allocator, a step takes the same work however many requests
        wait, and a list as much as its page.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from broker.calendar import alike, present
from broker.core.allocator import Allocator
from broker.core.bucket import Envelope
from broker.core.budgets import Budget
from broker.core.elector import Elector
from broker.core.errors import BrokerError
from broker.core.leases import (
    BucketState,
    Denied,
    Granted,
    Lease,
    LeaseRequest,
    Renewal,
    Settled,
    Settlement,
)
from broker.core.snapshot import BucketView, WaitingView, changes, snapshot, waiting_view
from broker.journal.status import JournalState, JournalStatus
from broker.keepa_status import KeepaSync, KeepaSyncError, ProbeFailure
from broker.telemetry.eta_accuracy import Listener, Promises
from broker.telemetry.notices import Notices

if TYPE_CHECKING:
    # A broker without a database does without the driver's memory.
    from broker.journal.journal import Journal

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# A timer that fires a moment early must not spin.
WAKE_MS_MIN: Final = 1
# So soon a wall clock that was set is noticed.
CALENDAR_EVERY_S: Final = 5.0
# Minimum time between two corrections of the sampled ETAs; longer while very many wait.
ETA_EVERY_MS: Final = 1_000
# Goes on while the machine is suspended, where there is such a clock: a leader that slept
# must not take its time as leader for unspent.
CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

# A journal that is later than this holds up no settle: a leader that can't renew its term
# has conceded by then, so what is amiss concerns the journal alone.
JOURNAL_LATE_MS: Final = 10_000

Answer = Granted | Denied
T = TypeVar("T")


class BrokerStoppingError(Exception):
    """The broker is shutting down; its successor will answer."""

    def __init__(self) -> None:
        super().__init__("the broker is stopping: try again")


class NotLeadingError(Exception):
    """This broker is a standby; *leader* is the leader's address, empty if not known."""

    def __init__(self, leader: str) -> None:
        where = f"the leader is at {leader}" if leader else "no leader is known at present"
        super().__init__(f"this broker is a standby: {where}")
        self.leader = leader


@dataclass(slots=True, eq=False)
class Wait:
    """One lease id while RPCs wait for it; repeats of the request share it."""

    answer: asyncio.Future[Answer]
    calls: int = 0
    # A client has received the grant, so the broker may not revoke it.
    delivered: bool = False


@dataclass(slots=True)
class ProbeRecord:
    """Failed probes since the start, and the present trouble."""

    failures: dict[ProbeFailure, int] = field(default_factory=dict)
    # The last failure; None after an answer.
    trouble: KeepaSyncError | None = None


class BrokerRuntime:
    """The allocator of one account, and everything that happens to it over time.

    Use it from one event loop; nothing here is safe to call from another thread.

    Args:
        allocator: Decides; its epoch is that of this broker's time as leader.
        keepa: Asks Keepa for its count.
        elector: Decides whether this broker leads; without one it always does.
        journal: Takes the records of each step, if there is one.
    """

    def __init__(
        self,
        allocator: Allocator,
        keepa: KeepaSync,
        elector: Elector | None = None,
        journal: "Journal | None" = None,
    ) -> None:
        self.allocator = allocator
        self.journal = journal
        self._elector = elector
        self._conceded = elector is not None
        # Waits that ended with the time as leader; they keep their places.
        self._left: list[str] = []
        self.probes = ProbeRecord()
        # Why the changed budgets were refused; empty if they were not.
        self.budgets_trouble = ""
        self._budgets = {"file": allocator.config.budgets}
        self._weights: dict[str, float] = {}
        self.stopping = False
        # Set for good once Keepa has returned a balance.
        self.synced = asyncio.Event()
        self._keepa = keepa
        self._notices = Notices()
        self._waits: dict[str, Wait] = {}
        # Settles that are answered once the journal has them.
        self._recording: set[asyncio.Future[bool]] = set()
        self._probe: asyncio.Task[KeepaSyncError | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # When it fires, and when the allocator asks for a step, on the broker's clock.
        self._timer_ms = 0
        self._wake_ms: int | None = None
        self._watchers: set[asyncio.Event] = set()
        self._readiness_watchers: set[asyncio.Event] = set()
        self._was_ready = False
        # What the watchers last saw; a step that leaves it unchanged wakes none.
        self._shown: object = None
        self.eta_listeners: list[Listener] = []
        self._promises = Promises(self.eta_listeners)
        self._promised_ms = 0
        budgets = allocator.budgets
        budgets.set_periods(present(budgets.time_zones, self.now_ms()))

    @staticmethod
    def now_ms() -> int:
        """The broker's monotonic clock, in milliseconds."""
        return time.clock_gettime_ns(CLOCK) // 1_000_000

    def start(self) -> None:
        """Starts the allocator, which first asks for a probe of Keepa."""
        self._decide(self.allocator.advance)

    def stop(self) -> None:
        """Ends all waits with `BrokerStoppingError`; grants no more."""
        self.stopping = True
        self._end_waits(BrokerStoppingError())

    # --- leadership ----------------------------------------------------------

    def leads(self, now_ms: int) -> bool:
        """Whether this broker may grant at *now_ms*."""
        if self._elector is None:
            return True
        return self._elector.leading(now_ms) == self.allocator.ledger.epoch

    @property
    def leader(self) -> str:
        """Where another broker that leads is reached; empty if this one does."""
        return "" if self._elector is None else self._elector.leader_address

    @property
    def stands_by(self) -> bool:
        """Whether the broker is a standby that could take the lead."""
        elector = self._elector
        return elector is not None and elector.row is not None and not self.leads(self.now_ms())

    @property
    def ready(self) -> bool:
        """Whether the broker serves: it leads, and has read a balance from Keepa."""
        return not self.stopping and self.synced.is_set() and self.leads(self.now_ms())

    def lead(self, allocator: Allocator) -> None:
        """Begins a time as leader with *allocator*, the present one if it continues.

        Nothing happens if the time is over already.
        """
        now_ms = self.now_ms()
        fresh = allocator is not self.allocator
        self.allocator = allocator
        if self.stopping or not self.leads(now_ms):
            return
        self._conceded = False
        if fresh:
            self.synced.clear()
            self._promises = Promises(self.eta_listeners)
            self._apply_budgets()
        left, self._left = self._left, []
        self._decide(lambda now_ms: allocator.detach_all([] if fresh else left, now_ms))

    def concede(self) -> None:
        """Ends the time as leader: all waits end with `NotLeadingError`."""
        if self._conceded:
            return
        self._conceded = True
        for written in self._recording:
            if not written.done():
                written.set_result(False)
        self._left = [name for name, wait in self._waits.items() if not wait.delivered]
        self._end_waits(NotLeadingError(self.leader))

    def _end_waits(self, reason: Exception) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waits, self._waits = self._waits, {}
        for wait in waits.values():
            if not wait.answer.done():
                wait.answer.set_exception(reason)
                # Its callers may have gone.
                wait.answer.exception()
        self._wake_watchers()

    # --- requests ------------------------------------------------------------

    async def acquire(
        self, request: LeaseRequest, still_let_in: Callable[[], None] = lambda: None
    ) -> Answer:
        """Waits for a grant or a denial; a cancelled wait leaves no hold behind.

        *still_let_in* runs before the answer is returned: if it raises, the grant is
        revoked.

        Raises:
            BrokerError: the lease_id can't be used for this request.
            BrokerStoppingError: the broker is shutting down.
            NotLeadingError: another broker leads.
        """
        wait = self._join(request)
        wait.calls += 1
        try:
            # Most answers are there at once.
            future = wait.answer
            answer = future.result() if future.done() else await asyncio.shield(future)
            # The process may have been stopped since the decision.
            self._check_leads(self.now_ms())
            still_let_in()
            wait.delivered = True
            return answer
        finally:
            wait.calls -= 1
            self._leave(request.lease_id, wait)

    def renew(self, renewal: Renewal) -> tuple[Lease, int]:
        """Prolongs a lease; returns it and its time to live in milliseconds.

        Raises:
            BrokerError: there is no such open lease.
            NotLeadingError: another broker leads.
        """
        lease = self._decide(lambda now_ms: self.allocator.renew(renewal, now_ms))
        return lease, max(0, lease.expires_ms - self.now_ms())

    def settle(self, settlement: Settlement) -> Settled:
        """Ends a lease at the cost of its call.

        Raises:
            BrokerError: there never was such a lease.
            NotLeadingError: another broker leads.
        """
        return self._decide(lambda now_ms: self.allocator.settle(settlement, now_ms))

    async def recorded(self) -> None:
        """Waits until the journal has all that this broker has recorded so far.

        What has been answered then survives the broker: a client repeats a settle that was
        not answered, and the next leader books it. Returns at once without a
        journal, with one that is late, and for an only broker while Postgres is away.

        Raises:
            NotLeadingError: another broker leads, or will.
        """
        if self.journal is None:
            return
        status = self.journal.status
        alone = self._elector is not None and self._elector.sole
        late_ms = JOURNAL_LATE_MS - status.lag_ms
        if late_ms <= 0 or (alone and status.state is JournalState.BUFFERING):
            return
        written = self.journal.written()
        self._recording.add(written)
        try:
            await asyncio.wait({written}, timeout=late_ms / 1000)
        finally:
            self._recording.discard(written)
        if written.done() and not written.result():
            raise NotLeadingError(self.leader)

    async def sync(self) -> None:
        """Asks Keepa now, or shares the probe in flight.

        Raises:
            KeepaSyncError: Keepa's balance could not be read.
            NotLeadingError: another broker leads.
        """
        self._check_leads(self.now_ms())
        if self._probe is None:
            self._start_probe(self.now_ms())
        assert self._probe is not None
        trouble = await asyncio.shield(self._probe)
        self._check_leads(self.now_ms())
        if trouble is not None:
            raise trouble

    def pause(self, by: str = "") -> None:
        """Stops granting for the operator *by*; requests wait."""
        self._decide(lambda now_ms: self.allocator.pause(now_ms, by=by))

    def resume(self, by: str = "") -> None:
        """Resumes granting for the operator *by*."""
        self._decide(lambda now_ms: self.allocator.resume(now_ms, by=by))

    def set_budgets(self, budgets: Iterable[Budget]) -> None:
        """Replaces the budgets of the budgets file."""
        self.budgets_trouble = ""
        self._budgets["file"] = tuple(budgets)
        self._apply_budgets()

    def set_shares(
        self, budgets: Iterable[Budget], weights: Mapping[str, float] | None = None
    ) -> None:
        """Replaces the budgets and the weights of the identities file."""
        self._budgets["identities"] = tuple(budgets)
        self._weights = dict(weights or {})
        self._apply_budgets()

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets of both files."""
        return tuple(budget for group in self._budgets.values() for budget in group)

    def _apply_budgets(self) -> None:
        if self._conceded:
            # Applied when this broker leads.
            return
        self._decide(lambda now_ms: self.allocator.set_budgets(self.budgets, now_ms))
        self._decide(lambda now_ms: self.allocator.set_weights(self._weights, now_ms))
        self.renew_calendar()

    def renew_calendar(self) -> None:
        """Passes on when the days and months of the budgets' time zones end.

        Wall clocks are set, and a machine that sleeps stops the broker's clock but not the
        day: so this is repeated every few seconds.
        """
        budgets = self.allocator.budgets
        known = present(budgets.time_zones, self.now_ms())
        if not alike(known, budgets.periods):
            budgets.set_periods(known)
            self._advance()

    async def follow_calendar(self) -> None:
        """Renews the calendar until cancelled."""
        while True:
            await asyncio.sleep(CALENDAR_EVERY_S)
            self.renew_calendar()

    def budgets_failed(self, trouble: str) -> None:
        """Reports that the changed budgets can't be used, and why; the old ones stay."""
        self.budgets_trouble = trouble
        self._wake_watchers()

    def bucket(self) -> BucketView:
        """The bucket as of now; reading it changes nothing."""
        now_ms = self.now_ms()
        view = snapshot(self.allocator, now_ms)
        return view if self.leads(now_ms) else replace(view, state=BucketState.STANDBY)

    @property
    def journal_status(self) -> JournalStatus:
        """What the journal does; off without one."""
        return JournalStatus() if self.journal is None else self.journal.status

    def leases(self, most: int | None = None) -> list[Lease]:
        """The first *most* leases that hold tokens: open and lapsed by age, then settled ones.

        None stands for all.
        """
        return list(islice(self.allocator.ledger, most))

    def holder(self, lease_id: str) -> str | None:
        """The holder that has, waits for, or may still settle *lease_id*; None without one."""
        waiting = self.allocator.waitlist.find(lease_id)
        if waiting is not None:
            return waiting.request.holder
        return self.allocator.ledger.holder(lease_id)

    def waiting(self, most: int | None = None) -> list[WaitingView]:
        """The next *most* requests in the order of service; None stands for all."""
        return waiting_view(self.allocator, self.now_ms(), most)

    @contextmanager
    def watching(self, *, readiness: bool = False) -> Iterator[asyncio.Event]:
        """Yields an event that every change sets, or only those of `ready`.

        The watcher clears it before it looks.
        """
        changed = asyncio.Event()
        watchers = self._readiness_watchers if readiness else self._watchers
        watchers.add(changed)
        try:
            yield changed
        finally:
            watchers.discard(changed)

    def _decide(self, step: Callable[[int], T]) -> T:
        """Runs one step of the allocator, and acts on its outcome.

        Raises:
            NotLeadingError: another broker leads.
        """
        now_ms = self.now_ms()
        self._check_leads(now_ms)
        try:
            return step(now_ms)
        finally:
            self._follow_up()

    def _check_leads(self, now_ms: int) -> None:
        if not self.leads(now_ms):
            self.concede()
            raise NotLeadingError(self.leader)

    def _advance(self) -> None:
        with suppress(NotLeadingError):
            self._decide(self.allocator.advance)

    def _follow_up(self) -> None:
        made = self.allocator.take_records()
        if self.journal is not None and made:
            self.journal.put(self.allocator.ledger.epoch, made)
        for answer in self.allocator.take_outcomes():
            self._deliver(answer)
        self._notices.log(self.allocator.take_events())
        now_ms = self.now_ms()
        self._promises.keep_score(self.allocator, now_ms)
        waiting = len(self.allocator.waitlist)
        if waiting and now_ms - self._promised_ms >= max(ETA_EVERY_MS, waiting):
            self._promised_ms = now_ms
            self._promises.renew(self.allocator, now_ms)
        if self.stopping:
            return
        if self._probe is None and self.allocator.probe_wanted(now_ms):
            self._start_probe(now_ms)
        self._set_timer(now_ms)
        if not self.synced.is_set() and self.allocator.ledger.bucket.observation is not None:
            self.synced.set()
        self._show(now_ms)

    def _show(self, now_ms: int) -> None:
        """Wakes the watchers that would see something new."""
        if self._readiness_watchers and (ready := self.ready) != self._was_ready:
            self._was_ready = ready
            for changed in self._readiness_watchers:
                changed.set()
        # Where every watcher is about to look, there is nothing to compare: what is shown next
        # counts as new then.
        if all(changed.is_set() for changed in self._watchers):
            self._shown = None
            return
        shown = (changes(self.allocator, now_ms), self.budgets_trouble, self.probes.trouble)
        if shown != self._shown:
            self._shown = shown
            for changed in self._watchers:
                changed.set()

    def _deliver(self, answer: Answer) -> None:
        lease_id = answer.lease.lease_id if isinstance(answer, Granted) else answer.lease_id
        wait = self._waits.get(lease_id)
        if wait is not None and not wait.answer.done():
            wait.answer.set_result(answer)

    def _set_timer(self, now_ms: int) -> None:
        """Wakes at the time that the allocator asks for.

        It asks for a later one with nearly every step, when a new lease ends after the last
        one: a timer that is set fires early then, and is set anew without a step.
        """
        self._wake_ms = self.allocator.next_wake_ms(now_ms)
        if self._timer is not None:
            if self._wake_ms is not None and self._timer_ms <= self._wake_ms:
                return
            self._timer.cancel()
            self._timer = None
        if self._wake_ms is not None:
            self._timer_ms = max(self._wake_ms, now_ms + WAKE_MS_MIN)
            delay_s = (self._timer_ms - now_ms) / 1000
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now_ms = self.now_ms()
        if self._wake_ms is not None and now_ms < self._wake_ms:
            self._set_timer(now_ms)
        else:
            self._advance()

    def _wake_watchers(self) -> None:
        self._was_ready = self.ready
        for changed in self._watchers | self._readiness_watchers:
            changed.set()

    def _join(self, request: LeaseRequest) -> Wait:
        if self.stopping:
            raise BrokerStoppingError
        lease_id = request.lease_id
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        wait = self._waits.get(lease_id)
        if wait is None:
            held = self.allocator.ledger.lease(lease_id) is not None
            wait = self._waits[lease_id] = Wait(answer, delivered=held)
        elif wait.answer.done():
            # The previous calls are about to return this answer; the new call awaits its own.
            wait.answer = answer
        try:
            self._decide(lambda now_ms: self.allocator.acquire(request, now_ms))
        except (BrokerError, NotLeadingError):
            if wait.calls == 0 and self._waits.get(lease_id) is wait:
                del self._waits[lease_id]
            raise
        return wait

    def _leave(self, lease_id: str, wait: Wait) -> None:
        """Keeps the request's place for a while once its last call has ended unanswered."""
        if wait.calls or self._waits.get(lease_id) is not wait:
            return
        del self._waits[lease_id]
        if not wait.delivered:
            with suppress(NotLeadingError):
                self._decide(lambda now_ms: self.allocator.detach(lease_id, now_ms))

    def _start_probe(self, now_ms: int) -> None:
        self.allocator.probe_started(now_ms)
        self._probe = asyncio.create_task(self._ask_keepa(now_ms), name="probe")

    async def _ask_keepa(self, requested_ms: int) -> KeepaSyncError | None:
        asking = self.allocator
        try:
            envelope = await self._keepa.read()
        except KeepaSyncError as exc:
            return self._probe_failed(exc, asking)
        except Exception:
            log.exception("the probe of Keepa failed unexpectedly")
            return self._probe_failed(
                KeepaSyncError(ProbeFailure.BAD_REPLY, "Keepa's reply can't be handled"), asking
            )
        self._probe_answered(envelope, requested_ms, asking)
        return None

    def _probe_answered(self, envelope: Envelope, requested_ms: int, asking: Allocator) -> None:
        self._probe = None
        if self.probes.trouble is not None or not self.synced.is_set():
            log.info("Keepa answers", tokens_left=envelope.tokens_left)
        self.probes.trouble = None
        if self._is_of_this_term(asking):
            self._decide(
                lambda now_ms: self.allocator.probe_answered(envelope, requested_ms, now_ms)
            )

    def _probe_failed(self, exc: KeepaSyncError, asking: Allocator) -> KeepaSyncError:
        """Counts the failure; logs a lasting one once, not at every retry."""
        self._probe = None
        record = self.probes
        record.failures[exc.failure] = record.failures.get(exc.failure, 0) + 1
        if record.trouble is None or str(record.trouble) != str(exc):
            write = log.error if exc.failure.is_permanent else log.warning
            write("cannot read Keepa's balance; retrying", failure=exc.failure, reason=str(exc))
        record.trouble = exc
        if self._is_of_this_term(asking):
            self._decide(self.allocator.probe_failed)
        return exc

    def _is_of_this_term(self, asking: Allocator) -> bool:
        """Whether the answer that *asking* wanted still serves.

        Another broker may have led since, with calls that the answer lacks.
        """
        now_ms = self.now_ms()
        if asking is self.allocator and self.leads(now_ms):
            return True
        asking.probing.failed(now_ms)
        self._advance()
        return False
