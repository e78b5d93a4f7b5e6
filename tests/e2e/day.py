"""A day of collecting, accelerated: a fleet, a simulator, a broker and Postgres, all real.

    python -m tests.e2e.day --seconds 240            # faults, kills, broker restarts
    python -m tests.e2e.day --seconds 240 --quiet    # no faults: the cost of the day

Deals, ticks, Keepa's cache and the intervals all run at the speed that fits a day into the
seconds. The exit code is 1 if anything was lost, doubled or overpaid.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from deploy.local.postgres import PostgresServer
from deploy.local.program import Program, stop_together
from fetcher.postgres import migrate
from tests.e2e.collection import write_query
from tests.e2e.day_report import DayReport, report_on
from tests.fix_broker import RunningBroker, environment, launch_broker
from tests.fix_simulator import RunningSimulator, launch_simulator

HOUR_S: Final = 3_600
KEEPA_TICK_S: Final = 60.2
# Slower than the rest: fewer and larger lumps bring as many tokens.
TICK_S: Final = 1.0
CACHE_S: Final = 120.0
# Share of the day after which no fault occurs, so the fleet can catch up.
TROUBLE_ENDS: Final = 0.85
START_TIMEOUT_S: Final = 60.0

# Times are shares of the day, so a short one has its storms too.
STORMS: Final = (
    ("error:status=503,path=/deal", 0.21, 0.02),
    ("throttle:path=/deal", 0.17, 0.02),
)
MISHAPS: Final = (
    "error:status=500,path=/deal,probability=0.02",
    "reset:path=/deal,probability=0.02",
    "cut:path=/deal,probability=0.02",
    "garbage:path=/deal,probability=0.01",
    "cut:path=/product,probability=0.05",
)


@dataclass(frozen=True, slots=True)
class DayPlan:
    """The settings of a day: *hours* of it pass in *seconds*, *rate* is tokens per minute."""

    hours: float = 24.0
    seconds: float = 240.0
    rate: int = 5
    deals: int = 1_500
    fetchers: int = 8
    kills: int = 16
    broker_restarts: int = 2
    seed: int = 1
    quiet: bool = False

    @property
    def speed(self) -> float:
        """The speed-up of time."""
        return self.hours * HOUR_S / self.seconds

    @property
    def simulator(self) -> dict[str, Any]:
        """The simulator's options."""
        lump = max(1, round(self.rate * self.speed / KEEPA_TICK_S * TICK_S))
        return {
            "rate": lump,
            "initial_tokens": lump,
            "tick_seconds": TICK_S,
            "cache_seconds": round(CACHE_S / self.speed, 3),
            "deal_speed": self.speed,
            "products": 4 * self.deals,
            "deals": self.deals,
            "seed": self.seed,
            "latency": "5-40",
        }


@dataclass
class Day:
    """A day under way; *kills* are the times of killed fetchers, in Unix milliseconds."""

    plan: DayPlan
    database_url: str
    folder: Path
    simulator: RunningSimulator
    broker: RunningBroker
    fleet: list[Program] = field(default_factory=list)
    kills_ms: list[int] = field(default_factory=list)

    def settings(self) -> dict[str, object]:
        """The settings of its fetchers."""
        return {
            "keepa_base_url": self.simulator.base_url,
            "keepa_api_key": self.simulator.api_key,
            "database_url": self.database_url,
            "broker_address": self.broker.address,
            "queries": write_queries(self.folder / "queries"),
            "poll_speed": self.plan.speed,
            # Without kills, claims need no short expiry.
            "claim_ttl_s": 30 if self.plan.quiet else 1,
            "retry_delay_s": 0.1,
            "log_format": "json",
        }

    def begin(self) -> None:
        """Starts the fleet, and waits until all of it is at work."""
        for number in range(self.plan.fetchers):
            name = f"fetcher-{number}"
            fetcher = Program(
                name,
                [sys.executable, "-m", "fetcher", "run"],
                environment=environment(**self.settings()),
                log_path=self.folder / f"{name}.log",
                folder=self.folder,
            )
            self.fleet.append(fetcher.start())
        self._await_fleet()

    def pass_by(self) -> None:
        """Runs the day with its faults."""
        started_s = time.monotonic()
        for share, happen in sorted(self._troubles(), key=lambda trouble: trouble[0]):
            time.sleep(max(0.0, started_s + share * self.plan.seconds - time.monotonic()))
            happen()

    def end(self) -> DayReport:
        """Stops the fleet and returns the report of the day."""
        self._await_fleet()
        stop_together(self.fleet)
        return report_on(
            database_url=self.database_url,
            simulator=self.simulator,
            options=self.plan.simulator,
            settled_tokens=self.broker.bucket().totals.spent_tokens,
            kills_ms=tuple(self.kills_ms),
            exit_codes=[fetcher.returncode for fetcher in self.fleet],
            output="".join(fetcher.output() for fetcher in self.fleet),
        )

    def _await_fleet(self) -> None:
        """Waits until every fetcher has begun; before that, none could end in good order."""
        for number, fetcher in enumerate(self.fleet):
            starts = 1 + len(range(number, len(self.kills_ms), len(self.fleet)))
            fetcher.await_ready(partial(has_started, fetcher, starts), START_TIMEOUT_S)

    def _troubles(self) -> list[tuple[float, Callable[[], object]]]:
        evening: list[tuple[float, Callable[[], object]]] = [(1.0, lambda: None)]
        if self.plan.quiet:
            return evening
        kills = [
            (TROUBLE_ENDS * (number + 1) / (self.plan.kills + 1), self._kill)
            for number in range(self.plan.kills)
        ]
        restarts = [
            (TROUBLE_ENDS * (number + 0.6) / self.plan.broker_restarts, self._restart_broker)
            for number in range(self.plan.broker_restarts)
        ]
        faults = [(0.0, self._set_faults), (TROUBLE_ENDS, self.simulator.clear_faults)]
        return [*evening, *kills, *restarts, *faults]

    def _set_faults(self) -> None:
        for fault in MISHAPS:
            self.simulator.set_fault(fault)
        for fault, every, lasting in STORMS:
            every_s, for_s = every * self.plan.seconds, lasting * self.plan.seconds
            self.simulator.set_fault(f"{fault},after={every_s / 2},every={every_s},for={for_s}")

    def _kill(self) -> None:
        victim = self.fleet[len(self.kills_ms) % len(self.fleet)]
        victim.kill()
        victim.wait(90)
        self.kills_ms.append(int(time.time() * 1000))
        victim.start()

    def _restart_broker(self) -> None:
        self.broker.program.kill()
        self.broker.program.wait(90)
        self.broker.start()


def has_started(fetcher: Program, times: int) -> bool:
    """Whether *fetcher* works since its latest start."""
    return fetcher.output().count("fetcher started") >= times


def write_queries(folder: Path) -> Path:
    """A wide query, one with details to buy, and one with an order that supports no watermark."""
    if not folder.exists():
        write_query(folder, "wide", {}, priority="high", full_scan_every="6h")
        narrow = {"priceTypes": [2], "isRangeEnabled": True, "deltaPercentRange": [40, 100]}
        write_query(folder, "narrow", narrow, enrichment={"stats_days": 90})
        drops = {"isRangeEnabled": True, "deltaPercentRange": [20, 100]}
        write_query(folder, "drops", drops, sort=4)
    return folder


def live_through(plan: DayPlan, database_url: str, folder: Path) -> DayReport:
    """Runs a whole day with a broker and a simulator of its own."""
    simulator = launch_simulator(**plan.simulator)
    try:
        broker = launch_broker(
            simulator.base_url,
            simulator.api_key,
            folder=folder,
            name="broker",
            broker_recovery_grace_ms=500,
        )
        day = Day(plan, database_url, folder, simulator, broker)
        try:
            day.begin()
            day.pass_by()
            return day.end()
        finally:
            stop_together([*day.fleet, broker.program])
    finally:
        simulator.stop()


def main() -> None:
    """Runs a day on a Postgres of its own and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    usual = DayPlan()
    parser.add_argument("--seconds", type=float, default=usual.seconds)
    parser.add_argument("--hours", type=float, default=usual.hours)
    parser.add_argument("--rate", type=int, default=usual.rate)
    parser.add_argument("--deals", type=int, default=usual.deals)
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--quiet", action="store_true", help="without any faults")
    plan = DayPlan(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with PostgresServer(folder / "data", log_path=folder / "postgres.log") as server:
            url = server.create_database("day")
            migrate(url)
            report = live_through(plan, url, folder)
    sys.stdout.write(json.dumps(report.figures(), indent=2) + "\n")
    problems = report.problems(quiet=plan.quiet)
    sys.stdout.write("".join(f"FAILED: {line}\n" for line in problems))
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
