"""The real core of the broker, driven in the peers' world as the runtime drives it."""

from collections.abc import Callable
from functools import partial
from typing import Final

from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.bucket import Envelope
from broker.core.leases import Granted, Lease, LeaseRequest, Outcome, Priority, Settlement
from tests.bench.peers.world import Reply, World
from tests.simulation.demand import Demand
from tests.simulation.keepa_model import Reading

TTL_MS: Final = 300_000
EPOCH: Final = 1


class OurBroker:
    """One allocator for all workers of a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        config = AllocatorConfig(recovery_grace_ms=0)
        self.allocator = Allocator(config, epoch=EPOCH, started_ms=0)
        self._asked = 0
        self._waiting: dict[str, tuple[Demand, Callable[[float], None]]] = {}
        self._leases: dict[int, Lease] = {}
        self._wake_ms: int | None = None
        self._after_step()

    def acquire(self, number: int, demand: Demand, go_on: Callable[[float], None]) -> None:
        """Calls *go_on* with the believed count once worker *number* may make its call."""
        self._asked += 1
        request = LeaseRequest(
            lease_id=f"{number}.{self._asked}",
            holder=f"h{number}",
            operation=demand.operation,
            units=demand.units_max,
            min_units=0 if demand.whole else 1,
            tokens_per_unit=demand.prior,
            priority=Priority.NORMAL,
            ttl_ms=TTL_MS,
        )
        self._waiting[request.lease_id] = (demand, go_on)
        self._world.later(partial(self._step, partial(self.allocator.acquire, request)))

    def settle(self, number: int, reply: Reply, go_on: Callable[[None], None]) -> None:
        """Takes the end of the call of worker *number*."""
        lease = self._leases.pop(number)
        settlement = Settlement(
            lease.lease_id,
            EPOCH,
            lease.holder,
            lease.operation,
            lease.units,
            lease.tokens,
            Outcome.REFUSED if reply.refused else Outcome.REPLIED,
            envelope(reply.reading),
        )
        self._world.later(partial(self._step, partial(self.allocator.settle, settlement)))
        self._world.later(partial(go_on, None))

    def _step(self, change: Callable[[int], object]) -> None:
        change(self._world.timeline.now_ms)
        self._after_step()

    def _after_step(self) -> None:
        world, allocator = self._world, self.allocator
        now_ms = world.timeline.now_ms
        allocator.take_events()
        outcomes = allocator.take_outcomes()
        leases = [outcome.lease for outcome in outcomes if isinstance(outcome, Granted)]
        assert len(leases) == len(outcomes)
        believed = allocator.ledger.headroom(now_ms, projected=False)
        believed += sum(lease.tokens for lease in leases)
        for lease in leases:
            demand, go_on = self._waiting.pop(lease.lease_id)
            number = int(lease.holder[1:])
            self._leases[number] = lease
            world.decide(number, demand, believed)
            world.later(partial(go_on, float(believed)))
            believed -= lease.tokens
        head = allocator.waitlist.head()
        world.head = None if head is None else self._waiting[head.request.lease_id][0]
        if allocator.probe_wanted(now_ms):
            allocator.probe_started(now_ms)
            world.ask(partial(self._answered, now_ms))
        wake_ms = allocator.next_wake_ms(now_ms)
        if wake_ms is not None and wake_ms != self._wake_ms:
            self._wake_ms = wake_ms
            world.timeline.at(wake_ms, partial(self._wake, wake_ms))

    def _wake(self, wake_ms: int) -> None:
        if wake_ms == self._wake_ms:
            self._wake_ms = None
            self._step(self.allocator.advance)

    def _answered(self, requested_ms: int, reading: Reading) -> None:
        answered = partial(self.allocator.probe_answered, envelope(reading), requested_ms)
        self._step(answered)


def envelope(reading: Reading) -> Envelope:
    """The token fields of a reply, as the broker takes them."""
    return Envelope(
        reading.server_time_ms,
        reading.processing_ms,
        reading.tokens_left,
        reading.tokens_consumed,
        reading.refill_in_ms,
        reading.refill_rate,
        reading.token_flow_reduction,
    )
