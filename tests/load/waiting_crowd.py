"""Very many connections, each with a request that waits; what that costs the broker.

python -m tests.load.waiting_crowd --connections 1000 --seconds 600
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from deploy.local.program import Program
from protos.channel.access import DIRECT
from protos.channel.options import CLIENT
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.fix_broker import RunningBroker, launch_broker
from tests.fix_simulator import launch_simulator

# Requests without a lease id, from one more client, as fast as it can send them.
BOGUS_AT_ONCE: Final = 64
SETTLED_S: Final = 3.0


@dataclass
class Crowd:
    """What has been measured.

    Args:
        connections: Clients, each with a connection and a wait of its own.
        rss_begin_mib: The broker's memory once all wait; *rss_end_mib* at the end.
        descriptors: Of the broker: before, once all wait, after the bogus requests.
        bogus: Requests that were refused meanwhile, and how many of them a second.
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
    ended_s: float = 0.0
    unavailable: int = 0
    early: int = 0


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


async def bother(address: str, stop: asyncio.Event) -> int:
    """Sends unusable requests until *stop*; returns how many were refused by name."""
    refused = 0
    async with channel_to(address) as channel:
        stub: Any = pb_grpc.TokenBrokerServiceStub(channel)

        async def send() -> None:
            nonlocal refused
            while not stop.is_set():
                try:
                    await stub.AcquireLease(pb.AcquireLeaseRequest(holder="x"))
                except grpc.aio.AioRpcError as exc:
                    if exc.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                        raise
                    refused += 1

        await asyncio.gather(*(send() for _ in range(BOGUS_AT_ONCE)))
    return refused


async def gather_crowd(broker: RunningBroker, connections: int, seconds: float) -> Crowd:
    """Lets *connections* clients wait for *seconds* beside a bothersome one, then ends it all."""
    crowd, program = Crowd(connections), broker.program
    before = descriptors(program.pid)
    channels = [channel_to(broker.address) for _ in range(connections)]
    waits = [
        asyncio.create_task(wait_alone(channel, number)) for number, channel in enumerate(channels)
    ]
    await _until(lambda: broker.bucket().waiting == connections)
    await asyncio.sleep(SETTLED_S)
    crowd.rss_begin_mib, during = memory_mib(program.pid), descriptors(program.pid)
    stop = asyncio.Event()
    bothering = asyncio.create_task(bother(broker.address, stop))
    await asyncio.sleep(seconds)
    stop.set()
    crowd.bogus = await bothering
    crowd.bogus_per_s = round(crowd.bogus / seconds, 1)
    crowd.rss_end_mib = memory_mib(program.pid)
    crowd.early = sum(wait.done() for wait in waits)
    crowd.descriptors = before, during, descriptors(program.pid)
    began_s = time.monotonic()
    os.kill(program.pid, signal.SIGTERM)
    ends = await asyncio.gather(*waits)
    crowd.ended_s = round(max(at_s for _, at_s in ends) - began_s, 2)
    crowd.unavailable = sum(code is grpc.StatusCode.UNAVAILABLE for code, _ in ends)
    for channel in channels:
        await channel.close(None)
    return crowd


async def _until(condition: Any, deadline_s: float = 120.0) -> None:
    give_up_s = time.monotonic() + deadline_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < give_up_s, "waited in vain"
        await asyncio.sleep(0.1)


def measure(connections: int, seconds: float, folder: Path) -> Crowd:
    """Runs the crowd against a broker and a simulator of its own, with an empty bucket."""
    simulator = launch_simulator(
        rate=5, initial_tokens=0, tick_seconds=3600, products=100, deals=10
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


if __name__ == "__main__":
    main()
