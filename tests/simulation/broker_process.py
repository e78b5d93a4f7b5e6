"""The broker's edge, imitated thinly: one process with the real core inside.

Like the real one it follows every step up without a pause: outcomes are
delivered, a wanted probe starts, the next wake-up is set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Final

from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.errors import BrokerError
from broker.core.leases import Granted, LeaseRequest, Renewal, Settlement
from tests.simulation.audit import Audit
from tests.simulation.call import Call
from tests.simulation.keepa_service import KeepaService, WitnessedEnvelope
from tests.simulation.network import Network, Rpc
from tests.simulation.timeline import Timeline

TTL_MS: Final = 15_000


@dataclass(frozen=True, slots=True)
class Grant:
    """The worker's view of its lease."""

    epoch: int
    units: int
    tokens: int
    ttl_ms: int


@dataclass(slots=True)
class BrokerClock:
    """A monotonic clock that runs a little wrong and may have stood still."""

    offset_ms: int
    ppm: int = 0

    def read(self, true_ms: int) -> int:
        """What it shows at *true_ms*."""
        return true_ms + true_ms * self.ppm // 1_000_000 + self.offset_ms

    def when(self, clock_ms: int) -> int:
        """The first true moment at which it shows *clock_ms* or more."""
        true_ms = ceil((clock_ms - self.offset_ms) / (1 + self.ppm / 1_000_000)) - 2
        while self.read(true_ms) < clock_ms:
            true_ms += 1
        return true_ms


@dataclass(slots=True, eq=False)
class Wait:
    """RPCs that wait for one lease."""

    call: Call
    rpcs: list[Rpc] = field(default_factory=list)


class BrokerProcess:
    """One life of the broker, from its start to its crash."""

    def __init__(
        self,
        config: AllocatorConfig,
        timeline: Timeline,
        network: Network,
        keepa: KeepaService,
        audit: Audit,
        clock: BrokerClock,
        *,
        epoch: int,
    ) -> None:
        self._timeline, self._network, self._keepa = timeline, network, keepa
        self._audit, self.clock = audit, clock
        self.allocator = Allocator(config, epoch=epoch, started_ms=self.now_ms())
        self.alive = True
        # The process stands still until then, and its mail piles up.
        self.stopped_until_ms = 0
        self._mail: list[Callable[[], None]] = []
        self._unread: list[Rpc] = []
        self._waits: dict[str, Wait] = {}
        self._probe_since_ms: int | None = None
        self.probe_failing = False
        self._wake_ms: int | None = None
        self._timer_ms: int | None = None
        audit.started(self)

    def start(self) -> None:
        """Begins: its first step is a status call."""
        self._step(self.allocator.advance)

    def now_ms(self) -> int:
        """Its own clock."""
        return self.clock.read(self._timeline.now_ms)

    @property
    def standing_still(self) -> bool:
        """Whether the process is suspended."""
        return self._timeline.now_ms < self.stopped_until_ms

    def keepa_unreachable(self) -> bool:
        """Whether Keepa has failed to answer, or takes too long to."""
        since_ms = self._probe_since_ms
        return self.probe_failing or (since_ms is not None and self.now_ms() - since_ms >= 2_000)

    def crash(self) -> None:
        """Everything it knew is gone."""
        self.alive = False
        for wait in self._waits.values():
            for rpc in wait.rpcs:
                self._network.reset(rpc)
        for rpc in self._unread:
            self._network.reset(rpc)

    def suspend(self, for_ms: int) -> None:
        """Stand still; what arrives waits."""
        self.stopped_until_ms = self._timeline.now_ms + for_ms
        self._timeline.after(for_ms, self._go_on)

    def receive(self, rpc: Rpc) -> None:
        """A request is in."""
        if self.standing_still:
            self._unread.append(rpc)
        self._when_awake(partial(rpc.serve, self, rpc))

    def left(self, rpc: Rpc) -> None:
        """The client of a waiting RPC has gone."""
        self._when_awake(partial(self._left, rpc))

    def operate(self, step: Callable[[Allocator, int], None]) -> None:
        """An operator does something."""
        self._when_awake(partial(self._step, partial(step, self.allocator)))

    @property
    def probing(self) -> bool:
        """Whether an answer of Keepa is awaited."""
        return self._probe_since_ms is not None

    @property
    def probe_hangs(self) -> bool:
        """Whether it awaits an answer that Keepa will not give."""
        return self.probing and self._keepa.lets_probe_hang

    def sync(self) -> None:
        """An operator asks Keepa, or shares the probe that is on its way."""
        if not self.probing:
            self._start_probe(self.now_ms())

    # --- what RPCs do --------------------------------------------------------

    def acquire(self, rpc: Rpc) -> None:
        """AcquireLease: the answer comes when it comes."""
        call, now_ms = rpc.call, self.now_ms()
        request = LeaseRequest(
            call.lease_id,
            call.holder,
            call.demand.operation,
            call.units,
            call.min_units,
            call.demand.prior,
            call.demand.priority,
            TTL_MS,
            None if call.max_wait_ms is None else now_ms + call.max_wait_ms,
        )
        wait = self._waits.get(call.lease_id)
        if wait is None:
            wait = self._waits[call.lease_id] = Wait(call)
        wait.rpcs.append(rpc)
        self._audit.arrives(self, call, request)
        try:
            self.allocator.acquire(request, now_ms)
        except BrokerError as exc:
            wait.rpcs.remove(rpc)
            if not wait.rpcs:
                del self._waits[call.lease_id]
            self._audit.turned_away(call)
            self._network.answer(rpc, exc)
        self._follow_up(now_ms)

    def settle(self, rpc: Rpc, settlement: Settlement) -> None:
        """SettleLease."""
        now_ms = self.now_ms()
        try:
            self.allocator.settle(settlement, now_ms)
        except BrokerError as exc:
            self._audit.settle_failed(rpc.call, exc)
        else:
            self._audit.settled(self, rpc.call, settlement)
            self._network.answer(rpc, True)
        self._follow_up(now_ms)

    def renew(self, rpc: Rpc, renewal: Renewal) -> None:
        """RenewLease."""
        now_ms = self.now_ms()
        try:
            lease = self.allocator.renew(renewal, now_ms)
        except BrokerError as exc:
            self._network.answer(rpc, exc)
        else:
            self._audit.renewed(rpc.call, lease)
            self._network.answer(rpc, lease.epoch)
        self._follow_up(now_ms)

    def _left(self, rpc: Rpc) -> None:
        wait = self._waits.get(rpc.call.lease_id)
        if wait is None or rpc not in wait.rpcs:
            return
        wait.rpcs.remove(rpc)
        if not wait.rpcs:
            del self._waits[rpc.call.lease_id]
            self._audit.cancelled(rpc.call)
            now_ms = self.now_ms()
            self.allocator.detach(rpc.call.lease_id, now_ms)
            self._follow_up(now_ms)

    # --- running ---------------------------------------------------------------

    def _when_awake(self, action: Callable[[], None]) -> None:
        if not self.alive:
            return
        if self.standing_still or self._mail:
            self._mail.append(action)
        else:
            action()

    def _go_on(self) -> None:
        """Work off the mail in the order it came."""
        if self.standing_still:
            return
        mail, self._mail = self._mail, []
        self._unread.clear()
        for action in mail:
            if self.alive:
                action()
        self._when_awake(partial(self._step, self.allocator.advance))
        # A reply that lay in the mail places the next tick too late, by as much.
        tick_ms = self.allocator.ledger.bucket.next_tick_ms(self.now_ms())
        self._audit.liveness.blind_until(self.clock.when(tick_ms))

    def _step(self, step: Callable[[int], object]) -> None:
        now_ms = self.now_ms()
        step(now_ms)
        self._follow_up(now_ms)

    def _follow_up(self, now_ms: int) -> None:
        outcomes = self.allocator.take_outcomes()
        for outcome in outcomes:
            known = outcome.lease if isinstance(outcome, Granted) else outcome
            lease_id = known.lease_id
            wait = self._waits.pop(lease_id, None)
            self._audit.decided(self, lease_id, outcome, wait.call if wait else None)
            if wait is None:
                continue
            answer: object = outcome
            if isinstance(outcome, Granted):
                lease = outcome.lease
                ttl_ms = lease.expires_ms - now_ms
                answer = Grant(lease.epoch, lease.units, lease.tokens, ttl_ms)
            for rpc in wait.rpcs:
                self._network.answer(rpc, answer)
        if self.allocator.probe_wanted(now_ms):
            self._start_probe(now_ms)
        self._set_timer(now_ms)

    def _start_probe(self, now_ms: int) -> None:
        reason = self.allocator.probe_started(now_ms)
        self._audit.probe_started(reason)
        self._probe_since_ms = now_ms
        self._keepa.probe(partial(self._probe_done, now_ms))

    def _probe_done(self, requested_ms: int, envelope: WitnessedEnvelope | None) -> None:
        self._when_awake(partial(self._take_probe, requested_ms, envelope))

    def _take_probe(self, requested_ms: int, envelope: WitnessedEnvelope | None) -> None:
        self._probe_since_ms = None
        self.probe_failing = envelope is None
        if envelope is None:
            self._audit.probe_failed()
            self._step(self.allocator.probe_failed)
        else:
            now_ms = self.now_ms()
            self.allocator.probe_answered(envelope, requested_ms, now_ms)
            self._follow_up(now_ms)

    def _set_timer(self, now_ms: int) -> None:
        wake_ms = self.allocator.next_wake_ms(now_ms)
        self._wake_ms = None if wake_ms is None else self.clock.when(wake_ms)
        if self._wake_ms is not None and (
            self._timer_ms is None or self._wake_ms < self._timer_ms
        ):
            self._timer_ms = self._wake_ms
            self._timeline.at(self._wake_ms, partial(self._ring, self._wake_ms))

    def _ring(self, set_for_ms: int) -> None:
        if set_for_ms != self._timer_ms or not self.alive:
            return
        self._timer_ms = None
        if self.standing_still:
            return
        if self._wake_ms is not None and self._wake_ms > self._timeline.now_ms:
            self._timer_ms = self._wake_ms
            self._timeline.at(self._wake_ms, partial(self._ring, self._wake_ms))
        elif self._wake_ms is not None:
            self._audit.liveness.woken()
            self._step(self.allocator.advance)
