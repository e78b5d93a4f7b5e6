"""What workers ask for, and what Keepa then really charges.

Prices: keepa-api.md, section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass

from broker.core.leases import Priority
from tests.simulation.dice import Dice

CostRule = Callable[[int, Dice], int]


@dataclass(frozen=True, slots=True)
class Demand:
    """One kind of call: batches of `units_min` to `units_max`, priced by `cost`.

    `prior` is the caller's estimate of the cost of one unit, in tokens. With `whole`, the
    caller can't use a smaller batch.
    """

    operation: str
    priority: Priority
    units_max: int
    prior: float
    cost: CostRule
    whole: bool = False
    units_min: int = 1


def _page(units: int, _dice: Dice) -> int:
    return 5 * units


def _item(units: int, _dice: Dice) -> int:
    return units


def _rated(units: int, dice: Dice) -> int:
    return units + sum(dice.random() < 0.3 for _ in range(units))


def _offers(units: int, dice: Dice) -> int:
    """6 a found page of ten offers, minimum 5; few products have very many offers."""
    cost = 0
    for _ in range(units):
        pages = min(10, int(dice.pareto(1.6)))
        cost += 5 if dice.random() < 0.1 else 6 * pages
    return cost


def _few_offers(units: int, dice: Dice) -> int:
    """Most products have one page of ten offers, some two, few three."""
    draws = [dice.random() for _ in range(units)]
    return sum(6 + 6 * (draw < 0.15) + 6 * (draw < 0.03) for draw in draws)


def _finder(units: int, dice: Dice) -> int:
    return 10 + dice.between(0, 30) * units


DEALS = Demand("deal", Priority.HIGH, 1, 5.0, _page)
PAGES = Demand("deal", Priority.NORMAL, 1, 5.0, _page)
BULK = Demand("product", Priority.LOW, 60, 1.0, _item)
PRODUCTS = Demand("product", Priority.NORMAL, 100, 1.0, _item)
RATED = Demand("product?rating", Priority.NORMAL, 40, 1.0, _rated)
OFFERS = Demand("product?offers=20", Priority.NORMAL, 20, 6.0, _offers)
LOW_OFFERS = Demand("product?offers=20", Priority.LOW, 10, 2.0, _offers)
OFFERS_OF_15 = Demand("product?offers=20", Priority.NORMAL, 15, 6.0, _few_offers, units_min=15)
FINDER = Demand("query", Priority.NORMAL, 1, 12.0, _finder, whole=True)
WHOLE = Demand("product", Priority.HIGH, 100, 1.0, _item, whole=True)

KNOWN = (DEALS, PAGES, BULK, PRODUCTS, WHOLE)
UNKNOWN = (RATED, OFFERS, LOW_OFFERS, FINDER)
