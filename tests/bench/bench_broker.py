"""The broker beside a no-op service of the same shape, both real processes with uvloop.

Rounds of both are taken by turns. Each round makes pairs of AcquireLease and SettleLease, with
64 or 1 in flight, for a while; the processor time is that of the server process.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import uvloop

from deploy.keepa_simulator.options import DEMO_KEY
from protos.channel import options
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.bench.processes import cpu_s
from tests.bench.table import Goal, Row, at_least, at_most, median_ratio
from tests.fix_broker import launch_broker
from tests.fix_simulator import launch_simulator

ROOT: Final = Path(__file__).parents[2]
ROUNDS: Final = 7
ROUND_S: Final = 1.5
QUICK_ROUNDS: Final = 2
QUICK_ROUND_S: Final = 0.5
TOKENS: Final = 5
FULL_TOKENS: Final = 60_000_000
HOLDERS: Final = 64

# By calls in flight: pairs a second, and processor time.
GOALS: Final[dict[int, tuple[Goal, Goal]]] = {
    64: (at_least(0.75), at_most(1.35)),
    1: (at_least(0.9), at_most(1.3)),
}


WHY: Final = (
    "half of the broker's own work for a pair is the core's two steps (see core), the rest checks,"
    " metrics, records and messages; a compiled core takes 0.95 of the time"
)


@dataclass(slots=True)
class Server:
    """A server process, and the account as its clients see it."""

    pid: int
    stub: Any
    left: int


async def pair(server: Server, number: int) -> None:
    """One lease, granted and settled at its cost."""
    lease_id, holder = str(uuid.uuid4()), f"bench-{number % HOLDERS}"
    answer = await server.stub.AcquireLease(
        pb.AcquireLeaseRequest(
            lease_id=lease_id,
            holder=holder,
            operation="deal",
            units=1,
            tokens_per_unit=TOKENS,
            priority=pb.PRIORITY_NORMAL,
        )
    )
    grant = answer.grant
    assert grant.lease_id == lease_id, answer
    server.left -= TOKENS
    settle = pb.SettleLeaseRequest(
        lease_id=lease_id,
        epoch=grant.epoch,
        holder=holder,
        operation="deal",
        units=1,
        tokens=grant.tokens,
        outcome=pb.OUTCOME_REPLIED,
    )
    settle.envelope.tokens_consumed = TOKENS
    settle.envelope.tokens_left = server.left
    await server.stub.SettleLease(settle)


async def round_of(server: Server, in_flight: int, seconds: float) -> tuple[float, float]:
    """Pairs a second, and processor time of the server a pair in microseconds."""
    end_s, done = time.monotonic() + seconds, 0

    async def worker(number: int) -> None:
        nonlocal done
        while time.monotonic() < end_s:
            await pair(server, number)
            done += 1

    began_s, used_s = time.monotonic(), cpu_s(server.pid)
    await asyncio.gather(*(worker(number) for number in range(in_flight)))
    return done / (time.monotonic() - began_s), (cpu_s(server.pid) - used_s) / done * 1e6


async def beside(broker: Server, noop: Server, in_flight: int, *, quick: bool) -> list[Row]:
    """Takes rounds of both by turns."""
    seconds = QUICK_ROUND_S if quick else ROUND_S
    for server in (broker, noop):
        await round_of(server, in_flight, seconds / 3)
    results: dict[int, list[tuple[float, float]]] = {broker.pid: [], noop.pid: []}
    for number in range(QUICK_ROUNDS if quick else ROUNDS):
        turns = (broker, noop) if number % 2 else (noop, broker)
        for server in turns:
            results[server.pid].append(await round_of(server, in_flight, seconds))
    rows = []
    measures = (("pairs a second", "pairs/s"), ("processor time a pair", "us"))
    for place, (what, unit) in enumerate(measures):
        ours = [result[place] for result in results[broker.pid]]
        others = [result[place] for result in results[noop.pid]]
        rows.append(
            Row(
                f"a pair of calls beside a no-op service, {in_flight} in flight: {what}",
                median_ratio(ours, others),
                "x",
                GOALS[in_flight][place],
                f"{statistics.median(ours):,.0f} and {statistics.median(others):,.0f} {unit}",
                WHY,
                {"broker": ours, "noop": others},
            )
        )
    return rows


class Session:
    """A stream to the no-op service, in the place of calls; answers come in order."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._asked: deque[asyncio.Future[None]] = deque()
        # None ends the stream.
        self._requests: asyncio.Queue[pb.AcquireLeaseRequest | None] = asyncio.Queue()
        self._answers = channel.stream_stream(
            "/bench.Noop/Session",
            request_serializer=pb.AcquireLeaseRequest.SerializeToString,
            response_deserializer=pb.AcquireLeaseResponse.FromString,
        )(self._sent())

    async def _sent(self) -> AsyncIterator[pb.AcquireLeaseRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def ask(self, number: int) -> None:
        """Sends a request, and waits for its answer."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        request = pb.AcquireLeaseRequest(
            lease_id=str(uuid.uuid4()), holder=f"bench-{number % HOLDERS}", operation="deal",
            units=1, tokens_per_unit=TOKENS, priority=pb.PRIORITY_NORMAL,
        )  # fmt: skip
        self._asked.append(answered)
        self._requests.put_nowait(request)
        await answered

    async def read(self) -> None:
        """Hands answers out until the stream ends."""
        async for _ in self._answers:
            self._asked.popleft().set_result(None)

    def end(self) -> None:
        """Ends the stream."""
        self._requests.put_nowait(None)


async def streamed(
    session: Session, pid: int, in_flight: int, seconds: float
) -> tuple[float, float]:
    """Pairs of messages a second over one stream, and the server's microseconds a pair."""
    end_s, done = time.monotonic() + seconds, 0

    async def worker(number: int) -> None:
        nonlocal done
        while time.monotonic() < end_s:
            await session.ask(number)
            await session.ask(number)
            done += 1

    began_s, used_s = time.monotonic(), cpu_s(pid)
    await asyncio.gather(*(worker(number) for number in range(in_flight)))
    return done / (time.monotonic() - began_s), (cpu_s(pid) - used_s) / done * 1e6


async def stream_beside_calls(
    noop: Server, channel: grpc.aio.Channel, *, quick: bool
) -> list[Row]:
    """What a streaming session could give at most: no-op pairs over a stream and as calls."""
    seconds = QUICK_ROUND_S if quick else ROUND_S
    session = Session(channel)
    reading = asyncio.create_task(session.read())
    rows = []
    for in_flight in GOALS:
        calls, stream = [], []
        for _ in range(QUICK_ROUNDS if quick else ROUNDS):
            calls.append(await round_of(noop, in_flight, seconds))
            stream.append(await streamed(session, noop.pid, in_flight, seconds))
        ours, others = ([one[0] for one in found] for found in (stream, calls))
        used = [statistics.median(one[1] for one in found) for found in (stream, calls)]
        rows.append(
            Row(
                f"no-op pairs over one stream beside two calls, {in_flight} in flight",
                median_ratio(ours, others),
                "x",
                None,
                f"{statistics.median(ours):,.0f} and {statistics.median(others):,.0f} pairs/s,"
                f" {used[0]:,.0f} and {used[1]:,.0f} us of the server",
                "",
                {"stream": ours, "calls": others},
            )
        )
    session.end()
    await reading
    return rows


@contextmanager
def noop_process() -> Iterator[tuple[int, str]]:
    """The no-op service: its process id and address."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.noop_server"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process.pid, f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


@contextmanager
def broker_process(folder: Path) -> Iterator[tuple[int, str]]:
    """A broker with a bucket that the bench can't empty: its process id and address."""
    simulator = launch_simulator(rate=1_000_000, tick_seconds=3_600)
    try:
        simulator.change_account(balance=FULL_TOKENS)
        broker = launch_broker(
            simulator.base_url,
            DEMO_KEY,
            folder=folder,
            name="broker",
            log_level="warning",
        )
        try:
            yield broker.program.pid, broker.address
        finally:
            broker.program.stop()
    finally:
        simulator.stop()


async def measure(broker: tuple[int, str], noop: tuple[int, str], *, quick: bool) -> list[Row]:
    """Both settings."""
    async with (
        grpc.aio.insecure_channel(broker[1], options=options.CLIENT) as to_broker,
        grpc.aio.insecure_channel(noop[1], options=options.CLIENT) as to_noop,
    ):
        servers = [
            Server(pid, pb_grpc.TokenBrokerServiceStub(channel), FULL_TOKENS)
            for (pid, _), channel in ((broker, to_broker), (noop, to_noop))
        ]
        found = []
        for in_flight in GOALS:
            found += await beside(servers[0], servers[1], in_flight, quick=quick)
        return found + await stream_beside_calls(servers[1], to_noop, quick=quick)


def rows(quick: bool) -> Iterator[Row]:  # noqa: FBT001 - as all benches
    """Ratios of both settings."""
    with (
        tempfile.TemporaryDirectory(prefix="keepa-bench-") as name,
        broker_process(Path(name)) as broker,
        noop_process() as noop,
    ):
        yield from uvloop.run(measure(broker, noop, quick=quick))
