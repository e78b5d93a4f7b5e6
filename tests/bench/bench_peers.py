"""The broker beside other ways to share an account, in one setting of `tests.bench.peers`.

The whole table: `python -m tests.bench.peers`.
"""

from collections.abc import Iterator
from typing import Final

from tests.bench.peers.__main__ import Found, measure
from tests.bench.peers.policies import POLICIES
from tests.bench.peers.world import WORKLOADS
from tests.bench.table import Row, at_least, at_most

RATE: Final = 25
WORKERS: Final = 16
HOURS: Final = 2.0
OURS: Final = "token broker"


def rows(quick: bool) -> Iterator[Row]:  # noqa: FBT001 - as all benches
    """What matters of the broker's run, with the best of the others beside."""
    for workload in WORKLOADS:
        found = {
            policy: measure(
                policy,
                rate=RATE,
                workers=WORKERS,
                workload=workload,
                hours=HOURS / 4 if quick else HOURS,
            )
            for policy in POLICIES
        }
        yield from compared(workload, found)


def compared(workload: str, found: dict[str, Found]) -> Iterator[Row]:
    """The broker's figures, each with those of the others beside."""
    ours = found.pop(OURS)
    where = f"{workload}, {RATE} tokens a tick, {WORKERS} workers"

    def others(field: str, form: str) -> str:
        values = [getattr(one, field) for one in found.values()]
        return f"others: {min(values):{form}} to {max(values):{form}}"

    yield Row(
        f"tokens spent of those that could be, {where}",
        ours.used * 100,
        "%",
        at_least(99.5),
        others("used", ".1%"),
    )
    yield Row(f"calls refused, {where}", ours.refusals, "", at_most(0), others("refusals", ","))
    yield Row(
        f"time in which tokens lay idle, {where}",
        ours.stalled * 100,
        "%",
        at_most(0.1),
        others("stalled", ".2%"),
        "the way to Keepa and back, with which each tick is confirmed, takes 0.08 % of a minute"
        " in this world; others guess, and are refused",
    )
    yield Row(
        f"believed less true count, 99 % of calls, {where}",
        ours.off_by_p99,
        "tokens",
        at_most(1),
        others("off_by_p99", ".0f"),
    )
