"""What the gateway adds to a call that need not wait, and how many calls it carries.

Everything runs on this machine: the client, the simulator, the broker and the gateway, each
a process of its own. Beside the gateway runs a plain reverse proxy on the same library, which
leases nothing. Calls a second are given by each one's own processor time, as the other
processes share the cores with it.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import sysconf
from pathlib import Path
from typing import Final

import aiohttp

from deploy.keepa_simulator.options import DEMO_KEY
from deploy.local.tether import tethered
from tests.bench.table import Row, at_least, at_most
from tests.fix_broker import launch_broker
from tests.fix_gateway import launch_gateway
from tests.fix_simulator import launch_simulator

ROUNDS: Final = 300
QUICK_ROUNDS: Final = 60
WARM_UP: Final = 20
CALLS: Final = 2_000
QUICK_CALLS: Final = 400
AT_ONCE: Final = 32
QUERY: Final = "category?domain=1&category=0"
WHY: Final = (
    "a call through it is one to Keepa and two to the broker, and each is a turn of a core"
)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to Keepa: an address, a key, and the process in between."""

    name: str
    url: str
    key: str
    pid: int

    def target(self, number: int) -> str:
        """The URL of call *number*; each is another, so that none is shared."""
        return f"{self.url}/{QUERY}&key={self.key}&n={number}"

    @property
    def processor_s(self) -> float:
        """Processor time of the process so far, in seconds (proc(5), fields 14 and 15)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Load:
    """What many *calls* at once took, in seconds."""

    calls: int
    took_s: float
    used_s: float

    @property
    def calls_per_core(self) -> float:
        """Calls for each second of the process's own processor time."""
        return self.calls / self.used_s


async def timed(http: aiohttp.ClientSession, url: str) -> float:
    """Makes a call; returns its duration in milliseconds."""
    began_s = time.perf_counter()
    async with http.get(url) as reply:
        await reply.read()
        assert reply.status == 200, reply.status
    return (time.perf_counter() - began_s) * 1000


async def medians_ms(http: aiohttp.ClientSession, ways: list[Way], rounds: int) -> list[float]:
    """The median duration of a lone call by each way."""
    durations: list[list[float]] = [[] for _ in ways]
    # In turns, so that the machine's other work hits all alike.
    for number in range(WARM_UP + rounds):
        for way, found in zip(ways, durations, strict=True):
            duration_ms = await timed(http, way.target(number))
            if number >= WARM_UP:
                found.append(duration_ms)
    return [statistics.median(found) for found in durations]


async def loaded(http: aiohttp.ClientSession, way: Way, calls: int) -> Load:
    """Makes so many *calls*, some at once."""
    used_s, began_s = way.processor_s, time.perf_counter()
    numbers = iter(range(calls))

    async def caller() -> None:
        for number in numbers:
            await timed(http, way.target(-number))

    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    return Load(calls, time.perf_counter() - began_s, way.processor_s - used_s)


async def measure(direct: Way, plain: Way, gateway: Way, *, quick: bool) -> list[Row]:
    """What the gateway adds to a lone call, and the calls of its processor time."""
    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    async with aiohttp.ClientSession(connector=connector) as http:
        rounds = QUICK_ROUNDS if quick else ROUNDS
        direct_ms, plain_ms, gateway_ms = await medians_ms(http, [direct, plain, gateway], rounds)
        calls = QUICK_CALLS if quick else CALLS
        loads = [await loaded(http, way, calls) for way in (plain, gateway)]
    per_core = [load.calls_per_core for load in loads]
    return [
        Row(
            "what the gateway adds to a lone call, p50",
            gateway_ms - direct_ms,
            "ms",
            at_most(5),
            f"{plain_ms - direct_ms:.2f} ms by a plain proxy; {direct_ms:.2f} ms the call itself",
            WHY,
            {"ms": [direct_ms, plain_ms, gateway_ms]},
        ),
        Row(
            f"calls through the gateway for a second of its processor time, {AT_ONCE} at once",
            per_core[1],
            "calls/s",
            at_least(300),
            f"{per_core[0]:,.0f} by a plain proxy",
            WHY,
            {
                "calls_per_core": per_core,
                "calls_per_s": [load.calls / load.took_s for load in loads],
            },
        ),
    ]


@contextmanager
def launch_proxy(base_url: str) -> Iterator[Way]:
    """Runs the plain proxy until the context ends."""
    command = tethered([sys.executable, "-m", "tests.bench.plain_proxy", base_url])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            yield Way("plain proxy", f"http://127.0.0.1:{port}", DEMO_KEY, process.pid)
        finally:
            process.terminate()


def rows(quick: bool) -> Iterator[Row]:  # noqa: FBT001 - as all benches
    """Both measures, with the processes that they need."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keepa = launch_simulator(rate=1_000_000, tick_seconds=3600, products=100, deals=10)
        stack.callback(keepa.stop)
        broker = launch_broker(keepa.base_url, keepa.api_key, folder=folder, name="broker")
        stack.callback(broker.program.stop)
        plain = stack.enter_context(launch_proxy(keepa.base_url))
        served = stack.enter_context(launch_gateway(keepa, broker.address, folder=folder))
        direct = Way("direct", keepa.base_url, DEMO_KEY, keepa.process.pid)
        gateway = Way("gateway", served.url, "bench", served.program.pid)
        yield from asyncio.run(measure(direct, plain, gateway, quick=quick))
