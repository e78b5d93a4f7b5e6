"""Pages a minute of one fetcher process, by its calls in flight: where it saturates.

Each reply takes 400 ms at the simulator, and there are always pages to read and tokens for
them. The processor time of the fetcher shows whether the process itself is what limits it.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from deploy.local.postgres import PostgresServer
from deploy.local.program import Program
from fetcher.postgres import migrate
from tests.bench.processes import cpu_s, resident_mb
from tests.bench.table import Row, at_most
from tests.fix_broker import environment, launch_broker
from tests.fix_fetcher import SELECTION
from tests.fix_simulator import RunningSimulator, launch_simulator

IN_FLIGHT: Final = (1, 4, 16, 64)
QUICK_IN_FLIGHT: Final = (1, 8)
SECONDS: Final = 20.0
QUICK_SECONDS: Final = 6.0
LATENCY_MS: Final = 400
# More scans than calls: each scan opens its pages one after the other.
QUERIES: Final = 80
RATE: Final = 1_000_000
MEGABYTES_GOAL: Final = at_most(2)


def pages(keepa: RunningSimulator) -> int:
    """Calls for pages so far."""
    return int(keepa.stats()["spent"]) // 5


def measure(count: int, seconds: float, folder: Path) -> tuple[float, float, float]:
    """Pages a minute with *count* in flight, the processor's share, and resident megabytes."""
    queries = folder / "queries"
    queries.mkdir()
    for number in range(QUERIES):
        chosen = {**SELECTION, "currentRange": [500 + number, 30_100]}
        (queries / f"q{number}.json").write_text(json.dumps({"selection": chosen}))
    with ExitStack() as stack:
        keepa = launch_simulator(rate=RATE, tick_seconds=3_600, products=20_000, deals=5_000)
        stack.callback(keepa.stop)
        keepa.set_fault(f"latency:ms={LATENCY_MS},path=/deal")
        server = stack.enter_context(PostgresServer(folder / "data", log_path=folder / "log"))
        database_url = server.create_database("deals")
        migrate(database_url)
        broker = launch_broker(keepa.base_url, keepa.api_key, folder=folder, name="broker")
        stack.callback(broker.program.stop)
        fetcher = Program(
            "fetcher",
            [sys.executable, "-m", "fetcher", "run"],
            environment=environment(
                keepa_base_url=keepa.base_url, keepa_api_key=keepa.api_key,
                broker_address=broker.address, database_url=database_url, queries=queries,
                calls_in_flight=count, poll_speed=1_000, log_level="warning",
            ),
            log_path=folder / "fetcher.log",
            folder=folder,
        )  # fmt: skip
        fetcher.start()
        stack.callback(fetcher.stop)
        while pages(keepa) < 2 * count:
            time.sleep(0.2)
        before, used_s, began_s = pages(keepa), cpu_s(fetcher.pid), time.monotonic()
        time.sleep(seconds)
        took_s = time.monotonic() - began_s
        read, share = pages(keepa) - before, (cpu_s(fetcher.pid) - used_s) / took_s
        return read / took_s * 60, share, resident_mb(fetcher.pid)


def rows(quick: bool) -> Iterator[Row]:  # noqa: FBT001 - as all benches
    """Pages a minute, then the memory of a call."""
    found: dict[int, tuple[float, float, float]] = {}
    for count in QUICK_IN_FLIGHT if quick else IN_FLIGHT:
        with tempfile.TemporaryDirectory(prefix="keepa-bench-") as name:
            folder = Path(name)
            folder.chmod(0o755)
            found[count] = measure(count, QUICK_SECONDS if quick else SECONDS, folder)
        rate, share, _ = found[count]
        bound = f"{count * 60_000 / LATENCY_MS:,.0f}"
        yield Row(
            f"pages a minute of one fetcher, {count} in flight",
            rate,
            "",
            beside=f"Keepa's replies allow {bound}; the fetcher takes {share:.0%} of a core",
        )
    fewest, most = min(found), max(found)
    yield Row(
        "memory of a further call in flight",
        (found[most][2] - found[fewest][2]) / (most - fewest),
        "MB",
        MEGABYTES_GOAL,
        f"{found[fewest][2]:.0f} MB with {fewest}, {found[most][2]:.0f} MB with {most}",
    )
