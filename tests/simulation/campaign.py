"""Runs of random scenarios, and how a failing one is shrunk."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.simulation.dice import Fate, Stroke
from tests.simulation.errors import CheckFailedError
from tests.simulation.scenario import random_scenario
from tests.simulation.simulation import Simulation

SHRINK_RUNS_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run ended; `events` counts up to the failure, if there was one."""

    seed: int
    events: int
    calls: int
    refusals: int
    failure: str | None = None
    check: str | None = None


def run_random(seed: int, events: int) -> Outcome:
    """The random scenario of *seed* for *events* events, every one of them checked."""
    return _run(Simulation(random_scenario(seed), Fate(seed)), seed, events)


def _run(simulation: Simulation, seed: int, events: int) -> Outcome:
    failure = check = None
    try:
        simulation.run(events)
    except CheckFailedError as exc:
        failure, check = str(exc), exc.check
    measures = simulation.measures
    # Settling at the end is not counted: little happens in it.
    happened = min(simulation.timeline.events, events)
    return Outcome(seed, happened, measures.calls, measures.refusals, failure, check)


def shrink(seed: int, outcome: Outcome) -> Iterator[str]:
    """Mute strokes of bad luck, in ever smaller groups, while the same check still fails."""
    fate = Fate(seed)
    fate.struck = []
    _run(Simulation(random_scenario(seed), fate), seed, outcome.events)
    needed = list(dict.fromkeys(fate.struck))
    yield f"{len(needed)} strokes of bad luck up to the failure"
    muted: frozenset[Stroke] = frozenset()
    last, size, runs = outcome, max(1, len(needed) // 2), 0
    while size and runs < SHRINK_RUNS_MAX:
        for start in range(0, len(needed), size):
            group = frozenset(needed[start : start + size])
            runs += 1
            tried = Simulation(random_scenario(seed), Fate(seed, muted=muted | group))
            found = _run(tried, seed, last.events)
            if found.check == outcome.check:
                muted, last = muted | group, found
        needed = [stroke for stroke in needed if stroke not in muted]
        size //= 2
    yield f"{len(needed)} of them matter; it fails after {last.events} events: {last.failure}"
    for stroke in needed[:40]:
        yield f"{stroke.actor}, stroke {stroke.number}"
