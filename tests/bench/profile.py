"""Where the broker spends its time: collapsed stacks, as flame graph programs take them.

    python -m tests.bench.profile [--seconds 10] [--in-flight 64] [--file FILE]

Drives a broker with pairs of AcquireLease and SettleLease as `bench_broker` does. Prints the
functions with the largest share of their own, and of the time below them.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

import grpc
import uvloop

from deploy.keepa_simulator.options import DEMO_KEY
from protos.channel import options
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.bench.bench_broker import FULL_TOKENS, Server, round_of
from tests.fix_broker import launch_broker
from tests.fix_simulator import launch_simulator

FILE: Final = Path(".local/broker.folded")
SHOWN: Final = 40
# Above it stands the start; by itself it waits for the next event, or is in gRPC's own code.
LOOP: Final = "asyncio.runners.run"


async def drive(pid: int, address: str, in_flight: int, seconds: float) -> float:
    """Makes pairs for so long; returns how many a second."""
    async with grpc.aio.insecure_channel(address, options=options.CLIENT) as channel:
        server = Server(pid, pb_grpc.TokenBrokerServiceStub(channel), FULL_TOKENS)
        return (await round_of(server, in_flight, seconds))[0]


def shares(folded: str) -> tuple[Counter[str], Counter[str], int]:
    """Samples in each function itself, and in it or below; and the samples of work in all."""
    own: Counter[str] = Counter()
    below: Counter[str] = Counter()
    total = 0
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        names = stack.rpartition(LOOP)[2].strip(";").split(";")
        if LOOP not in stack or not names[0]:
            continue
        total += int(count)
        own[names[-1]] += int(count)
        for name in set(names):
            below[name] += int(count)
    return own, below, total


def main() -> None:
    """Writes the file and prints the largest shares."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.profile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long it is driven")
    parser.add_argument("--in-flight", type=int, default=64, help="pairs at once")
    parser.add_argument("--file", type=Path, default=FILE, help=f"collapsed stacks ({FILE})")
    given = parser.parse_args()
    given.file.parent.mkdir(parents=True, exist_ok=True)
    keepa = launch_simulator(rate=1_000_000, tick_seconds=3_600)
    try:
        keepa.change_account(balance=FULL_TOKENS)
        with tempfile.TemporaryDirectory(prefix="keepa-bench-") as name:
            broker = launch_broker(
                keepa.base_url, DEMO_KEY, folder=Path(name), name="broker", log_level="warning",
                module=("tests.bench.sampled", str(given.file.absolute()), "broker"),
            )  # fmt: skip
            try:
                pid, address = broker.program.pid, broker.address
                rate = uvloop.run(drive(pid, address, given.in_flight, given.seconds))
            finally:
                broker.program.stop()
    finally:
        keepa.stop()
    own, below, total = shares(given.file.read_text())
    sys.stdout.write(f"{rate:,.0f} pairs/s, sampled; {total} samples of work\n")
    for title, counts in (("of its own", own), ("with all below", below)):
        sys.stdout.write(f"\n{title}\n")
        for function, count in counts.most_common(SHOWN):
            sys.stdout.write(f"  {count / total:6.1%}  {function}\n")
    sys.stdout.write(f"\nfor flame graphs: {given.file}\n")


if __name__ == "__main__":
    main()
