"""One table of all that is measured, each figure beside its goal or its peer.

    python -m tests.bench [--quick] [--only NAME] [--json FILE]

A bench is a module with `rows(quick)`, which yields rows; those of a pair are taken by turns.
The file gets the machine, the versions and the raw numbers. It exits with 1 if a bench could
not be run; a missed goal is shown, with the reason.
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.bench.table import MISSED, Row

# In the order of the table; the names are modules of this package, without their prefix.
BENCHES: Final = (
    "broker",
    "core",
    "waiting",
    "starts",
    "in_flight",
    "gateway",
    "postgres",
    "peers",
)
# Those that need a fleet of processes take too long for a look.
SLOW: Final = ("in_flight", "gateway")
LIBRARIES: Final = ("grpcio", "protobuf", "uvloop", "psycopg", "pydantic", "aiohttp", "requests")
FILE: Final = Path(".local/bench.json")


def bench(name: str) -> Callable[[bool], Iterator[Row]]:
    """The rows of the bench *name*."""
    rows: Callable[[bool], Iterator[Row]] = importlib.import_module(
        f"tests.bench.bench_{name}"
    ).rows
    return rows


def machine() -> dict[str, Any]:
    """The machine and the versions that the figures depend on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "revision": revision.stdout.strip(),
    }


def table(results: dict[str, list[Row]]) -> Table:
    """All rows, by bench."""
    shown = Table()
    for heading in ("", "what", "measured", "goal", "verdict", "beside"):
        shown.add_column(heading, justify="right" if heading == "measured" else "left")
    for name, rows in results.items():
        for row in rows:
            goal, verdict = row.goal, row.verdict
            style = "red" if verdict.startswith(MISSED) else "green" if verdict else ""
            shown.add_row(
                name,
                row.what,
                row.measured,
                "" if goal is None else str(goal),
                f"[{style}]{verdict}[/]" if style else "",
                row.beside,
            )
        shown.add_section()
    return shown


def run(names: tuple[str, ...], *, quick: bool, progress: Console) -> tuple[dict[str, Any], bool]:
    """Runs the benches; returns the results, and whether all could be run."""
    results: dict[str, list[Row]] = {}
    took_s: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name in names:
        progress.print(f"[dim]{name} …")
        began_s = time.monotonic()
        results[name] = []
        try:
            # Row by row: those that were measured before a failure stay.
            for row in bench(name)(quick):
                results[name].append(row)
                progress.print(f"  {row.what}: {row.measured}", style="dim")
        except Exception as exc:  # noqa: BLE001 - the other benches go on
            failed[name] = f"{type(exc).__name__}: {exc}"
            progress.print(f"[red]{name} could not be run: {failed[name]}")
        except KeyboardInterrupt:
            # What was measured until then is shown all the same.
            failed[name] = "interrupted"
            progress.print(f"[red]{name} was interrupted")
            break
        finally:
            took_s[name] = round(time.monotonic() - began_s, 1)
    return {
        "machine": machine(),
        "quick": quick,
        "seconds": took_s,
        "failed": failed,
        "results": results,
    }, not failed


def main() -> None:
    """Prints the table and writes the file."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a minute: fewer and shorter rounds, without {' and '.join(SLOW)}",
    )
    parser.add_argument(
        "--only", action="append", choices=BENCHES, help="this bench; may be repeated"
    )
    parser.add_argument("--json", type=Path, default=FILE, help=f"the file (default: {FILE})")
    options = parser.parse_args()
    # With it every start would compile the modules again, as no second one of a user does.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    usual = [name for name in BENCHES if not (options.quick and name in SLOW)]
    names = tuple(options.only or usual)
    found, complete = run(names, quick=options.quick, progress=Console(stderr=True, width=160))
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table(found["results"]))
    whole = {
        **found,
        "results": {
            name: [
                {**asdict(row), "samples": dict(row.samples), "verdict": row.verdict}
                for row in rows
            ]
            for name, rows in found["results"].items()
        },
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(whole, indent=1) + "\n")
    console.print(f"raw numbers, machine and versions: {options.json}")
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
