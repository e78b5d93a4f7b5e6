"""Prints every exhibit and what killed it; exit code 1 if one survived."""

import sys

from rich.console import Console
from rich.table import Table

from tests.simulation.museum.visit import EXHIBITS, visit


def main() -> int:
    """Visit them all."""
    table = Table(title="Bug museum")
    for heading in ("defect", "what it was", "killed by"):
        table.add_column(heading)
    visits = [visit(exhibit) for exhibit in EXHIBITS]
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
