"""Pages a minute of one fetcher process, by its calls in flight: where it saturates.

Each reply takes 400 ms at the simulator, and there are always pages to read and tokens for
them. The processor time of each program shows what limits it: all of them share the machine.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.local.postgres import PostgresServer
from deploy.local.program import Program
from fetcher.postgres import migrate
from tests.bench.processes import family_cpu_s, resident_mb
from tests.bench.table import Row, at_most
from tests.fix_broker import environment, launch_broker
from tests.fix_fetcher import SELECTION
from tests.fix_simulator import RunningSimulator, launch_simulator

IN_FLIGHT: Final = (1, 4, 16, 64)
QUICK_IN_FLIGHT: Final = (1, 8)
SECONDS: Final = 12.0
QUICK_SECONDS: Final = 6.0
LATENCY_MS: Final = 400
# More scans than calls: each scan opens its pages one after the other.
QUERIES: Final = 80
RATE: Final = 1_000_000
MEGABYTES_GOAL: Final = at_most(2)


@dataclass(frozen=True, slots=True)
class Found:
    """Pages a minute, each program's share of a core, and the fetcher's resident megabytes."""

    rate: float
    shares: dict[str, float]
    megabytes: float


def pages(keepa: RunningSimulator) -> int:
    """Calls for pages so far."""
    return int(keepa.stats()["spent"]) // 5


def measure(count: int, seconds: float, folder: Path) -> Found:
    """One fetcher with *count* calls of each kind in flight."""
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
        assert server.pid is not None
        programs = {
            "fetcher": fetcher.pid,
            "Postgres": server.pid,
            "simulator": keepa.process.pid,
            "broker": broker.program.pid,
        }
        before, began_s = pages(keepa), time.monotonic()
        used_s = {name: family_cpu_s(pid) for name, pid in programs.items()}
        time.sleep(seconds)
        took_s, read = time.monotonic() - began_s, pages(keepa) - before
        shares = {
            name: (family_cpu_s(pid) - used_s[name]) / took_s for name, pid in programs.items()
        }
        return Found(read / took_s * 60, shares, resident_mb(fetcher.pid))


def rows(quick: bool) -> Iterator[Row]:  # noqa: FBT001 - as all benches
    """Pages a minute, then the memory of a call."""
    found: dict[int, Found] = {}
    for count in QUICK_IN_FLIGHT if quick else IN_FLIGHT:
        with tempfile.TemporaryDirectory(prefix="keepa-bench-") as name:
            folder = Path(name)
            folder.chmod(0o755)
            found[count] = measure(count, QUICK_SECONDS if quick else SECONDS, folder)
        bound = f"{count * 60_000 / LATENCY_MS:,.0f}"
        taken = ", ".join(f"{name} {share:.0%}" for name, share in found[count].shares.items())
        yield Row(
            f"pages a minute of one fetcher, {count} in flight",
            found[count].rate,
            "",
            beside=f"Keepa's replies allow {bound}; of a core: {taken}",
        )
    fewest, most = min(found), max(found)
    yield Row(
        "memory of a further call in flight",
        (found[most].megabytes - found[fewest].megabytes) / (most - fewest),
        "MB",
        MEGABYTES_GOAL,
        ", ".join(f"{each.megabytes:.0f} MB with {count}" for count, each in found.items()),
    )
