"""How commands print: tables for people, JSON for programs, one line for errors."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from protos.process.visible_text import visible

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1

NONE: Final = "-"


class Format(StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    JSON = "json"


Output = Annotated[Format, typer.Option("--output", "-o", help="Output format.")]
Row = Mapping[str, Any]


def say(line: str) -> None:
    """Print one line; whatever hides or acts in it is shown as its code."""
    sys.stdout.write(visible(line) + "\n")


def print_json(value: object) -> None:
    """Print *value* for programs; times are ISO 8601."""
    sys.stdout.write(json.dumps(value, default=_plain, indent=2) + "\n")


def print_rows(title: str, rows: Sequence[Row], output: Format) -> None:
    """Print *rows*, whose keys are the columns."""
    if output is Format.JSON:
        print_json(rows)
        return
    # Imported late: only people need rich.
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console(width=None if sys.stdout.isatty() else 200)
    if not rows:
        console.print(f"{escape(visible(title))}: none")
        return
    table = Table(
        title=escape(visible(title)), title_justify="left", header_style="bold",
        # Without frames between columns more of them fit a terminal of 80 characters.
        box=SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for name in rows[0]:
        number = any(_is_number(row[name]) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    console.print(table)


def age(time: datetime | None, now: datetime) -> str | None:
    """How long ago *time* was at *now*, in its largest unit: 40 s, 3 min, 2 h, 5 d."""
    return None if time is None else _largest_unit(now - time)


def took(start: datetime, end: datetime | None) -> str | None:
    """How long something lasted, in its largest unit; None while it lasts."""
    return None if end is None else _largest_unit(end - start)


def _largest_unit(span: timedelta) -> str:
    seconds = max(0, round(span.total_seconds()))
    for unit, size_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size_s or (unit == "min" and seconds >= size_s):
            return f"{seconds // size_s} {unit}"
    return f"{seconds} s"


def when(time: datetime | None) -> str:
    """*time* in UTC, to the second."""
    return "unknown" if time is None else f"{time.astimezone(UTC):%F %T}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: object) -> str:
    from rich.markup import escape  # noqa: PLC0415 - as above

    match value:
        case None:
            return NONE
        case datetime():
            return when(value)
        case list() | tuple():
            return escape(visible(", ".join(map(str, value)))) or NONE
    return escape(visible(str(value)))


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
