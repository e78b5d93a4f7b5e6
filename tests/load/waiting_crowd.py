"""Very many connections, each with a request that waits; what that costs the broker.

python -m tests.load.waiting_crowd --connections 1000 --seconds 600
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from deploy.local.program import Program
from deploy.local.tether import tethered
from fetcher.broker_client import AsyncBrokerClient, Priority
from protos.channel.access import DIRECT
from protos.channel.options import CLIENT
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.fix_broker import RunningBroker, launch_broker
from tests.fix_simulator import launch_simulator

# Requests without a lease id: from one client so many a second that heeds no limit, and from
# another as fast as it gets answers.
FLOOD_PER_S: Final = 10_000
BOGUS_AT_ONCE: Final = 64
# One in so many is larger than the broker takes.
OVERSIZED_EVERY: Final = 200
OVERSIZED_BYTES: Final = 5_000_000
# An unusable request is refused as such, a large one, or one of too many, as too much.
REFUSALS: Final = frozenset({
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED,
})  # fmt: skip
# Streams of which not one message is read.
SLOW_READERS: Final = 20
SETTLED_S: Final = 3.0
# One more client, which gets a token at once, and gives it back.
TAKE_EVERY_S: Final = 0.05
# Promised: all waits end within 5 s of SIGTERM, and memory stays flat.
ENDED_S_MAX: Final = 5.0
# Half of all grants come within, beside a flood; the first calls of a flood are not held back.
GRANT_P50_MS_MAX: Final = 100.0
GRANT_MS_MAX: Final = 5_000.0
GROWTH_MIB_MAX: Final = 15.0


@dataclass
class Crowd:
    """What has been measured.

    Args:
        connections: Clients, each with a connection and a wait of its own.
        rss_begin_mib: The broker's memory once all wait, and bogus requests come;
            *rss_end_mib* at the end.
        descriptors: Of the broker: before, once all wait, after the bogus requests.
        bogus: Requests that were refused meanwhile, and how many of them a second.
        oversized: Requests among them that were too large.
        flood_per_s: Requests a second of the client that heeds no limit.
        flood_answered: Those that the broker has looked at; gRPC turns away the rest.
        grants: Leases that one more client got meanwhile, and how long half of them took at
            most, and the longest.
        ended_s: From SIGTERM until the last wait has ended.
        unavailable: Waits that ended with UNAVAILABLE, as they should.
        early: Waits that ended before SIGTERM, as they should not.
    """

    connections: int = 0
    rss_begin_mib: float = 0.0
    rss_end_mib: float = 0.0
    descriptors: tuple[int, int, int] = (0, 0, 0)
    bogus: int = 0
    bogus_per_s: float = 0.0
    oversized: int = 0
    flood_per_s: float = 0.0
    flood_answered: int = 0
    grants: int = 0
    grant_p50_ms: float = 0.0
    grant_max_ms: float = 0.0
    ended_s: float = 0.0
    unavailable: int = 0
    early: int = 0

    @property
    def problems(self) -> list[str]:
        """What is not as promised."""
        growth_mib = self.rss_end_mib - self.rss_begin_mib
        _, during, after = self.descriptors
        checks = {
            f"{self.early} waits ended early": self.early == 0,
            f"{self.unavailable} waits ended as they should": self.unavailable == self.connections,
            f"the last wait ended after {self.ended_s} s": self.ended_s <= ENDED_S_MAX,
            f"memory grew by {growth_mib:.1f} MiB": growth_mib <= GROWTH_MIB_MAX,
            # The bothersome client's own connection may still be open.
            f"descriptors rose from {during} to {after}": after <= during + 2,
            "no request was refused": self.bogus > 0,
            "the flood did not come through": self.flood_answered > 0,
            "no lease was granted meanwhile": self.grants > 0,
            f"half of all grants took {self.grant_p50_ms} ms": (
                self.grant_p50_ms <= GRANT_P50_MS_MAX
            ),
            f"a grant took {self.grant_max_ms} ms": self.grant_max_ms <= GRANT_MS_MAX,
        }
        return [text for text, is_so in checks.items() if not is_so]


def memory_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def descriptors(pid: int) -> int:
    """Open descriptors of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def channel_to(address: str) -> grpc.aio.Channel:
    """A connection of its own."""
    return grpc.aio.insecure_channel(address, options=(*CLIENT, DIRECT))


async def wait_alone(channel: grpc.aio.Channel, number: int) -> tuple[grpc.StatusCode, float]:
    """Waits for more than there is; returns how and when that ended."""
    stub: Any = pb_grpc.TokenBrokerServiceStub(channel)
    request = pb.AcquireLeaseRequest(
        lease_id=f"crowd-{number}", holder=f"h{number}", operation="deal", units=60,
        tokens_per_unit=5, priority=pb.PRIORITY_LOW,
    )  # fmt: skip
    try:
        await stub.AcquireLease(request, wait_for_ready=True)
    except grpc.aio.AioRpcError as exc:
        return exc.code(), time.monotonic()
    return grpc.StatusCode.OK, time.monotonic()


async def bother(address: str, stop: asyncio.Event) -> Counter[grpc.StatusCode]:
    """Sends unusable requests until *stop*; returns how they were refused."""
    refused: Counter[grpc.StatusCode] = Counter()
    oversized = pb.AcquireLeaseRequest(holder="x" * OVERSIZED_BYTES)
    async with channel_to(address) as channel:
        stub: Any = pb_grpc.TokenBrokerServiceStub(channel)

        async def send() -> None:
            while not stop.is_set():
                is_large = refused.total() % OVERSIZED_EVERY == 0
                try:
                    await stub.AcquireLease(
                        oversized if is_large else pb.AcquireLeaseRequest(holder="x")
                    )
                except grpc.aio.AioRpcError as exc:
                    if exc.code() not in REFUSALS:
                        raise
                    refused[exc.code()] += 1

        await asyncio.gather(*(send() for _ in range(BOGUS_AT_ONCE)))
    return refused


async def take(address: str, stop: asyncio.Event) -> list[float]:
    """Leases a token and gives it back until *stop*; returns how long each grant took, in ms."""
    durations: list[float] = []
    async with AsyncBrokerClient(address, holder="taker") as client:
        while not stop.is_set():
            began_s = time.perf_counter()
            async with client.lease("take", priority=Priority.HIGH) as lease:
                durations.append(1000 * (time.perf_counter() - began_s))
                await lease.settle_not_sent()
            await asyncio.sleep(TAKE_EVERY_S)
    return durations


@asynccontextmanager
async def flooded(address: str, crowd: Crowd) -> AsyncIterator[None]:
    """Floods the broker from a process of its own while the context lasts."""
    command = (sys.executable, "-m", "tests.load.flood", address, f"--rate={FLOOD_PER_S}")
    process = await asyncio.create_subprocess_exec(
        *tethered([*command, "--seconds=86400"]), stdout=asyncio.subprocess.PIPE
    )
    try:
        yield
    finally:
        process.terminate()
        out, _ = await process.communicate()
    flood = json.loads(out)
    crowd.flood_per_s, crowd.flood_answered = flood["per_s"], flood["answered"]


def slow_reader(channel: grpc.aio.Channel) -> Any:
    """A stream of the bucket that no one reads."""
    stub: Any = pb_grpc.TokenBrokerServiceStub(channel)
    return stub.WatchBucket(pb.WatchBucketRequest())


async def gather_crowd(broker: RunningBroker, connections: int, seconds: float) -> Crowd:
    """Lets *connections* clients wait for *seconds* beside a bothersome one, then ends it all."""
    crowd, program = Crowd(connections), broker.program
    before = descriptors(program.pid)
    channels = [channel_to(broker.address) for _ in range(connections + SLOW_READERS)]
    waits = [
        asyncio.create_task(wait_alone(channel, number))
        for number, channel in enumerate(channels[:connections])
    ]
    streams = [slow_reader(channel) for channel in channels[connections:]]
    await _until(lambda: broker.bucket().waiting == connections)
    during = descriptors(program.pid)
    async with flooded(broker.address, crowd):
        await harass(broker, crowd, seconds)
        crowd.early = sum(wait.done() for wait in waits)
        crowd.descriptors = before, during, descriptors(program.pid)
        began_s = time.monotonic()
        os.kill(program.pid, signal.SIGTERM)
        ends = await asyncio.gather(*waits)
    crowd.ended_s = round(max(at_s for _, at_s in ends) - began_s, 2)
    crowd.unavailable = sum(code is grpc.StatusCode.UNAVAILABLE for code, _ in ends)
    for stream in streams:
        stream.cancel()
    for channel in channels:
        await channel.close(None)
    return crowd


async def harass(broker: RunningBroker, crowd: Crowd, seconds: float) -> None:
    """Sends unusable requests for *seconds*, and takes leases beside them."""
    stop, pid = asyncio.Event(), broker.program.pid
    bothering = asyncio.create_task(bother(broker.address, stop))
    taking = asyncio.create_task(take(broker.address, stop))
    # The buffers of the first large requests stay.
    await asyncio.sleep(SETTLED_S)
    crowd.rss_begin_mib = memory_mib(pid)
    await asyncio.sleep(seconds)
    stop.set()
    refused, grants_ms = await asyncio.gather(bothering, taking)
    crowd.bogus = refused.total()
    crowd.oversized = refused[grpc.StatusCode.RESOURCE_EXHAUSTED]
    crowd.bogus_per_s = round(crowd.bogus / (SETTLED_S + seconds), 1)
    crowd.rss_end_mib = memory_mib(pid)
    crowd.grants = len(grants_ms)
    crowd.grant_p50_ms = round(statistics.median(grants_ms), 1)
    crowd.grant_max_ms = round(max(grants_ms), 1)


async def _until(condition: Any, deadline_s: float = 120.0) -> None:
    give_up_s = time.monotonic() + deadline_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < give_up_s, "waited in vain"
        await asyncio.sleep(0.1)


def measure(connections: int, seconds: float, folder: Path) -> Crowd:
    """Runs the crowd against a broker and a simulator of its own, with an empty bucket."""
    simulator = launch_simulator(
        rate=5, initial_tokens=1, tick_seconds=3600, products=100, deals=10
    )
    programs: list[Program] = []
    try:
        broker = launch_broker(
            simulator.base_url, simulator.api_key, folder=folder, name="broker",
        )  # fmt: skip
        programs.append(broker.program)
        return asyncio.run(gather_crowd(broker, connections, seconds))
    finally:
        for program in programs:
            program.stop()
        simulator.stop()


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        crowd = measure(given.connections, given.seconds, Path(name))
    sys.stdout.write(json.dumps(asdict(crowd), indent=2) + "\n")
    sys.stdout.write("".join(f"FAILED: {problem}\n" for problem in crowd.problems))
    raise SystemExit(1 if crowd.problems else 0)


if __name__ == "__main__":
    main()
