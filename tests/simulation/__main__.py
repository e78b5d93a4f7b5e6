"""Simulates the broker's core: random scenarios for the checks, fault-free ones for figures.

    python -m tests.simulation --events 10000000 --seed 1

Exit code 1 if a check failed or a figure is not as promised. A failing seed replays
exactly with the command printed beside it, which also shrinks it to the strokes of
bad luck that matter.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed

from rich.console import Console
from rich.table import Table

from tests.simulation.campaign import Outcome, run_random, shrink
from tests.simulation.figures import EQUAL_HOLDERS, SCENARIOS, THREE_CLASSES, Figures, measure

EVENTS_A_RUN = 50_000
# Part of the events that goes to the figures' scenarios, all together.
FIGURES_SHARE = 0.4
# A scenario that is measured at length is measured in runs of so many events.
FIGURES_EVENTS = 1_000_000
PROGRESS_S = 10.0

# Wide enough for the figures on any terminal.
console = Console(highlight=False, width=110)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000, help="events in all")
    parser.add_argument("--seed", type=int, default=1, help="first seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one seed and shrink it")
    parser.add_argument(
        "--only", choices=list(SCENARIOS), help="measure one fault-free scenario and nothing else"
    )
    parser.add_argument("--run-events", type=int, default=EVENTS_A_RUN, help="events a seed")
    return parser.parse_args()


def main() -> int:
    """Runs what was asked for."""
    args = arguments()
    if args.replay is not None:
        return replay(args.replay, args.run_events)
    started_s = time.monotonic()
    with ProcessPoolExecutor(args.jobs) as pool:
        if args.only:
            figures = [measure_at_length(pool, args.only, args)]
            outcomes = []
        else:
            each = int(args.events * FIGURES_SHARE) // len(SCENARIOS)
            measured = [pool.submit(measure, name, args.seed, each) for name in SCENARIOS]
            count = max(1, (args.events - each * len(SCENARIOS)) // args.run_events)
            seeds = range(args.seed, args.seed + count)
            runs = [pool.submit(run_random, seed, args.run_events) for seed in seeds]
            outcomes = list(with_progress(runs, started_s))
            figures = [future.result() for future in measured]
    report_figures(figures)
    if outcomes:
        report_outcomes(outcomes, args.run_events)
    rate = args.events / (time.monotonic() - started_s)
    console.print(f"{args.events:,} events: {rate:,.0f} events/s")
    broken = [(run.scenario, promise) for run in figures for promise in run.broken()]
    for scenario, promise in broken:
        console.print(f"[red]{scenario}: {promise}[/red]")
    return 1 if broken or any(outcome.failure for outcome in outcomes) else 0


def measure_at_length(pool: ProcessPoolExecutor, name: str, args: argparse.Namespace) -> Figures:
    """One scenario for all the events, in runs of different seeds, with progress."""
    count = max(1, args.events // FIGURES_EVENTS)
    runs = [
        pool.submit(measure, name, args.seed + number, args.events // count)
        for number in range(count)
    ]
    total = Figures(name, args.seed)
    for done, run in enumerate(as_completed(runs), start=1):
        total.add(run.result())
        console.print(f"{done} of {count} runs, {total.calls:,} calls", style="dim")
    return total


def with_progress(runs: list[Future[Outcome]], started_s: float) -> Iterator[Outcome]:
    """The outcomes as they come, with a line every now and then."""
    said_s, events = started_s, 0
    for done, run in enumerate(as_completed(runs), start=1):
        outcome = run.result()
        events += outcome.events
        if time.monotonic() - said_s > PROGRESS_S:
            said_s = time.monotonic()
            console.print(f"{done} of {len(runs)} runs, {events:,} events", style="dim")
        yield outcome


def report_figures(figures: list[Figures]) -> None:
    """Prints what runs without faults have shown."""
    table = Table(title="Fault-free, saturated")
    for heading in (
        *("scenario", "calls", "refused", "used", "±", "drift p99", "ETA", "ETA first"),
        "probes",
    ):
        table.add_column(heading, justify="left" if heading == "scenario" else "right")
    for run in figures:
        table.add_row(
            run.scenario,
            f"{run.calls:,}",
            f"{run.refusals:,}",
            f"{run.utilisation:.2%}",
            f"{run.utilisation_error:.2%}",
            str(run.unexplained_p99),
            f"{run.eta_median_ms / 1000:.1f} s",
            f"{run.eta_first_median_ms / 1000:.0f} s",
            f"{run.probes_a_tick:.2f}",
        )
    console.print(table)
    console.print(
        "used: spent/generated; ±: what may be in hand at the end; drift: unexplained tokens an"
        " observation; ETA: median error as corrected last, and as told at first; probes:"
        " status calls a tick"
    )
    console.print(
        f"worst unexplained drift: {max(max(run.unexplained) for run in figures)} tokens"
    )
    for run in figures:
        if run.scenario == EQUAL_HOLDERS:
            console.print(
                f"equal holders: {run.spread} tokens apart, largest request {run.largest}"
            )
        if run.scenario == THREE_CLASSES:
            console.print(
                f"classes 8:4:1: within {run.class_error():.2%},"
                f" of which a run of this length may owe {run.class_uncertainty:.2%} to chance"
            )


def report_outcomes(outcomes: list[Outcome], run_events: int) -> None:
    """Prints how runs with faults have gone, and how to see a failed one again."""
    calls = sum(outcome.calls for outcome in outcomes)
    refusals = sum(outcome.refusals for outcome in outcomes)
    console.print(
        f"with faults: {len(outcomes)} scenarios, {calls:,} calls, {refusals:,} refused, all of"
        " them explained by a surprise"
    )
    for outcome in outcomes:
        if outcome.failure:
            console.print(f"[red]seed {outcome.seed}: {outcome.failure}[/red]")
            console.print(
                f"  replay: python -m tests.simulation --replay {outcome.seed}"
                f" --run-events {run_events}"
            )


def replay(seed: int, events: int) -> int:
    """Runs one seed again; if it fails, shows the least that makes it fail."""
    outcome = run_random(seed, events)
    if not outcome.failure:
        console.print(f"seed {seed}: all is well")
        return 0
    console.print(f"[red]seed {seed}: {outcome.failure}[/red]")
    for line in shrink(seed, outcome):
        console.print(f"  {line}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
