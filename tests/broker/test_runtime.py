"""The work of a step of the runtime, counted in bytecode instructions.

Counts are exact: neither the machine nor its load matters. `tests/broker/rpc` measures the
time of the core's own steps.
"""

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import pytest
from pydantic import SecretStr

import broker
from broker.core.costs import SAMPLES_MIN
from broker.core.leases import Outcome, Renewal
from broker.keepa_status import KeepaSync
from broker.runtime import BrokerRuntime
from broker.telemetry.metrics import BrokerMetrics
from tests.broker.builders import EPOCH, request, settlement, synced

BROKER: Final = Path(broker.__file__).parent
CORE: Final = BROKER / "core"
FEW: Final = 200
MANY: Final = 1_000
PAGE: Final = 100

Step = Callable[[BrokerRuntime], Any]


class Instructions:
    """Counts the broker's own instructions, with or without those of the core."""

    def __init__(self, *, with_core: bool) -> None:
        self._with_core = with_core
        self.count = 0
        self._is_counted: dict[CodeType, bool] = {}

    def of(self, step: Callable[[], object]) -> int:
        """Returns the number of instructions that *step* takes."""
        self.count, before = 0, sys.gettrace()
        sys.settrace(self._enter)
        try:
            step()
        finally:
            sys.settrace(before)
        return self.count

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Any:
        code = frame.f_code
        counted = self._is_counted.get(code)
        if counted is None:
            path = Path(code.co_filename)
            counted = path.is_relative_to(BROKER)
            counted = counted and (self._with_core or not path.is_relative_to(CORE))
            self._is_counted[code] = counted
        if not counted:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._execute

    def _execute(self, _frame: FrameType, event: str, _arg: object) -> Any:
        self.count += event == "opcode"
        return self._execute


def acquire(runtime: BrokerRuntime) -> None:
    """A request that waits, and then loses its connection."""
    wait = runtime.acquire(request("new", holder="other"))
    wait.send(None)
    wait.close()


def denied(runtime: BrokerRuntime) -> None:
    """A request that does not wait."""
    wait = runtime.acquire(request("new", holder="other", deadline_ms=runtime.now_ms()))
    with suppress(StopIteration):
        wait.send(None)
    wait.close()


STEPS: Final[dict[str, Step]] = {
    "acquire": acquire,
    "denied": denied,
    "renew": lambda runtime: runtime.renew(Renewal("held", EPOCH, "h", "deal", 1, 5, 15_000)),
    "settle": lambda runtime: runtime.settle(settlement("held", Outcome.NOT_SENT)),
    "bucket": lambda runtime: runtime.bucket(),
    "holder": lambda runtime: runtime.holder("held"),
    "a page of leases": lambda runtime: runtime.leases(PAGE),
    "a page of waits": lambda runtime: runtime.waiting(PAGE),
    "pause": lambda runtime: runtime.pause(),
    "budgets": lambda runtime: runtime.set_budgets([]),
}
# Reads without a forecast, which the core must not lengthen either.
WITH_CORE: Final = {"holder", "a page of leases"}


async def work(name: str, size: int) -> int:
    """Instructions of the step *name* while *size* requests wait and as many leases are open."""
    allocator = synced(5 * size + 100, refill_in=9_000, rate=500)
    for _ in range(SAMPLES_MIN):
        allocator.costs.learn("deal", 1, 5, 0)
    allocator.acquire(request("held"), 0)
    for number in range(size):
        allocator.acquire(request(f"lease{number}", holder=f"h{number}"), 0)
        allocator.take_outcomes()
    assert allocator.ledger.open_leases == size + 1
    number = 0
    while len(allocator.waitlist) < size:
        allocator.acquire(request(f"wait{number}", holder=f"h{number % size}"), 0)
        number += 1
    runtime = BrokerRuntime(allocator, KeepaSync("http://127.0.0.1:9", SecretStr("k")))
    BrokerMetrics(runtime)
    runtime.now_ms = lambda: 10  # type: ignore[method-assign]  # the test's own clock
    with runtime.watching():
        runtime.renew(Renewal("held", EPOCH, "h", "deal", 1, 5, 15_000))
        try:
            counter = Instructions(with_core=name in WITH_CORE)
            return counter.of(lambda: STEPS[name](runtime))
        finally:
            runtime.stop()


@pytest.mark.parametrize("name", STEPS)
def test_the_work_of_a_step_does_not_grow_with_the_waiting(name: str) -> None:
    """A step with 1,000 leases and waits takes as many instructions as with 200."""
    few = asyncio.run(work(name, FEW))
    many = asyncio.run(work(name, MANY))

    assert few > 0
    assert many <= few + few // 10
