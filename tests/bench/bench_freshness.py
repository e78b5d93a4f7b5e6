"""The age of deals when written: adaptive intervals, fixed ones, and the bound.

    python -m tests.bench.bench_freshness [--hours 8]

Hours are virtual. Deals come from the simulator's catalogue, which dates each price change
to the millisecond; tokens come from its account. Due scans, stops, intervals and the write
to Postgres are the fetcher's own code. One query polled evenly can't beat max(2.5 / rate, 1)
minutes: a page costs 5 tokens, and Keepa's cache holds it for 2 minutes. Several queries
share the bound of the square-root rule.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Final

from deploy.local.postgres import PostgresServer
from fetcher.postgres import migrate
from fetcher.queries.query import DealQuery, parse_query
from fetcher.replies.units import CACHE_MS, MS_PER_MINUTE, TOKENS_PER_DEAL_PAGE
from tests.bench.virtual_reader import HOUR_MS, TICK_MS, VirtualReader

Selections = Sequence[Mapping[str, object]]

WITHIN: Final = 1.25
RATES_ALONE: Final = (1, 2, 5, 20)
RATES_TOGETHER: Final = (2, 10)
FIXED_MINUTES: Final = (5, 15)

# Used items that dropped by half: about two in a minute, as the catalogue is set up.
ALONE: Final = ({"priceTypes": [2], "deltaPercentRange": [50, 100]},)
# Yields that differ by an order of magnitude.
TOGETHER: Final = (
    *ALONE,
    {"priceTypes": [0], "deltaPercentRange": [70, 100]},
    {"priceTypes": [1], "deltaPercentRange": [60, 100], "includeCategories": [165793011]},
    {"priceTypes": [9], "deltaPercentRange": [30, 100]},
)


@dataclass(frozen=True, slots=True)
class Freshness:
    """The result of some hours; the ages are means, in minutes."""

    age: float
    bound: float
    deals: int

    @property
    def ratio(self) -> float:
        """The mean age divided by the bound."""
        return self.age / self.bound


def queries(selections: Selections, every_minutes: int | None = None) -> list[DealQuery]:
    """The queries, adaptive or with a fixed interval."""
    head = {} if every_minutes is None else {"interval": f"{every_minutes}m"}
    common = {"domainId": 1, "dateRange": 3, "sortType": 1, "isRangeEnabled": True}
    return [
        parse_query(f"query-{number}", json.dumps({**head, "selection": {**common, **own}}))
        for number, own in enumerate(selections)
    ]


class Course:
    """Runs on one Postgres, each with a database of its own."""

    def __init__(self, server: PostgresServer, hours: float) -> None:
        self._server = server
        self._hours = hours
        self._numbers = count(1)

    def live(self, asked: Sequence[DealQuery], *, rate: int) -> Freshness:
        """Collects at *rate* tokens per tick."""
        url = self._server.create_database(f"freshness_{next(self._numbers)}")
        migrate(url)
        with VirtualReader(url, asked, rate=rate) as reader:
            reader.read_for(round(self._hours * HOUR_MS))
        return freshness(reader.ages_ms, rate)

    def compare(self, label: str, selections: Selections, rate: int) -> bool:
        """Prints one line of the table; returns whether adaptive intervals are near the bound."""
        adaptive = self.live(queries(selections), rate=rate)
        fixed = [self.live(queries(selections, minutes), rate=rate) for minutes in FIXED_MINUTES]
        ages = "".join(f"{some.age:8.2f}" for some in fixed)
        line = (
            f"{adaptive.deals:6} {adaptive.bound:8.2f} {adaptive.age:9.2f} {adaptive.ratio:6.2f}"
        )
        sys.stdout.write(f"{label:12} {rate:5} {line} {ages}\n")
        sys.stdout.flush()
        return adaptive.ratio <= WITHIN


def freshness(ages_ms: Mapping[str, Sequence[float]], rate: int) -> Freshness:
    """The mean age, and the least one that even polling allows for such yields."""
    per_minute = rate * MS_PER_MINUTE / TICK_MS
    yields = [len(ages) for ages in ages_ms.values() if ages]
    spread = sum(map(sqrt, yields)) ** 2 / sum(yields)
    return Freshness(
        age=fmean(age for ages in ages_ms.values() for age in ages) / MS_PER_MINUTE,
        bound=max(TOKENS_PER_DEAL_PAGE / 2 * spread / per_minute, CACHE_MS / 2 / MS_PER_MINUTE),
        deals=sum(yields),
    )


def main() -> None:
    """Prints the table; exits 1 if the adaptive intervals are too far from the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=8.0)
    hours = parser.parse_args().hours
    fixed = "".join(f"{minutes:6} m" for minutes in FIXED_MINUTES)
    sys.stdout.write("mean age in minutes: the bound, adaptive intervals, fixed ones\n")
    sys.stdout.write(f"queries       rate  deals    bound  adaptive  ratio {fixed}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        options = {"fsync": "off", "synchronous_commit": "off"}
        with PostgresServer(folder / "data", log_path=folder / "log", options=options) as server:
            course = Course(server, hours)
            near = [course.compare("one", ALONE, rate) for rate in RATES_ALONE]
            near += [course.compare("four", TOGETHER, rate) for rate in RATES_TOGETHER]
    raise SystemExit(0 if all(near) else 1)


if __name__ == "__main__":
    main()
