"""How often Keepa is asked while tokens are short: once a tick, whatever the latency.

    python -m tests.simulation.starving

A fleet that always wants more than there is, on a network without faults. Every
combination of latency, fleet and plan is a run of its own.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Final

from rich.console import Console
from rich.table import Table

from tests.simulation.demand import DEALS
from tests.simulation.dice import Fate
from tests.simulation.scenario import Scenario
from tests.simulation.simulation import Simulation

LATENCIES_MS: Final = (1, 20, 80, 150, 400)
WORKERS: Final = (1, 4, 16)
RATES: Final = (5, 25)
TICKS: Final = 120


@dataclass(frozen=True, slots=True)
class Starving:
    """What one starved fleet has shown; `probes` counts by reason."""

    latency_ms: int
    workers: int
    rate: int
    ticks: int
    utilisation: float
    refusals: int
    probes: Counter[str] = field(default_factory=Counter)

    @property
    def probes_a_tick(self) -> float:
        """Status calls a tick."""
        return self.probes.total() / self.ticks


def starve(latency_ms: int, workers: int, rate: int, *, ticks: int = TICKS) -> Starving:
    """Runs one fleet for so many *ticks*.

    Raises:
        CheckFailedError: something happened that must not.
    """
    way_ms = (latency_ms // 2, latency_ms - latency_ms // 2)
    scenario = Scenario(
        rate=rate,
        opening=rate,
        workers=workers,
        demands=(DEALS,),
        call_way_ms=way_ms,
        probe_way_ms=way_ms,
    )
    simulation = Simulation(scenario, Fate(1))
    while simulation.model.ticks < ticks:
        simulation.timeline.step()
        simulation.audit.check()
    books = simulation.model.books
    return Starving(
        latency_ms,
        workers,
        rate,
        ticks,
        books.spent / (books.opening + books.refilled),
        simulation.measures.refusals,
        simulation.measures.probes,
    )


def sweep(ticks: int = TICKS) -> Iterator[Starving]:
    """All fleets."""
    for latency_ms, workers, rate in product(LATENCIES_MS, WORKERS, RATES):
        yield starve(latency_ms, workers, rate, ticks=ticks)


def table(runs: list[Starving]) -> Table:
    """The runs, for people."""
    shown = Table(title="Status calls to Keepa a tick, while starving")
    for heading in ("latency", "workers", "tokens a tick", "probes a tick", "used", "refused"):
        shown.add_column(heading, justify="right")
    shown.add_column("why")
    for run in runs:
        shown.add_row(
            f"{run.latency_ms} ms",
            str(run.workers),
            str(run.rate),
            f"{run.probes_a_tick:.2f}",
            f"{run.utilisation:.1%}",
            str(run.refusals),
            ", ".join(f"{why} {count}" for why, count in run.probes.most_common()),
        )
    return shown


if __name__ == "__main__":
    Console(width=110).print(table(list(sweep())))
