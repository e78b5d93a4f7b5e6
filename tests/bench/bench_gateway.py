"""What the gateway adds to a call that need not wait, and how many calls it carries.

    python -m tests.bench.bench_gateway

Everything runs on this machine: the client, the simulator, the broker and the gateway, each
a process of its own. The throughput is also given by the gateway's own processor time, as
the others share the cores with it.
"""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.fix_broker import launch_broker
from tests.fix_gateway import GatewayProcess, launch_gateway
from tests.fix_simulator import launch_simulator

PAIRS: Final = 400
CALLS: Final = 3_000
AT_ONCE: Final = 32
QUERY: Final = "category?domain=1&category=0"


async def timed(http: aiohttp.ClientSession, url: str) -> float:
    """Makes a call; returns its duration in milliseconds."""
    began_s = time.perf_counter()
    async with http.get(url) as reply:
        await reply.read()
        assert reply.status == 200, reply.status
    return (time.perf_counter() - began_s) * 1000


def processor_s(gateway: GatewayProcess) -> float:
    """Processor time of the gateway so far, in seconds."""
    families = text_string_to_metric_families(gateway.metrics())
    return next(
        family.samples[0].value for family in families if family.name == "process_cpu_seconds"
    )


async def measure(direct_url: str, gateway: GatewayProcess) -> None:
    """Prints both measures."""
    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    async with aiohttp.ClientSession(connector=connector) as http:
        for url in (direct_url, f"{gateway.url}/{QUERY}&key=bench"):
            await timed(http, url)
        # In turns, so that the machine's other work hits both alike.
        direct_ms, through_ms = [], []
        for number in range(PAIRS):
            direct_ms.append(await timed(http, direct_url))
            through_ms.append(await timed(http, f"{gateway.url}/{QUERY}&key=bench&n={number}"))
        before_s, began_s = processor_s(gateway), time.perf_counter()
        calls = iter(range(CALLS))

        async def caller() -> None:
            for number in calls:
                await timed(http, f"{gateway.url}/{QUERY}&key=bench&m={number}")

        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
        took_s, used_s = time.perf_counter() - began_s, processor_s(gateway) - before_s
    direct, through = statistics.median(direct_ms), statistics.median(through_ms)
    print(  # noqa: T201 - the result
        f"direct p50 {direct:.2f} ms, through the gateway {through:.2f} ms:"
        f" {through - direct:.2f} ms added\n"
        f"{CALLS / took_s:.0f} calls/s on this machine, {CALLS / used_s:.0f} calls/s of one core"
    )


def main() -> None:
    """Runs the measures."""
    keepa = launch_simulator(rate=1_000_000, tick_seconds=3600, products=100, deals=10)
    direct_url = f"{keepa.base_url}/{QUERY}&key={keepa.api_key}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = launch_broker(keepa.base_url, keepa.api_key, folder=folder, name="broker")
        try:
            with launch_gateway(keepa, broker.address, folder=folder) as gateway:
                asyncio.run(measure(direct_url, gateway))
        finally:
            broker.program.stop()
            keepa.stop()


if __name__ == "__main__":
    main()
