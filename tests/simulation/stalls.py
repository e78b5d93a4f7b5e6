"""How long tokens lie idle that the next call will likely not exceed.

    python -m tests.simulation.stalls

Deal pages and offers of 15 products have widely scattered costs, and want more tokens
than there are. A stall is time in which a request waits, no call is under way, and Keepa's balance
covers what the next call will likely cost.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

from rich.console import Console
from rich.table import Table

from broker.core.allocator import DEBT_HORIZON_MS
from tests.simulation.broker_process import BrokerProcess
from tests.simulation.demand import DEALS, OFFERS_OF_15
from tests.simulation.dice import Fate
from tests.simulation.keepa_model import KeepaModel
from tests.simulation.scenario import Scenario
from tests.simulation.simulation import Simulation

RATES: Final = (5, 25)
# No debt, one tick, a quarter of an hour (the default).
HORIZONS_MS: Final = (0, 60_200, DEBT_HORIZON_MS)
TICKS: Final = 1_000
MIXED: Final = Scenario(workers=4, demands=(replace(DEALS, units_max=1), OFFERS_OF_15))


@dataclass(frozen=True, slots=True)
class Stalls:
    """What one run has shown; shares of time, tokens."""

    rate: int
    horizon_ms: int
    stalled: float
    in_debt: float
    deepest: int
    calls: int
    refusals: int
    utilisation: float
    probes_a_tick: float


def measure(rate: int, horizon_ms: int, *, ticks: int = TICKS, seed: int = 1) -> Stalls:
    """Runs the mix for so many *ticks*.

    Raises:
        CheckFailedError: something happened that must not.
    """
    scenario = replace(MIXED, rate=rate, opening=rate, debt_horizon_ms=horizon_ms)
    simulation = Simulation(scenario, Fate(seed))
    model, timeline = simulation.model, simulation.timeline
    stalled_ms = debt_ms = deepest = 0
    while model.ticks < ticks:
        before_ms, owes = timeline.now_ms, model.balance < 0
        stalls = is_stalled(simulation.broker, model)
        timeline.step()
        simulation.audit.check()
        stalled_ms += stalls * (timeline.now_ms - before_ms)
        debt_ms += owes * (timeline.now_ms - before_ms)
        deepest = min(deepest, model.balance)
    books, measures = model.books, simulation.measures
    return Stalls(
        rate,
        horizon_ms,
        stalled_ms / timeline.now_ms,
        debt_ms / timeline.now_ms,
        deepest,
        measures.calls,
        measures.refusals,
        books.spent / (books.opening + books.refilled),
        measures.probes.total() / ticks,
    )


def is_stalled(broker: BrokerProcess, model: KeepaModel) -> bool:
    """Whether the next call could be made at its likely cost, and none is under way."""
    allocator = broker.allocator
    head = allocator.waitlist.head()
    if head is None or allocator.ledger.holds.holds_leases or model.balance <= 0:
        return False
    request = head.request
    price = allocator.costs.price(request.operation, request.least, request.tokens_per_unit)
    return model.balance >= price.ratio * price.likely * request.least


def measurements(ticks: int = TICKS) -> Iterator[Stalls]:
    """Every plan with every horizon."""
    for rate, horizon_ms in product(RATES, HORIZONS_MS):
        yield measure(rate, horizon_ms, ticks=ticks)


def table(runs: list[Stalls]) -> Table:
    """The runs, for people."""
    shown = Table(title="Deal pages and offers of 15 products, four workers")
    for heading in (
        *("tokens a tick", "horizon", "stalled", "in debt", "deepest"),
        *("calls", "refused", "used", "probes a tick"),
    ):
        shown.add_column(heading, justify="right")
    for run in runs:
        shown.add_row(
            str(run.rate),
            f"{run.horizon_ms // 1000} s",
            f"{run.stalled:.1%}",
            f"{run.in_debt:.1%}",
            str(run.deepest),
            f"{run.calls:,}",
            str(run.refusals),
            f"{run.utilisation:.2%}",
            f"{run.probes_a_tick:.2f}",
        )
    return shown


if __name__ == "__main__":
    Console(width=110).print(table(list(measurements())))
