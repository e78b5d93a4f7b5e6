"""Four unmodified PyPI clients on one account: through the gateway, and directly.

    python -m tests.bench.bench_sharing [--hours 2] [--tick-seconds 0.5]

Prints two rows per plan and mix. The simulator ticks fast: an hour takes half a minute. The
programs reckon in Keepa's minutes all the same (`keepa_program`).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.keepa_simulator.options import DEMO_KEY
from deploy.local.tether import tethered
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.fix_broker import RunningBroker, launch_broker
from tests.fix_gateway import launch_gateway
from tests.fix_simulator import RunningSimulator, launch_simulator

ROOT: Final = Path(__file__).parents[2]
KEEPA_TICK_S: Final = 60.2
TICKS_PER_HOUR: Final = 60
PROGRAMS: Final = ("sync", "async", "sync", "async")
PLANS: Final = (5, 25)
KINDS: Final = ("deals", "mixed")
# The broker's default policy: a lone call may take the refill of so long below zero.
DEBT_HORIZON_S: Final = 15 * 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """What Keepa saw of one run.

    Args:
        calls: Calls that were answered.
        refused: Calls that Keepa refused (429).
        lowest: The lowest balance, in tokens.
        spent_share: Tokens spent of those generated, between the first and the last call.
        in_hand_share: What one largest call is of them: the next one may be half saved up.
        largest: The largest cost of a call, in tokens.
        apart: How far apart the programs are, in tokens; None where they share a key.
    """

    calls: int
    refused: int
    lowest: int
    spent_share: float
    in_hand_share: float
    largest: int
    apart: int | None

    @property
    def row(self) -> str:
        """The outcome as a line of a table."""
        apart = "—" if self.apart is None else f"{self.apart} (largest call {self.largest})"
        return (
            f"{self.calls:5} | {self.refused:7} | {self.lowest:7} | {self.spent_share:7.2%}"
            f" ±{self.in_hand_share:.1%} | {apart}"
        )


def outcome(calls: list[dict[str, Any]], shares: Counter[str] | None) -> Outcome:
    """Reckons *calls* of the simulator's journal; *shares* are tokens by program."""
    paid = [call for call in calls if call["path"] != "/token"]
    answered = [call for call in paid if call["status"] == 200]
    first, last = answered[0], answered[-1]
    spent = sum(call["consumed"] for call in answered[1:])
    generated = spent + last["after"] - first["after"]
    largest = max(call["consumed"] for call in answered)
    return Outcome(
        calls=len(answered),
        refused=sum(call["status"] == 429 for call in paid),
        lowest=min(call["after"] for call in answered),
        spent_share=spent / generated,
        in_hand_share=largest / generated,
        largest=largest,
        apart=max(shares.values()) - min(shares.values()) if shares else None,
    )


@contextmanager
def programs(base_url: str, keys: list[str], kind: str, speed: float) -> Iterator[None]:
    """Runs the clients' processes until the context ends."""
    running = [
        subprocess.Popen(
            tethered(
                [sys.executable, "-m", "tests.bench.keepa_program", base_url, key, style, kind,
                 str(speed)]
            ),
            cwd=ROOT,
        )
        for key, style in zip(keys, PROGRAMS, strict=True)
    ]  # fmt: skip
    try:
        yield
    finally:
        for process in running:
            # In the client, an exception out of a signal can be swallowed.
            process.kill()
        for process in running:
            process.wait()


@contextmanager
def paused(broker: RunningBroker, keepa: RunningSimulator) -> Iterator[None]:
    """Grants nothing within the context. At its end every program waits, at an empty bucket."""
    with operator(broker) as stub:
        stub.PauseGrants(pb.PauseGrantsRequest())
        yield
        await_standstill(broker)
        keepa.change_account(balance=0)
        stub.SyncBucket(pb.SyncBucketRequest())
        stub.ResumeGrants(pb.ResumeGrantsRequest())


@contextmanager
def operator(broker: RunningBroker) -> Iterator[pb_grpc.TokenBrokerServiceStub]:
    """The broker's service, within the context."""
    with broker.access.channel(broker.address) as channel:
        yield pb_grpc.TokenBrokerServiceStub(channel)


def await_standstill(broker: RunningBroker) -> None:
    """Waits until every program waits for tokens, so that no call is under way."""
    while (bucket := broker.bucket()).waiting < len(PROGRAMS) or bucket.open_leases:
        time.sleep(0.1)


def await_calls(keepa: RunningSimulator) -> int:
    """Waits until all programs call, and empties the bucket; returns the journal's number."""
    while keepa.stats()["calls"] < 2 * len(PROGRAMS):
        time.sleep(0.1)
    keepa.change_account(balance=0)
    return int(keepa.stats()["calls"])


def await_ticks(keepa: RunningSimulator, tokens: int) -> None:
    """Waits until *tokens* have been generated."""
    begun = keepa.stats()["refilled"]
    while keepa.stats()["refilled"] < begun + tokens:
        time.sleep(0.2)


def run(rate: int, kind: str, *, ticks: int, tick_s: float, shared: bool, folder: Path) -> Outcome:
    """One run; *shared* goes through the gateway."""
    keepa = launch_simulator(
        rate=rate, tick_seconds=tick_s, initial_tokens=0, products=2_000, deals=500
    )
    speed = KEEPA_TICK_S / tick_s
    try:
        if not shared:
            with programs(keepa.base_url, [DEMO_KEY] * len(PROGRAMS), kind, speed):
                since = await_calls(keepa)
                await_ticks(keepa, ticks * rate)
            return outcome(keepa.calls(since), None)
        broker = launch_broker(
            keepa.base_url,
            keepa.api_key,
            folder=folder,
            name=f"broker-{rate}-{kind}",
            broker_debt_horizon=f"{DEBT_HORIZON_S / speed * 1000:.0f}ms",
        )
        try:
            # On a busy machine, the first program waits long for the last one.
            with launch_gateway(
                keepa, broker.address, folder=folder, gateway_max_wait="12h"
            ) as gateway:
                names = [f"program-{number}" for number in range(len(PROGRAMS))]
                with ExitStack() as stack:
                    with paused(broker, keepa):
                        stack.enter_context(programs(gateway.url, names, kind, speed))
                    await_ticks(keepa, ticks * rate)
                    # Shares can be compared at a moment only at which nothing is under way.
                    with operator(broker) as stub:
                        stub.PauseGrants(pb.PauseGrantsRequest())
                    await_standstill(broker)
                    shares = gateway.tokens()
            return outcome(keepa.calls(), shares)
        finally:
            broker.program.stop()
    finally:
        keepa.stop()


def main() -> None:
    """Prints the table; exits with 1 if the gateway's rows are not as promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=2.0, help="simulated hours of each run")
    parser.add_argument("--tick-seconds", type=float, default=0.5, help="a tick at the simulator")
    parser.add_argument("--plans", type=int, nargs="*", default=PLANS, help="tokens a tick")
    parser.add_argument("--kinds", nargs="*", default=KINDS, help="deals, mixed")
    arguments = parser.parse_args()
    ticks = round(arguments.hours * TICKS_PER_HOUR)
    kept = True
    print(  # noqa: T201 - the result
        "tokens a tick, calls | way     | calls | refused | lowest  | spent          |"
        " apart, tokens"
    )
    with tempfile.TemporaryDirectory() as folder:
        for rate in arguments.plans:
            for kind in arguments.kinds:
                for shared in (True, False):
                    found = run(rate, kind, ticks=ticks, tick_s=arguments.tick_seconds,
                                shared=shared, folder=Path(folder))  # fmt: skip
                    way = "gateway" if shared else "direct "
                    row = f"{rate:13}, {kind} | {way} | {found.row}"
                    print(row, flush=True)  # noqa: T201 - the result
                    kept &= not shared or is_as_promised(found, rate)
    sys.exit(0 if kept else 1)


def is_as_promised(found: Outcome, rate: int) -> bool:
    """Whether nothing was refused or wasted, and shares are equal.

    In a short run, what is in hand for the next call may be more than a hundredth.
    """
    return (
        found.refused == 0
        and found.lowest >= -rate * DEBT_HORIZON_S / KEEPA_TICK_S
        and found.spent_share >= min(0.99, 1 - found.in_hand_share)
        and found.apart is not None
        and found.apart <= found.largest
    )


if __name__ == "__main__":
    main()
