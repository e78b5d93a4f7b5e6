"""Lets the tests of the service loose on the exhibits of the edge.

They need a running broker and a simulator as its Keepa. Other than in a visit to
the core it ends at the first test that notices the defect.
"""

import asyncio
import importlib
import inspect
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

import pytest

from tests.fix_service import serving
from tests.fix_simulator import RunningSimulator
from tests.simulation.museum.exhibit import Exhibit
from tests.simulation.museum.visit import Visit

SUITE: Final = ("leases", "operators", "waits", "hanging_keepa")
# A test that a defect makes wait in vain need not wait to its own deadline, which is
# longer than this; a busy machine must not make one fail that passes.
TIMEOUT_S: Final = 60.0

Test = Callable[..., Awaitable[None]]


@dataclass(frozen=True)
class Keepas:
    """What the tests ask for by name."""

    slow_keepa: RunningSimulator
    quick_keepa: RunningSimulator


GIVEN: Final = {"serve", *(field.name for field in fields(Keepas))}


def suite() -> Iterator[Test]:
    """The tests of the service that need no more than a broker and a Keepa."""
    for part in SUITE:
        module = importlib.import_module(f"tests.broker.rpc.test_service_{part}")
        for name, test in inspect.getmembers(module, inspect.iscoroutinefunction):
            if name.startswith("test_") and parameters(test) <= GIVEN:
                yield test


def parameters(test: Test) -> set[str]:
    """The fixtures that *test* asks for."""
    marks = getattr(test, "pytestmark", ())
    of_marks = {mark.args[0] for mark in marks if mark.name == "parametrize"}
    return set(inspect.signature(test).parameters) - of_marks


async def run(test: Test, keepas: Keepas) -> None:
    """Runs *test* with what it asks for; a parameter of many values takes the last one."""
    async with serving() as serve:
        given: dict[str, Any] = {"serve": serve, **vars(keepas)}
        for mark in getattr(test, "pytestmark", ()):
            if mark.name == "parametrize":
                given[mark.args[0]] = mark.args[1][-1]
        async with asyncio.timeout(TIMEOUT_S):
            await test(**{name: given[name] for name in inspect.signature(test).parameters})


async def fails(test: Test, keepas: Keepas) -> bool:
    """Whether *test* notices something."""
    try:
        await run(test, keepas)
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - a defect may show as anything
        return True
    return False


async def first_to_fail(keepas: Keepas) -> Test | None:
    """The first test that notices something."""
    for test in suite():
        if await fails(test, keepas):
            return test
    return None


async def visit(exhibit: Exhibit, keepas: Keepas) -> Visit:
    """Brings a defect back; returns the first test that notices.

    Raises:
        Exception: whatever the test that noticed raises without the defect, too.
    """
    with exhibit.mutate():
        killer = await first_to_fail(keepas)
    if killer is None:
        return Visit(exhibit, ())
    await run(killer, keepas)
    return Visit(exhibit, (killer.__name__,))
