"""The broker beside a no-op service of the same shape, both real processes with uvloop.

    python -m tests.bench.bench_broker [-o json]

Rounds of both are taken by turns. Each round makes pairs of AcquireLease and SettleLease, with
64 or 1 in flight, for a while; the processor time is that of the server process.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import uvloop

from deploy.keepa_simulator.options import DEMO_KEY
from protos.channel import options
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.fix_broker import launch_broker
from tests.fix_simulator import launch_simulator

ROOT: Final = Path(__file__).parents[2]
ROUNDS: Final = 7
ROUND_S: Final = 1.5
TOKENS: Final = 5
FULL_TOKENS: Final = 60_000_000
HOLDERS: Final = 64
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Goal:
    """The least ratio of pairs a second, and the greatest of processor time."""

    pairs: float
    cpu: float


GOALS: Final = {64: Goal(0.75, 1.35), 1: Goal(0.9, 1.3)}


@dataclass(frozen=True, slots=True)
class Beside:
    """The broker beside the no-op service, with so many pairs in flight; medians."""

    in_flight: int
    broker_pairs_per_s: float
    noop_pairs_per_s: float
    pairs_ratio: float
    broker_cpu_us: float
    noop_cpu_us: float
    cpu_ratio: float


@dataclass(slots=True)
class Server:
    """A server process, and the account as its clients see it."""

    pid: int
    stub: Any
    left: int

    def cpu_s(self) -> float:
        """Processor time of the process so far, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


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

    began_s, cpu_s = time.monotonic(), server.cpu_s()
    await asyncio.gather(*(worker(number) for number in range(in_flight)))
    return done / (time.monotonic() - began_s), (server.cpu_s() - cpu_s) / done * 1e6


async def beside(broker: Server, noop: Server, in_flight: int, rounds: int) -> Beside:
    """Takes rounds of both by turns."""
    for server in (broker, noop):
        await round_of(server, in_flight, ROUND_S / 3)
    results: dict[int, list[tuple[float, float]]] = {broker.pid: [], noop.pid: []}
    for number in range(rounds):
        turns = (broker, noop) if number % 2 else (noop, broker)
        for server in turns:
            results[server.pid].append(await round_of(server, in_flight, ROUND_S))
    ours, others = results[broker.pid], results[noop.pid]
    ratios = [(a[0] / b[0], a[1] / b[1]) for a, b in zip(ours, others, strict=True)]
    return Beside(
        in_flight,
        statistics.median(pairs for pairs, _ in ours),
        statistics.median(pairs for pairs, _ in others),
        statistics.median(pairs for pairs, _ in ratios),
        statistics.median(cpu for _, cpu in ours),
        statistics.median(cpu for _, cpu in others),
        statistics.median(cpu for _, cpu in ratios),
    )


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


async def with_server(
    pid: int, address: str, use: Callable[[Server], Awaitable[list[Beside]]]
) -> list[Beside]:
    """Connects to a server process."""
    async with grpc.aio.insecure_channel(address, options=options.CLIENT) as channel:
        stub = pb_grpc.TokenBrokerServiceStub(channel)
        return await use(Server(pid, stub, FULL_TOKENS))


async def measure(
    broker: tuple[int, str], noop: tuple[int, str], rounds: int = ROUNDS
) -> list[Beside]:
    """Both settings."""

    async def with_both(ours: Server, other: Server) -> list[Beside]:
        return [await beside(ours, other, in_flight, rounds) for in_flight in GOALS]

    return await with_server(
        *broker, lambda ours: with_server(*noop, lambda other: with_both(ours, other))
    )


def main() -> None:
    """Prints the ratios beside their goals."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.bench_broker", description=__doc__
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each server")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="keepa-bench-") as name,
        broker_process(Path(name)) as broker,
        noop_process() as noop,
    ):
        results = uvloop.run(measure(broker, noop, arguments.rounds))
    if arguments.output == "json":
        json.dump([asdict(result) for result in results], sys.stdout, indent=1)
        return
    for result in results:
        goal = GOALS[result.in_flight]
        print(  # noqa: T201 - the result
            f"{result.in_flight:3} in flight, beside the no-op service:"
            f" {result.pairs_ratio:.2f} of its pairs a second (goal {goal.pairs}),"
            f" {result.cpu_ratio:.2f} x its processor time (goal {goal.cpu});"
            f" {result.broker_pairs_per_s:,.0f} and {result.noop_pairs_per_s:,.0f} pairs/s,"
            f" {result.broker_cpu_us:,.0f} and {result.noop_cpu_us:,.0f} us a pair"
        )


if __name__ == "__main__":
    main()
