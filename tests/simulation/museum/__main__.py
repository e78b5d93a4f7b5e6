"""Prints every exhibit and what killed it; exit code 1 if one survived."""

import asyncio
import logging
import sys

import structlog
from rich.console import Console
from rich.table import Table

from tests.fix_service import NEVER_S, SOON_S, launch_keepa
from tests.simulation.museum import edge, edge_visit
from tests.simulation.museum.visit import EXHIBITS, Visit, visit


async def visit_edge() -> list[Visit]:
    """Visits the exhibits of the edge."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    simulators = launch_keepa(NEVER_S), launch_keepa(SOON_S)
    keepas = edge_visit.Keepas(*simulators)
    try:
        return [await edge_visit.visit(exhibit, keepas) for exhibit in edge.EXHIBITS]
    finally:
        for simulator in simulators:
            simulator.stop()


def main() -> int:
    """Visits them all."""
    table = Table(title="Bug museum")
    for heading in ("defect", "what it was", "killed by"):
        table.add_column(heading)
    visits = [visit(exhibit) for exhibit in EXHIBITS] + asyncio.run(visit_edge())
    for seen in visits:
        count = len(seen.killers)
        more = f" and {count - 1} more" if count > 1 else ""
        killed = f"{seen.killers[0]}{more}" if count else "[red]nobody[/red]"
        table.add_row(seen.exhibit.name, seen.exhibit.story, killed)
    killed_count = sum(bool(seen.killers) for seen in visits)
    console = Console()
    console.print(table)
    console.print(f"{killed_count}/{len(visits)} killed")
    return 0 if killed_count == len(visits) else 1


if __name__ == "__main__":
    sys.exit(main())
