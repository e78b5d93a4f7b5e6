"""Many requests that wait: their memory, the broker's idle time, and the burst after a tick.

Real processes: a simulator, a broker, and this process as the client of all waits, which
come over a few connections. Waits are in many holders' names, as those of a fleet.
"""

import asyncio
import secrets
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import requests
import uvloop

from broker.core.bucket import TICK_GUARD_MS
from fetcher.broker_client import BrokerClient
from fetcher.keepa import Keepa
from fetcher.work.paid_call import leased_call
from protos.channel.access import DIRECT
from protos.channel.options import CLIENT
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.bench.processes import precise_cpu_s, resident_mb
from tests.bench.table import Goal, Row, at_most
from tests.fix_broker import RunningBroker, launch_broker
from tests.fix_simulator import RunningSimulator, launch_simulator

# A connection carries some 4,000 calls at once.
CONNECTIONS: Final = 4
HOLDERS: Final = 64
TOKENS: Final = 5
SMALL: Final = 1_000
LARGE: Final = 10_000
BURST: Final = 100
TICK_S: Final = 6.0
TICKS: Final = 5
IDLE_S: Final = 20.0
SETTLED_S: Final = 3.0
PROBES: Final = 15
# A cost counts as proven once so many calls have shown it (broker/core/costs.py).
TAUGHT: Final = 70
SELECTION: Final = {"domainId": 1, "priceTypes": [2], "dateRange": 3, "sortType": 1}

MEMORY_GOAL: Final = at_most(25)
IDLE_GOAL: Final = at_most(0.3)
FIRST_GOAL: Final = at_most(5)
LAST_GOAL: Final = at_most(15)
MEMORY_WHY: Final = "gRPC's own call, stream and task are most of it; a no-op's wait costs as much"
IDLE_WHY: Final = "gRPC's keepalive, its timers and the lag's measure remain"
BURST_WHY: Final = (
    "this process, which reads the grants, and the simulator share the cores with the broker"
)


def teach(keepa: RunningSimulator, broker: RunningBroker) -> None:
    """Makes so many calls that their cost counts as proven: else they are granted one by one."""
    client = Keepa(keepa.api_key, base_url=keepa.base_url)
    with closing(client), BrokerClient(broker.address) as leases:
        for _ in range(TAUGHT):
            with leases.lease("deal", units=1, tokens_per_unit=TOKENS) as lease:
                leased_call(lease, lambda: client.deals(SELECTION))


@contextmanager
def account(tick_s: float, folder: Path) -> Iterator[tuple[RunningSimulator, RunningBroker]]:
    """A bucket that a tick fills for one burst, empty at first, and its broker."""
    keepa = launch_simulator(
        rate=BURST * TOKENS,
        initial_tokens=TAUGHT * TOKENS,
        tick_seconds=tick_s,
        products=100,
        deals=10,
    )
    try:
        broker = launch_broker(
            keepa.base_url, keepa.api_key, folder=folder, name=f"broker-{tick_s:g}",
            log_level="warning", broker_caller_waits_max=LARGE,
        )  # fmt: skip
        try:
            teach(keepa, broker)
            keepa.change_account(balance=0)
            yield keepa, broker
        finally:
            broker.program.stop()
    finally:
        keepa.stop()


class Crowd:
    """Requests that wait at one broker; when each was granted."""

    def __init__(self, stubs: list[Any]) -> None:
        self._stubs = stubs
        self._waits: set[asyncio.Task[None]] = set()
        self._number = 0
        # A lease of an earlier crowd must not be taken for one of this one.
        self._name = secrets.token_hex(4)
        self.granted_ms: list[float] = []

    async def grow(self, broker: RunningBroker, number: int) -> None:
        """Lets so many more wait, and returns when they do."""
        awaited = len(self._waits) + len(self.granted_ms) + number
        for _ in range(number):
            self._number += 1
            task = asyncio.create_task(self._wait(self._number))
            self._waits.add(task)
            task.add_done_callback(self._waits.discard)
        # What a tick grants meanwhile does not wait any more.
        while await self._settled(broker) < awaited:  # noqa: ASYNC110 - its process counts
            await asyncio.sleep(0.05)

    async def _settled(self, broker: RunningBroker) -> int:
        """Requests that wait, as the broker counts them, or have been granted."""
        bucket = await asyncio.to_thread(broker.bucket)
        return bucket.waiting + len(self.granted_ms)

    async def _wait(self, number: int) -> None:
        request = pb.AcquireLeaseRequest(
            lease_id=f"{self._name}/{number}", holder=f"h{number % HOLDERS}",
            operation="deal", units=1, tokens_per_unit=TOKENS, priority=pb.PRIORITY_NORMAL,
        )  # fmt: skip
        answer = await self._stubs[number % len(self._stubs)].AcquireLease(request)
        self.granted_ms.append(time.time() * 1000)
        assert answer.HasField("grant"), answer

    async def end(self) -> None:
        """Cancels what still waits."""
        for task in self._waits:
            task.cancel()
        await asyncio.gather(*self._waits, return_exceptions=True)


@asynccontextmanager
async def crowd_at(broker: RunningBroker) -> AsyncIterator[Crowd]:
    """A crowd that is still empty, with its connections."""
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(broker.address, options=(*CLIENT, DIRECT))
            )
            for _ in range(CONNECTIONS)
        ]
        crowd = Crowd([pb_grpc.TokenBrokerServiceStub(channel) for channel in channels])
        try:
            yield crowd
        finally:
            await crowd.end()


async def at_rest(broker: RunningBroker, counts: tuple[int, ...], idle_s: float) -> list[Row]:
    """Memory and idle time with *counts* requests that wait, in this order."""
    rows = []
    pid = broker.program.pid
    async with crowd_at(broker) as crowd:
        await asyncio.sleep(SETTLED_S)
        empty_mb, so_far = resident_mb(pid), 0
        for count in counts:
            await crowd.grow(broker, count - so_far)
            so_far = count
            await asyncio.sleep(SETTLED_S)
            full_mb, used_s = resident_mb(pid), precise_cpu_s(pid)
            await asyncio.sleep(idle_s)
            share = (precise_cpu_s(pid) - used_s) / idle_s
            rows += [
                Row(
                    f"memory of a wait, {count:,} waiting",
                    (full_mb - empty_mb) * 1024 / count,
                    "kB",
                    MEMORY_GOAL,
                    f"{empty_mb:.0f} MB without, {full_mb:.0f} MB with them",
                    MEMORY_WHY,
                    {"resident_mb": [empty_mb, full_mb]},
                ),
                Row(
                    f"idle processor time, {count:,} waiting",
                    share * 100,
                    "%",
                    IDLE_GOAL,
                    f"of one core, over {idle_s:g} s",
                    IDLE_WHY,
                ),
            ]
    return rows


def token(keepa: RunningSimulator, session: requests.Session) -> tuple[float, float]:
    """The next tick in Unix milliseconds, and how long the call took in milliseconds."""
    began_s = time.perf_counter()
    body = session.get(f"{keepa.base_url}/token", params={"key": keepa.api_key}, timeout=30).json()
    took_ms = (time.perf_counter() - began_s) * 1000
    return body["timestamp"] + body["processingTimeInMs"] + body["refillIn"], took_ms


async def bursts(
    keepa: RunningSimulator, broker: RunningBroker, count: int, ticks: int
) -> list[Row]:
    """Times from ticks to their grants, with *count* requests waiting in the middle."""
    firsts, lasts = [], []
    with requests.Session() as session:
        probe_ms = statistics.median(token(keepa, session)[1] for _ in range(PROBES))
        async with crowd_at(broker) as crowd:
            await crowd.grow(broker, count + ticks * BURST // 2)
            for _ in range(ticks):
                tick_ms, _ = await asyncio.to_thread(token, keepa, session)
                before = len(crowd.granted_ms)
                while len(crowd.granted_ms) < before + BURST:  # noqa: ASYNC110 - coarse is fine
                    await asyncio.sleep(0.1)
                burst = sorted(crowd.granted_ms[before : before + BURST])
                firsts.append(burst[0] - tick_ms - TICK_GUARD_MS - probe_ms)
                lasts.append(burst[-1] - tick_ms - TICK_GUARD_MS - probe_ms)
                await asyncio.sleep(0.5)

    def row(which: str, times: list[float], goal: Goal) -> Row:
        return Row(
            f"tick to {which} of {BURST} grants received, {count:,} waiting",
            statistics.median(times),
            "ms",
            goal,
            f"beyond the guard of {TICK_GUARD_MS} ms and the probe of {probe_ms:.1f} ms",
            BURST_WHY,
            {"ms": times},
        )

    return [row("first", firsts, FIRST_GOAL), row("last", lasts, LAST_GOAL)]


def rows(quick: bool) -> Iterator[Row]:  # noqa: FBT001 - as all benches
    """Memory and idle time, then the bursts; quickly, only the former."""
    counts = (SMALL,) if quick else (SMALL, LARGE)
    with tempfile.TemporaryDirectory(prefix="keepa-bench-") as name:
        folder = Path(name)
        with account(3_600, folder) as (_, broker):
            yield from uvloop.run(at_rest(broker, counts, IDLE_S / 8 if quick else IDLE_S))
        if quick:
            return
        with account(TICK_S, folder) as (keepa, broker):
            for count in counts:
                yield from uvloop.run(bursts(keepa, broker, count, TICKS))
