"""Lets the suite loose on every exhibit.

The suite here is every test of the core that needs nothing but the core: the
plain ones of tests/broker, without the ones that draw examples.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

import pytest

from tests.simulation.museum import counting, granting
from tests.simulation.museum.exhibit import Exhibit

EXHIBITS: Final = counting.EXHIBITS + granting.EXHIBITS
SUITE: Final = (
    *("bucket", "costs", "waitlist", "ledger", "holds", "drift", "budgets", "allocator"),
    *("forecast", "overdue", "quotes", "evidence", "strangers", "limits"),
)

Test = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Visit:
    """What became of one exhibit: the tests that noticed the defect."""

    exhibit: Exhibit
    killers: tuple[str, ...]


def suite() -> Iterator[Test]:
    """The tests that ask for no fixture and draw no example."""
    for part in SUITE:
        module = importlib.import_module(f"tests.broker.core.test_{part}")
        for name, test in inspect.getmembers(module, inspect.isfunction):
            drawn = hasattr(test, "hypothesis")
            if name.startswith("test_") and not drawn and not inspect.signature(test).parameters:
                yield test


def fails(test: Test) -> bool:
    """Whether *test* notices something."""
    try:
        test()
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - a defect may show as anything
        return True
    return False


def visit(exhibit: Exhibit, *, killers_max: int | None = None) -> Visit:
    """Brings a defect back; returns the tests that notice, all or the first few."""
    with exhibit.mutate():
        killers = (test.__name__ for test in suite() if fails(test))
        return Visit(exhibit, tuple(islice(killers, killers_max)))
