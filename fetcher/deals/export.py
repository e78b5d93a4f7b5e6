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
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from fetcher.deals.formats import ExportFormat
from fetcher.postgres.deal_rows import COLUMNS, DealRows
from fetcher.replies.units import currency_code
from protos.process.visible_text import visible

FORMULA_SIGNS: Final = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
HEADERS: Final = (*COLUMNS, "currency")
# Excel's own limit, with one row for the header.
SHEET_ROWS: Final = 1_048_575
CELL_CHARACTERS: Final = 32_767
PARQUET_GROUP_ROWS: Final = 20_000

_DOMAIN: Final = COLUMNS.index("domain_id")
_TEXTS: Final = frozenset({"query", "state", "asin", "title", "currency"})
_TIMES: Final = frozenset({"creation_time", "reply_time", "first_seen", "judged_at"})
_LISTS: Final = frozenset({"failed_rules"})


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


def write_deals_file(parts: Iterable[DealRows], kind: ExportFormat, output: Output) -> int:
    """Writes *parts* to *output*; returns the number of rows.

    Raises:
        ImportError: The format's library is not installed.
    """
    writers = {
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


def _for_people(rows: Iterable[Sequence[Any]]) -> Iterator[list[Any]]:
    """Yields the rows with harmless texts, and lists as words."""
    for row in rows:
        cells = list(row)
        for index in _TEXT_PLACES:
            if cells[index]:
                cells[index] = harmless(cells[index])
        for index in _LIST_PLACES:
            cells[index] = harmless(", ".join(cells[index] or ()))
        cells.append(currency_code(row[_DOMAIN]))
        yield cells


_TEXT_PLACES: Final = [index for index, name in enumerate(COLUMNS) if name in _TEXTS]
_TIME_PLACES: Final = [index for index, name in enumerate(COLUMNS) if name in _TIMES]
_LIST_PLACES: Final = [index for index, name in enumerate(COLUMNS) if name in _LISTS]


def _write_csv(parts: Iterable[DealRows], output: Output) -> int:
    count = 0
    page = io.StringIO(newline="")
    writer = csv.writer(page)
    # The mark makes Excel read UTF-8.
    page.write("\ufeff")
    writer.writerow(HEADERS)
    for part in parts:
        for cells in _for_people(part.rows):
            for index in _TIME_PLACES:
                if cells[index] is not None:
                    cells[index] = _time(cells[index])
            writer.writerow(cells)
        count += len(part.rows)
        output.write(page.getvalue().encode())
        page.seek(0)
        page.truncate()
    output.write(page.getvalue().encode())
    return count


def _write_jsonl(parts: Iterable[DealRows], output: Output) -> int:
    count = 0
    encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
    for part in parts:
        output.write("".join(f"{encode(as_json(row))}\n" for row in part.rows).encode())
        count += len(part.rows)
    return count


def _write_xlsx(parts: Iterable[DealRows], output: Output) -> int:
    import xlsxwriter  # noqa: PLC0415 - only this format needs it

    options = {
        "constant_memory": True,
        "strings_to_formulas": False,
        "strings_to_urls": False,
        "remove_timezone": True,
    }
    book = xlsxwriter.Workbook(_Stream(output), options)
    time_format = book.add_format({"num_format": "yyyy-mm-dd hh:mm:ss"})
    sheet, count = None, 0
    for part in parts:
        for cells in _for_people(part.rows):
            place = count % SHEET_ROWS
            if place == 0:
                sheet = book.add_worksheet()
                sheet.write_row(0, 0, HEADERS)
            _write_cells(sheet, place + 1, cells, time_format)
            count += 1
    if sheet is None:
        book.add_worksheet().write_row(0, 0, HEADERS)
    book.close()
    return count


def _write_cells(sheet: Any, row: int, cells: Sequence[Any], time_format: Any) -> None:
    for column, value in enumerate(cells):
        if value is None or value == "":
            continue
        if isinstance(value, str):
            sheet.write_string(row, column, value[:CELL_CHARACTERS])
        elif isinstance(value, datetime):
            sheet.write_datetime(row, column, value.astimezone(UTC), time_format)
        else:
            sheet.write_number(row, column, value)


def _write_parquet(parts: Iterable[DealRows], output: Output) -> int:
    import pyarrow as pa  # noqa: PLC0415 - only this format needs it
    from pyarrow import parquet  # noqa: PLC0415 - as above

    def kind(name: str) -> Any:
        if name in _TIMES:
            return pa.timestamp("us", tz="UTC")
        if name in _LISTS:
            return pa.list_(pa.string())
        return pa.string() if name in _TEXTS else pa.int64()

    schema = pa.schema([(name, kind(name)) for name in HEADERS])
    count = 0
    with parquet.ParquetWriter(pa.PythonFile(_Stream(output), mode="w"), schema) as writer:
        for rows in _grouped(parts, PARQUET_GROUP_ROWS):
            columns = list(zip(*rows, strict=True))
            columns.append(tuple(currency_code(domain) for domain in columns[_DOMAIN]))
            arrays = [
                pa.array(values, type=field.type)
                for values, field in zip(columns, schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            count += len(rows)
    return count


def _grouped(parts: Iterable[DealRows], size: int) -> Iterator[list[tuple[Any, ...]]]:
    rows: list[tuple[Any, ...]] = []
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
