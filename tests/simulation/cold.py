"""Cold starts: brokers that have seen no call yet, with calls of widely scattered cost.

    python -m tests.simulation.cold [--starts 80] [--events 8000]

Prints the calls of all starts, and how many of them Keepa refused.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from tests.simulation.dice import Fate
from tests.simulation.figures import SCENARIOS
from tests.simulation.simulation import Simulation

FIRST_SEED = 100


@dataclass(frozen=True, slots=True)
class Start:
    """One cold start."""

    seed: int
    calls: int
    refusals: int


def starts(count: int, events: int) -> Iterator[Start]:
    """Runs *count* cold starts of "unknown costs", each for so many *events*.

    Raises:
        CheckFailedError: something happened that must not.
    """
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        simulation = Simulation(SCENARIOS["unknown costs"], Fate(seed))
        while simulation.timeline.events < events:
            simulation.timeline.step()
            simulation.audit.check()
        yield Start(seed, simulation.measures.calls, simulation.measures.refusals)


def main() -> None:
    """Prints the sums, and the seeds with refusals."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.cold", description=__doc__)
    parser.add_argument("--starts", type=int, default=80, help="number of cold starts")
    parser.add_argument("--events", type=int, default=8_000, help="events of each")
    options = parser.parse_args()
    done = list(starts(options.starts, options.events))
    refused = {start.seed: start.refusals for start in done if start.refusals}
    calls = sum(start.calls for start in done)
    print(  # noqa: T201 - the result
        f"{len(done)} cold starts, {calls:,} calls, {sum(refused.values())} refused"
        + (f" (by seed: {refused})" if refused else "")
    )


if __name__ == "__main__":
    main()
