"""How the simulator scales: start, pages and memory, from the default to a million products.

Run with ``python -m tests.bench.bench_simulator``. Every line measures a fresh process over
HTTP, so the figures are those of a client.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any, Final

import requests

from tests.fix_simulator import RunningSimulator, launch_simulator

# (products, deals at any moment)
SIZES: Final = ((20_000, 5_000), (1_000_000, 5_000), (1_000_000, 20_000))
PAGES: Final = 30
AIM_PAGE_MS: Final = 50
AIM_START_S: Final = 10
SELECTION: Final[dict[str, Any]] = {
    "domainId": 1,
    "priceTypes": [2],
    "dateRange": 3,
    "isRangeEnabled": True,
    "deltaPercentRange": [50, -1],
    "currentRange": [500, 30100],
    "sortType": 1,
}


def page_ms(simulator: RunningSimulator, session: requests.Session, **fields: Any) -> float:
    """Milliseconds for one page, including the client's own work."""
    selection = json.dumps(SELECTION | fields)
    parameters = {"key": simulator.api_key, "selection": selection}
    started = time.perf_counter()
    reply = session.get(f"{simulator.base_url}/deal", params=parameters, timeout=60)
    elapsed_ms = (time.perf_counter() - started) * 1000
    reply.raise_for_status()
    return elapsed_ms


def server_ms(simulator: RunningSimulator) -> list[int]:
    """The server's own times of each page."""
    return [call["duration_ms"] for call in simulator.calls() if call["path"] == "/deal"]


def resident_mb(simulator: RunningSimulator) -> float:
    """Resident memory of the server."""
    status = Path(f"/proc/{simulator.process.pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def measure(products: int, deals: int) -> bool:
    """Prints the figures of one size; returns whether they meet the aims."""
    started = time.perf_counter()
    simulator = launch_simulator(products=products, deals=deals, rate=10_000, deal_speed=60)
    start_s = time.perf_counter() - started
    with requests.Session() as session:
        first_ms = page_ms(simulator, session)
        # Different selections, so no page comes from the cache.
        times = [page_ms(simulator, session, currentRange=[500 + n, -1]) for n in range(PAGES)]
    memory_mb = resident_mb(simulator)
    own = server_ms(simulator)
    simulator.stop()
    median_ms, worst_ms = statistics.median(times), max(times)
    print(  # noqa: T201 - the result
        f"{products:>9,} products {deals:>7,} deals: start {start_s:5.2f} s, "
        f"first page {first_ms:.0f} ms, page median {median_ms:.0f} ms, worst {worst_ms:.0f} ms "
        f"(server: {statistics.median(own):.0f} ms), memory {memory_mb:.0f} MB"
    )
    return start_s <= AIM_START_S and median_ms <= AIM_PAGE_MS


def main() -> None:
    """Measures all sizes; exits 1 if one misses the aims."""
    results = [measure(products, deals) for products, deals in SIZES]
    raise SystemExit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
