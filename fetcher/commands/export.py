"""Writing deals to a file, or to another program."""

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from fetcher.deals.export import write_deals_file
from fetcher.deals.filters import Cursor, FilterError, Sort, iso_time, read_filter, read_sort
from fetcher.deals.formats import ExportFormat
from fetcher.errors import FetcherError
from fetcher.postgres.database import connect
from fetcher.postgres.deal_rows import TextRows, stream_deal_rows
from protos.process.environment import SettingsError

STDOUT: Final = "-"


class ExportError(FetcherError):
    """A file can't be written, or a library is missing; the text has the remedy."""


class _Places:
    """Passes parts on, and keeps the place after the last one."""

    def __init__(self, parts: Iterable[TextRows], place: Cursor | None) -> None:
        self._parts, self.place = parts, place

    def __iter__(self) -> Iterator[TextRows]:
        for part in self._parts:
            self.place = part.next or self.place
            yield part


def export_deals(
    database_url: str,
    *,
    kind: ExportFormat,
    to: str,
    where: Sequence[str],
    since: str | None,
    cursor_file: Path | None,
    sort: str | None,
) -> None:
    """Writes the deals that *where* selects to the file *to*, "-" being stdout.

    The file appears once it is complete. With *since*, a duration, a date or time, or a cursor,
    or with a *cursor_file*, only what has changed since then; the summary on stderr has the
    next cursor.

    Raises:
        SettingsError: A filter or a cursor is unusable.
        ExportError: The file can't be written, or a library is missing.
    """
    try:
        values = dict(_pair(text) for text in where)
        order = read_sort(sort or "changed")
        after = _after(since, cursor_file, order, values)
        wanted = read_filter(values)
        with (
            connect(database_url) as connection,
            _target(to) as output,
            stream_deal_rows(connection, wanted, sort=order, after=after) as rows,
        ):
            parts = _Places(rows, after)
            count = _write(parts, kind, output)
    except FilterError as exc:
        problem = str(exc)
    else:
        if cursor_file is not None and parts.place is not None:
            # The old place stays until the new one is complete.
            part = cursor_file.with_name(f".{cursor_file.name}.new")
            part.write_text(f"{parts.place}\n", "utf-8")
            part.replace(cursor_file)
        hint = (
            "" if parts.place is None or order != "changed" else f"; next: --since {parts.place}"
        )
        sys.stderr.write(f"{count} deals written{hint}\n")
        return
    raise SettingsError([problem])


def _write(parts: Iterable[TextRows], kind: ExportFormat, output: BinaryIO) -> int:
    try:
        return write_deals_file(parts, kind, output)
    except ModuleNotFoundError as exc:
        problem = f"{kind} needs {exc.name}: pip install 'keepa-token-broker[fetcher,parquet]'"
    raise ExportError(problem)


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise FilterError("--where", f"{text!r}: write a name and a value: price_max=2000")
    return name.strip(), value


def _after(
    since: str | None, cursor_file: Path | None, sort: Sort, values: dict[str, str]
) -> Cursor | None:
    """Returns the place to go on from; a duration or a time becomes a filter instead."""
    if cursor_file is not None:
        if since is not None or sort != "changed":
            raise FilterError("--cursor", "give it without --since and --sort")
        with suppress(FileNotFoundError):
            return Cursor.parse(cursor_file.read_text("utf-8").strip(), sort=sort)
        return None
    if since is None:
        return None
    with suppress(FilterError):
        values["judged_since"] = iso_time("--since", since)
        return None
    if since[:-1].isdecimal():
        values["judged_within"] = since
        return None
    if sort != "changed":
        raise FilterError("--since", "a cursor needs the order of changes: leave --sort out")
    try:
        return Cursor.parse(since, sort=sort)
    except FilterError:
        reason = "write a duration (24h), a date or time (2026-11-25T12:00Z), or a cursor"
        raise FilterError("--since", reason) from None


@contextmanager
def _target(to: str) -> Iterator[BinaryIO]:
    """Opens stdout, or a file that takes the name *to* once it is complete."""
    if to == STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(to)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        # As a file that any program makes: mkstemp's is for its owner only.
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
