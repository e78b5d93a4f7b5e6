"""Deals as files: CSV, Excel, JSON lines, Parquet; written part by part, at constant memory.

Law:
1. Memory does not grow with the number of rows: each part is written before the next is read.
2. A text from outside is never a formula: a spreadsheet would run it. Files for people (CSV,
   Excel) show hidden characters as codes; files for programs hold texts as they are.
3. Amounts stay in minor units, beside their currency; times are UTC.

Source: OWASP, "CSV Injection": a cell that begins with = + - @, tab or carriage return.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import IO, Any, Final, Protocol, cast

from fetcher.deals.formats import ExportFormat
from fetcher.deals.workbook import Kind, Workbook
from fetcher.postgres.deal_rows import COLUMNS, TextRows
from fetcher.replies.units import CURRENCIES, currency_code
from protos.process.visible_text import visible

FORMULA_SIGNS: Final = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
HEADERS: Final = (*COLUMNS, "currency")
PARQUET_GROUP_ROWS: Final = 5_000

_DOMAIN: Final = COLUMNS.index("domain_id")
_TEXTS: Final = frozenset({"query", "state", "asin", "title", "currency"})
_TIMES: Final = frozenset({"creation_time", "reply_time", "first_seen", "judged_at"})
_LISTS: Final = frozenset({"failed_rules"})
_TITLE, _QUERY, _RULES = map(COLUMNS.index, ("title", "query", "failed_rules"))
_CODES: Final = {str(domain_id): currency.code for domain_id, currency in CURRENCIES.items()}


MEDIA_TYPES: Final = {
    ExportFormat.CSV: "text/csv; charset=utf-8",
    ExportFormat.XLSX: "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ExportFormat.JSONL: "application/jsonl",
    ExportFormat.PARQUET: "application/vnd.apache.parquet",
}


class Output(Protocol):
    """Where bytes go: a file, a pipe or a response."""

    def write(self, data: bytes, /) -> object:
        """Takes some bytes."""


def write_deals_file(parts: Iterable[TextRows], kind: ExportFormat, output: Output) -> int:
    """Writes *parts* to *output*; returns the number of rows.

    Raises:
        ImportError: The format's library is not installed.
    """
    writers: dict[ExportFormat, Callable[[Iterable[TextRows], Output], int]] = {
        ExportFormat.CSV: _write_csv,
        ExportFormat.XLSX: _write_xlsx,
        ExportFormat.JSONL: _write_jsonl,
        ExportFormat.PARQUET: _write_parquet,
    }
    return writers[kind](parts, output)


def harmless(text: str) -> str:
    """Returns *text* for a cell: hidden characters as codes, and never a formula."""
    shown = visible(text)
    # Spreadsheets ignore blanks before a sign.
    return f"'{shown}" if shown.lstrip().startswith(FORMULA_SIGNS) or text[:1] in "\t\r" else shown


def as_json(row: Sequence[Any]) -> dict[str, object]:
    """Returns one row by column, as JSON has it."""
    values = {name: _plain(value) for name, value in zip(COLUMNS, row, strict=True)}
    return values | {"currency": currency_code(row[_DOMAIN])}


def _plain(value: object) -> object:
    return _time(value) if isinstance(value, datetime) else value


def _time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# Names of queries and rules come again and again.
_harmless_name: Final = lru_cache(maxsize=1_000)(harmless)


@lru_cache(maxsize=1_000)
def _rule_words(rules: str) -> str:
    return harmless(", ".join(json.loads(rules)))


def _for_people(rows: Iterable[list[str]]) -> Iterator[list[str]]:
    """Yields the rows with harmless texts, rules as words, and the currency."""
    for row in rows:
        row[_QUERY] = _harmless_name(row[_QUERY])
        row[_TITLE] = harmless(row[_TITLE]) if row[_TITLE] else ""
        row[_RULES] = _rule_words(row[_RULES])
        row.append(_CODES.get(row[_DOMAIN], ""))
        yield row


def _write_csv(parts: Iterable[TextRows], output: Output) -> int:
    count = 0
    page = io.StringIO(newline="")
    writer = csv.writer(page)
    # The mark makes Excel read UTF-8.
    page.write("\ufeff")
    writer.writerow(HEADERS)
    for part in parts:
        writer.writerows(_for_people(part.rows))
        count += len(part.rows)
        output.write(page.getvalue().encode())
        page.seek(0)
        page.truncate()
    output.write(page.getvalue().encode())
    return count


def _write_jsonl(parts: Iterable[TextRows], output: Output) -> int:
    count = 0
    encode = json.JSONEncoder(ensure_ascii=False).encode
    # An unknown number is null, so is a text; numbers and lists are JSON as they are.
    quoted = [name in _TEXTS or name in _TIMES for name in HEADERS]
    names = [f'"{name}":' for name in HEADERS]
    columns = list(zip(names, quoted, strict=True))
    for part in parts:
        lines = []
        for row in part.rows:
            row.append(_CODES.get(row[_DOMAIN], ""))
            cells = [
                f"{name}{(encode(cell) if is_text else cell) if cell else 'null'}"
                for cell, (name, is_text) in zip(row, columns, strict=True)
            ]
            lines.append(f"{{{','.join(cells)}}}\n")
        output.write("".join(lines).encode())
        count += len(lines)
    return count


def _write_xlsx(parts: Iterable[TextRows], output: Output) -> int:
    kinds = [
        Kind.TIME if name in _TIMES else Kind.TEXT if name in _TEXTS | _LISTS else Kind.NUMBER
        for name in HEADERS
    ]
    # It is only written and flushed.
    stream = cast("IO[bytes]", _Stream(output))
    with Workbook(stream, HEADERS, kinds) as book:
        for part in parts:
            book.write(_for_people(part.rows))
    return book.rows


def _write_parquet(parts: Iterable[TextRows], output: Output) -> int:
    import pyarrow as pa  # noqa: PLC0415 - only this format needs it
    from pyarrow import parquet  # noqa: PLC0415 - as above

    def kind(name: str) -> Any:
        if name in _TIMES:
            return pa.timestamp("us", tz="UTC")
        if name in _LISTS:
            return pa.list_(pa.string())
        return pa.string() if name in _TEXTS else pa.int64()

    def column(name: str, cells: Sequence[str]) -> Any:
        if name in _LISTS:
            return pa.array([json.loads(cell) for cell in cells], type=kind(name))
        return pa.array([cell or None for cell in cells], type=pa.string()).cast(kind(name))

    schema = pa.schema([(name, kind(name)) for name in HEADERS])
    count = 0
    with parquet.ParquetWriter(pa.PythonFile(_Stream(output), mode="w"), schema) as writer:
        for rows in _grouped(parts, PARQUET_GROUP_ROWS):
            columns = list(zip(*rows, strict=True))
            columns.append(tuple(_CODES.get(domain, "") for domain in columns[_DOMAIN]))
            arrays = [column(*each) for each in zip(HEADERS, columns, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            count += len(rows)
    return count


def _grouped(parts: Iterable[TextRows], size: int) -> Iterator[list[list[str]]]:
    rows: list[list[str]] = []
    for part in parts:
        rows += part.rows
        if len(rows) >= size:
            yield rows
            rows = []
    if rows:
        yield rows


class _Stream(io.RawIOBase):
    """An output as the libraries want it: a file that can't be sought in."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def writable(self) -> bool:
        """Returns that it takes bytes."""
        return True

    def write(self, data: Any, /) -> int:
        """Passes some bytes on."""
        chunk = bytes(data)
        self._output.write(chunk)
        return len(chunk)
