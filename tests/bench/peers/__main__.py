"""Tokens turned into data: the broker beside other ways to share one account.

    python -m tests.bench.peers [--hours 2] [--quick] [-o json]

All policies run in the same virtual world: the same model of Keepa, delays, costs and endless
demand. `used` is what was spent of the generated tokens, without those left at the end that
can't pay for the next call; above 100 % it was borrowed. `stalled` is the share of time in
which Keepa's balance covered the likely cost of the next call (the head of the queue, or else
the cheapest wanted one) and no call ran. `off by` is the difference between the believed and
the true count when a call is decided on: what 99 % of the calls stay below, and the greatest.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Final

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.bench.peers.policies import POLICIES
from tests.bench.peers.world import WORKLOADS, World

RATES: Final = (5, 25, 250)
WORKERS: Final = (4, 16, 64)
HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Found:
    """One policy in one setting; tokens, shares of time, seconds."""

    workload: str
    rate: int
    workers: int
    policy: str
    generated: int
    spent: int
    lapsed: int
    left: int
    used: float
    stalled: float
    calls: int
    refusals: int
    probes: int
    off_by_p99: float
    off_by_most: float
    deals_per_1000_tokens: float
    products_per_1000_tokens: float
    deal_age_s: float


def measure(
    policy: str, *, rate: int, workers: int, workload: str, hours: float, seed: int = 1
) -> Found:
    """Runs *policy* for so many virtual hours."""
    world = World(rate=rate, workers=workers, workload=workload, seed=seed)
    for number, worker in enumerate(POLICIES[policy](world, workers)):
        world.start(number, worker)
    until_ms = int(hours * HOUR_MS)
    world.run(until_ms)
    books, tally = world.model.books, world.tally
    generated = books.opening + books.refilled
    return Found(
        workload=workload,
        rate=rate,
        workers=workers,
        policy=policy,
        generated=generated,
        spent=books.spent,
        lapsed=books.lapsed,
        left=world.model.balance,
        used=books.spent / (generated - world.unspendable()),
        stalled=tally.stalled_ms / until_ms,
        calls=tally.calls,
        refusals=tally.refusals,
        probes=tally.probes,
        off_by_p99=tally.difference(99),
        off_by_most=max(tally.differences, default=0.0),
        deals_per_1000_tokens=1000 * tally.deals / max(1, books.spent),
        products_per_1000_tokens=1000 * tally.products / max(1, books.spent),
        deal_age_s=tally.age_ms / max(1.0, tally.deals) / 1000,
    )


def measurements(hours: float, *, quick: bool) -> Iterator[Found]:
    """Every policy in every setting; *quick*: the middle plan with the smallest fleet only."""
    rates, fleets = ((25,), (4,)) if quick else (RATES, WORKERS)
    settings = list(product(WORKLOADS, rates, fleets, POLICIES))
    for workload, rate, workers, policy in track(
        settings, "peers", console=Console(stderr=True), transient=True
    ):
        yield measure(policy, rate=rate, workers=workers, workload=workload, hours=hours)


def tables(rows: list[Found]) -> Iterator[Table]:
    """One table a setting."""
    for setting in dict.fromkeys((row.workload, row.rate, row.workers) for row in rows):
        workload, rate, workers = setting
        table = Table(title=f"{workload}, {rate} tokens a tick, {workers} workers")
        table.add_column("policy")
        for heading in (
            *("generated", "spent", "lapsed", "left", "used", "stalled", "refused", "/token"),
            *("off by p99", "most", "deals/1000 tokens", "details/1000", "age at writing"),
        ):
            table.add_column(heading, justify="right")
        for row in rows:
            if (row.workload, row.rate, row.workers) == setting:
                table.add_row(
                    row.policy,
                    f"{row.generated:,}",
                    f"{row.spent:,}",
                    f"{row.lapsed:,}",
                    f"{row.left:,}",
                    f"{row.used:.1%}",
                    f"{row.stalled:.2%}",
                    f"{row.refusals:,}",
                    f"{row.probes:,}",
                    f"{row.off_by_p99:.0f}",
                    f"{row.off_by_most:.0f}",
                    f"{row.deals_per_1000_tokens:,.0f}",
                    f"{row.products_per_1000_tokens:,.0f}",
                    f"{row.deal_age_s:,.0f} s",
                )
        yield table


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.add_argument("--hours", type=float, default=2.0, help="virtual hours of each run")
    parser.add_argument("--quick", action="store_true", help="the middle plan, four workers")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    rows = list(measurements(options.hours, quick=options.quick))
    if options.output == "json":
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
        return
    console = Console(width=170)
    for table in tables(rows):
        console.print(table)


if __name__ == "__main__":
    main()
