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
from collections.abc import Iterator
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
QUICK_ROUNDS: Final = 3
QUICK_ROUND_S: Final = 0.8
TOKENS: Final = 5
FULL_TOKENS: Final = 60_000_000
HOLDERS: Final = 64

# By calls in flight: pairs a second, and processor time.
GOALS: Final[dict[int, tuple[Goal, Goal]]] = {
    64: (at_least(0.75), at_most(1.35)),
    1: (at_least(0.9), at_most(1.3)),
}


WHY: Final = (
    "what a pair costs beyond a no-op's is the allocator's two steps and the journal's records"
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
        return found


def rows(quick: bool) -> Iterator[Row]:  # noqa: FBT001 - as all benches
    """Ratios of both settings."""
    with (
        tempfile.TemporaryDirectory(prefix="keepa-bench-") as name,
        broker_process(Path(name)) as broker,
        noop_process() as noop,
    ):
        yield from uvloop.run(measure(broker, noop, quick=quick))
