"""The broker's edge in virtual time: runtime, probe and election of two brokers.

The runtime, the elector and its edge are the product's own. Keepa, the leader's row and
the network are models, slow and failing by chance; one seed repeats a whole run. gRPC's
core can't run here: clients call the runtime itself.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Final

from pydantic import SecretStr

from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.bucket import Envelope
from broker.core.elector import Attempt, Elector, Row, Term
from broker.core.errors import BrokerError, LeaseEndedError
from broker.core.leases import Granted, Lease, LeaseRequest, Outcome, Priority, Settlement
from broker.journal.leader_row import Found
from broker.journal.leadership import Leadership
from broker.keepa_status import KeepaSync, KeepaSyncError, ProbeFailure
from broker.runtime import BrokerRuntime, BrokerStoppingError, NotLeadingError
from tests.broker.core.elector_model import carried_out
from tests.simulation.keepa_model import KeepaModel, Moment, Reading
from tests.simulation.virtual_loop import in_virtual_time

TTL_MS: Final = 4_000
PERIOD_MS: Final = 2_000
CALL_TOKENS: Final = 5
CLIENTS: Final = 4
DEADLINE_S: Final = 3_600.0


@dataclass
class Trace:
    """What has happened; equal for equal seeds."""

    refusals: int = 0
    calls: int = 0
    terms: list[int] = field(default_factory=list)
    kills: int = 0
    failures: int = 0
    _digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def note(self, *what: object) -> None:
        """Adds an event."""
        now_ms = round(asyncio.get_running_loop().time() * 1000)
        self._digest.update(repr((now_ms, what)).encode())

    @property
    def digest(self) -> str:
        """Differs as soon as one event does."""
        return self._digest.hexdigest()


class ModelledKeepa(KeepaSync):
    """The answers of a modelled bucket to probes: late, or none."""

    def __init__(self, world: "EdgeWorld") -> None:
        super().__init__("http://127.0.0.1:9", SecretStr("k"))
        self._world = world

    async def read(self) -> Envelope:
        """Reads the model's bucket."""
        world = self._world
        await world.pause(5, 400)
        if world.strikes(0.05):
            raise KeepaSyncError(ProbeFailure.UNREACHABLE, "by chance")
        reading = world.keepa.read(world.now_ms)
        await world.pause(5, 400)
        return envelope(reading)


class ModelledRow:
    """The leader's row behind a slow and failing network."""

    def __init__(self, world: "EdgeWorld", holder: str) -> None:
        self._world = world
        self._holder = holder

    async def run(self, attempt: Attempt) -> Found:
        """Runs *attempt* late, or fails before or after it has run."""
        world = self._world
        await world.pause(1, 30)
        if world.strikes(0.01):
            await world.pause(100, 6_000)
        if world.strikes(0.01):
            world.trace.failures += 1
            raise OSError("by chance, before it ran")
        world.row, done = carried_out(attempt, world.row, self._holder)
        found = Found(world.row, done)
        await world.pause(1, 30)
        if world.strikes(0.01):
            world.trace.failures += 1
            raise OSError("by chance, after it ran")
        return found

    async def close(self) -> None:
        """Does nothing."""


class Site:
    """One broker process: runtime and election, with a clock of its own."""

    def __init__(self, world: "EdgeWorld", name: str) -> None:
        self._world = world
        self._offset_ms = world.dice.randrange(10_000_000)
        self.elector = Elector(name, ttl_ms=TTL_MS)
        self.runtime = BrokerRuntime(self._allocator(0), ModelledKeepa(world), self.elector)
        self.runtime.now_ms = self.now_ms  # type: ignore[method-assign]  # virtual time
        row = ModelledRow(world, name)
        self.leadership = Leadership(self.elector, row, self.runtime, self._succeed)
        self.task = asyncio.ensure_future(self.leadership.follow())

    def now_ms(self) -> int:
        """This machine's clock, which shows the time since some start of its own."""
        return self._world.now_ms + self._offset_ms

    def _allocator(self, epoch: int) -> Allocator:
        config = AllocatorConfig(recovery_grace_ms=1_000)
        return Allocator(config, epoch=epoch, started_ms=self.now_ms())

    async def _succeed(self, term: Term) -> Allocator:
        # As long as reading the journal takes.
        await self._world.pause(1, 300)
        return self._allocator(term.epoch)

    @property
    def leads(self) -> bool:
        """Whether it may grant now."""
        return self.runtime.leads(self.now_ms())

    def kill(self) -> None:
        """Ends it at once; its connections break."""
        self.task.cancel()
        self.runtime.stop()


class EdgeWorld:
    """Two brokers, a few clients, and chance."""

    def __init__(self, seed: int, *, leases: int, kills: int) -> None:
        self.dice = Random(seed)
        self.trace = Trace()
        self.keepa = KeepaModel(
            rate=20, period_ms=PERIOD_MS, opening=40, charge=Moment.END, snapshot=Moment.END
        )
        self.row: Row | None = None
        self._leases = leases
        self._kills = kills

    @property
    def now_ms(self) -> int:
        """True time."""
        return round(asyncio.get_running_loop().time() * 1000)

    def strikes(self, probability: float) -> bool:
        """Whether it happens this time."""
        return self.dice.random() < probability

    async def pause(self, least_ms: int, most_ms: int) -> None:
        """Waits for a time by chance."""
        await asyncio.sleep(self.dice.randint(least_ms, most_ms) / 1000)

    async def run(self) -> Trace:
        """Lets every client have its leases; brokers die meanwhile."""
        self.sites = [Site(self, name) for name in ("a.0", "b.0")]
        others = [asyncio.ensure_future(work) for work in (self._refill(), self._kill())]
        clients = [self._client(number) for number in range(CLIENTS)]
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*clients)
        for task in others:
            task.cancel()
        for site in self.sites:
            site.kill()
        return self.trace

    async def _refill(self) -> None:
        while True:
            await asyncio.sleep(max(0, self.keepa.next_tick_ms - self.now_ms) / 1000)
            self.keepa.tick()

    async def _kill(self) -> None:
        for number in range(1, self._kills + 1):
            await self.pause(5_000, 30_000)
            victim = self.dice.randrange(2)
            site = self.sites[victim]
            if self.strikes(0.3):
                # In order: it hands over.
                site.task.cancel()
                site.runtime.stop()
                await site.leadership.hand_over()
            else:
                site.kill()
            self.trace.kills += 1
            self.trace.note("killed", victim)
            await self.pause(10, 2_000)
            self.sites[victim] = Site(self, f"{'ab'[victim]}.{number}")

    async def _client(self, number: int) -> None:
        for count in range(self._leases):
            await self.pause(0, 1_500)
            lease = await self._acquire(number, f"{number}-{count}")
            await self.pause(1, 50)
            call = self.keepa.admit(CALL_TOKENS, self.now_ms)
            if call is None:
                self.trace.refusals += 1
                reading, outcome = self.keepa.read(self.now_ms), Outcome.REFUSED
            else:
                await self.pause(20, 900)
                reading, outcome = self.keepa.finish(call, self.now_ms), Outcome.REPLIED
            self.trace.calls += 1
            self.trace.note("called", lease.lease_id, outcome)
            await self._settle(lease, reading, outcome)

    async def _acquire(self, number: int, lease_id: str) -> Lease:
        tries = 0
        while True:
            site = self.dice.choice(self.sites)
            request = LeaseRequest(
                f"{lease_id}-{tries}", f"client-{number}", "deal", 1, 0, CALL_TOKENS,
                Priority.NORMAL, 15_000,
            )  # fmt: skip
            with _refusals():
                try:
                    answer = await site.runtime.acquire(request)
                except LeaseEndedError:
                    tries += 1
                else:
                    assert isinstance(answer, Granted)
                    self._check_grant(site, answer.lease)
                    return answer.lease
            await self.pause(20, 300)

    def _check_grant(self, site: Site, lease: Lease) -> None:
        leaders = [each for each in self.sites if each.leads]
        assert leaders == [site], "a grant of a broker that does not lead alone"
        epoch = site.runtime.allocator.ledger.epoch
        if epoch not in self.trace.terms:
            assert epoch > max(self.trace.terms, default=0), "an epoch is not the largest"
            self.trace.terms.append(epoch)
        self.trace.note("granted", lease.lease_id, lease.epoch)

    async def _settle(self, lease: Lease, reading: Reading, outcome: Outcome) -> None:
        settlement = Settlement(
            lease.lease_id, lease.epoch, lease.holder, lease.operation, lease.units,
            lease.tokens, outcome, envelope(reading),
        )  # fmt: skip
        while True:
            site = self.dice.choice(self.sites)
            try:
                site.runtime.settle(settlement)
            except BrokerError:
                # A lease of the killed broker's own epoch, which no journal has kept.
                self.trace.note("settle refused", lease.lease_id)
                return
            except (NotLeadingError, BrokerStoppingError):
                await self.pause(20, 300)
            else:
                return


@contextmanager
def _refusals() -> Iterator[None]:
    """Lets pass what a client repeats elsewhere."""
    try:
        yield
    except (NotLeadingError, BrokerStoppingError):
        return


def envelope(reading: Reading) -> Envelope:
    """A reading as the broker's own words."""
    return Envelope(
        reading.server_time_ms, reading.processing_ms, reading.tokens_left,
        reading.tokens_consumed, reading.refill_in_ms, reading.refill_rate,
        reading.token_flow_reduction,
    )  # fmt: skip


def live(seed: int, *, leases: int = 25, kills: int = 4) -> Trace:
    """One run; raises AssertionError where a law is broken, TimeoutError if it gets stuck."""

    async def begin() -> Trace:
        return await EdgeWorld(seed, leases=leases, kills=kills).run()

    return in_virtual_time(begin())
