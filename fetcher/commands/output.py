"""Output of the commands: tables for people, JSON for programs."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from fetcher.replies.units import span_words
from protos.process.visible_text import visible

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1

NONE: Final = "-"


class Format(StrEnum):
    """The format of a command's output."""

    TABLE = "table"
    JSON = "json"


Output = Annotated[Format, typer.Option("--output", "-o", help="Output format.")]
Row = Mapping[str, Any]


def print_line(line: str) -> None:
    """Prints one line; shows control and invisible characters as their codes."""
    sys.stdout.write(visible(line) + "\n")


def print_json(value: object) -> None:
    """Prints *value* for programs; times are ISO 8601."""

    def plain(value: object) -> str:
        return value.isoformat() if isinstance(value, datetime) else str(value)

    sys.stdout.write(json.dumps(value, default=plain, indent=2) + "\n")


def print_rows(title: str, rows: Sequence[Row], output: Format) -> None:
    """Prints *rows*; their keys are the columns."""
    if output is Format.JSON:
        print_json(rows)
        return
    # Imported late: only tables need rich.
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
        number = any(type(row[name]) in {int, float} for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    console.print(table)


def age(time: datetime | None, now: datetime) -> str | None:
    """Returns how long before *now* *time* was: "40 s", "3 min", "2 h", "5 d"."""
    return None if time is None else span_words((now - time).total_seconds())


def took(start: datetime, end: datetime | None) -> str | None:
    """Returns the time from *start* to *end* in words; None without an *end*."""
    return None if end is None else span_words((end - start).total_seconds())


def when(time: datetime | None) -> str:
    """Returns *time* in UTC, to the second."""
    return "unknown" if time is None else f"{time.astimezone(UTC):%F %T}"


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
