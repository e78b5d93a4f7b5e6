"""Exports and the API of deals: every row, in every format, harmless in any program."""

import csv
import io
import json
import threading
import zipfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from hypothesis import given
from hypothesis import strategies as st
from openpyxl import load_workbook
from pyarrow import parquet

from deploy.local.postgres import PostgresServer
from fetcher.commands.export import export_deals
from fetcher.deals import workbook
from fetcher.deals.api import deal_routes, openapi
from fetcher.deals.export import FORMULA_SIGNS, HEADERS, harmless, write_deals_file
from fetcher.deals.filters import FIELDS, DealFilter
from fetcher.deals.formats import ExportFormat
from fetcher.deals.workbook import Kind, Workbook
from fetcher.postgres import Database
from fetcher.postgres.deal_rows import COLUMNS, TextRows, stream_deal_rows
from fetcher.work.page_commit import write_deals
from protos.process.environment import SettingsError
from tests.fetcher.keepa_pages import NOON_MS, asin, query, reply, row
from tests.waiting import DEADLINE_S

HOSTILE = '=HYPERLINK("http://evil.example";"x")\x1b[31m\u202e<b>\'\n' + "y" * 500
ROWS = 25


@pytest.fixture(scope="module")
def shelf(postgres_server: PostgresServer, migrated_template: str) -> str:
    """The URL of a database with some deals, one of them with a hostile title."""
    url = postgres_server.create_database("exports", template=migrated_template)
    with Database(url) as database, database.connection() as connection:
        rows = [row(number, title=None) for number in range(ROWS)]
        write_deals(connection, query(), reply(rows), scan_id=None)
        # The parser of replies would clean it.
        connection.execute("UPDATE listings SET title = %s WHERE asin = %s", (HOSTILE, asin(3)))
    return url


def export(url: str, folder: Path, kind: ExportFormat, **options: Any) -> Path:
    """Exports into a file."""
    target = folder / f"deals.{kind}"
    wanted: dict[str, Any] = {"where": (), "since": None, "cursor_file": None, "sort": None}
    export_deals(url, kind=kind, to=str(target), **(wanted | options))
    return target


def test_csv_has_every_row_and_no_formula(shelf: str, tmp_path: Path) -> None:
    """Excel reads it as UTF-8; a title that is a formula is text."""
    text = export(shelf, tmp_path, ExportFormat.CSV).read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))))
    [hostile] = [found for found in rows if found["title"]]

    assert text.startswith("\ufeffquery,state,domain_id,asin")
    assert {found["asin"] for found in rows} == {asin(number) for number in range(ROWS)}
    assert hostile["title"].startswith("'=HYPERLINK")
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert (hostile["price_minor"], hostile["currency"]) == ("1000", "USD")


def test_a_workbook_holds_texts_and_no_formula(shelf: str, tmp_path: Path) -> None:
    """Another program reads its texts, numbers and times; nothing in it is a formula."""
    path = export(shelf, tmp_path, ExportFormat.XLSX)
    rows = [[cell.value for cell in row] for row in load_workbook(path).active.iter_rows()]
    found = [dict(zip(HEADERS, row, strict=True)) for row in rows[1:]]
    [hostile] = [each for each in found if each["title"]]
    with zipfile.ZipFile(path) as book:
        sheet = book.read("xl/worksheets/sheet1.xml").decode()

    assert tuple(rows[0]) == HEADERS
    assert len(found) == ROWS
    assert hostile["title"].startswith("'=HYPERLINK")
    assert (hostile["price_minor"], hostile["currency"]) == (1000, "USD")
    assert hostile["reply_time"] == datetime.fromtimestamp(NOON_MS / 1000, UTC).replace(
        tzinfo=None
    )
    assert "<f>" not in sheet
    assert "<hyperlink" not in sheet


def test_a_full_sheet_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each begins with the headers; no row is lost, whatever the parts are."""
    monkeypatch.setattr(workbook, "SHEET_ROWS", 10)
    output = io.BytesIO()
    with Workbook(output, ["a", "b"], [Kind.NUMBER, Kind.TEXT]) as book:
        for start, end in ((0, 4), (4, 10), (10, 31), (31, 31)):
            book.write([str(number), "<&> \u00fc"] for number in range(start, end))
    sheets = [list(sheet.values) for sheet in load_workbook(output).worksheets]

    assert book.rows == 31
    assert [len(sheet) for sheet in sheets] == [11, 11, 11, 2]
    assert all(sheet[0] == ("a", "b") for sheet in sheets)
    assert [row for sheet in sheets for row in sheet[1:]] == [(n, "<&> \u00fc") for n in range(31)]


def test_a_sheet_that_is_full_at_the_end_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sheet of headers alone follows; without a row there is just one."""
    monkeypatch.setattr(workbook, "SHEET_BYTES", 1)
    lengths = []
    for parts in (0, 2):
        output = io.BytesIO()
        with Workbook(output, ["a"], [Kind.NUMBER]) as book:
            for number in range(parts):
                book.write([[str(number)]])
        lengths.append([len(list(sheet.values)) for sheet in load_workbook(output).worksheets])

    assert lengths == [[1], [2, 2]]


def test_json_lines_hold_texts_as_they_are(shelf: str, tmp_path: Path) -> None:
    """Each line is an object; times are UTC."""
    lines = export(shelf, tmp_path, ExportFormat.JSONL).read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    [hostile] = [found for found in rows if found["title"]]

    assert len(rows) == ROWS
    assert hostile["title"] == HOSTILE
    assert tuple(hostile) == HEADERS
    assert hostile["reply_time"] == datetime.fromtimestamp(NOON_MS / 1000, UTC).strftime(
        "%Y-%m-%dT%H:%M:%S.000Z"
    )


def test_parquet_has_types(shelf: str, tmp_path: Path) -> None:
    """Numbers are integers, times are timestamps."""
    table = parquet.read_table(export(shelf, tmp_path, ExportFormat.PARQUET))

    assert table.num_rows == ROWS
    assert table.column_names == list(HEADERS)
    assert str(table.schema.field("reply_time").type) == "timestamp[us, tz=UTC]"
    assert HOSTILE in table.column("title").to_pylist()


@pytest.mark.parametrize("kind", ExportFormat)
def test_an_export_without_rows_is_a_file(kind: ExportFormat) -> None:
    """A filter that nothing matches gives an empty table."""
    output = io.BytesIO()

    assert write_deals_file([TextRows([], None)], kind, output) == 0
    assert kind is ExportFormat.JSONL or output.getvalue()


@pytest.mark.parametrize("kind", ExportFormat)
def test_a_full_disk_ends_an_export(shelf: str, tmp_path: Path, kind: ExportFormat) -> None:
    """The error comes out while most rows are unread, and the connection is left usable."""
    ends: list[Any] = []

    def export_into_it() -> None:
        with Database(shelf) as database, database.connection() as connection:
            with (
                Path("/dev/full").open("wb", buffering=0) as full,
                pytest.raises(OSError, match="No space"),
                stream_deal_rows(connection, DealFilter()) as parts,
            ):
                write_deals_file(parts, kind, full)
            ends.append(connection.execute("SELECT 1").fetchone())

    # A thread, as the rollback waited without end once.
    exporting = threading.Thread(target=export_into_it, daemon=True)
    exporting.start()
    exporting.join(DEADLINE_S)

    assert ends == [(1,)]


@given(st.text(max_size=20))
def test_no_text_becomes_a_formula(text: str) -> None:
    """Whatever a title holds, its cell does not begin with a sign of a formula."""
    assert not harmless(text).lstrip().startswith(FORMULA_SIGNS)


def test_a_cursor_file_exports_changes_only(shelf: str, tmp_path: Path, database_url: str) -> None:
    """The first export is complete, the next one has what changed since."""
    place = tmp_path / "place"
    with Database(database_url) as database:
        for numbers in ((1, 2), (2, 3)):
            with database.connection() as connection:
                rows = [row(number) for number in numbers]
                write_deals(connection, query(), reply(rows, NOON_MS + numbers[0]), scan_id=None)
            lines = export(database_url, tmp_path, ExportFormat.JSONL, cursor_file=place)
            found = [json.loads(line)["asin"] for line in lines.read_text().splitlines()]
            assert found == [asin(number) for number in numbers]
        again = export(database_url, tmp_path, ExportFormat.JSONL, cursor_file=place)

    assert again.read_text() == ""


@pytest.mark.parametrize(
    ("since", "rows"), [("24h", ROWS), ("2025-01-01", ROWS), ("9999-01-01T00:00+01:00", 0)]
)
def test_since_takes_ages_and_times(shelf: str, tmp_path: Path, since: str, rows: int) -> None:
    """What was judged since then."""
    text = export(shelf, tmp_path, ExportFormat.JSONL, since=since).read_text("utf-8")

    assert len(text.splitlines()) == rows


@pytest.mark.parametrize(
    "options",
    [
        {"where": ["price_max"]},
        {"where": ["prize_max=1"]},
        {"since": "nonsense"},
        {"sort": "color"},
        {"since": "24h", "cursor_file": Path("place")},
    ],
)
def test_a_mistake_leaves_no_file(shelf: str, tmp_path: Path, options: dict[str, Any]) -> None:
    """A refused export has written nothing."""
    with pytest.raises(SettingsError):
        export(shelf, tmp_path, ExportFormat.CSV, **options)

    assert list(tmp_path.iterdir()) == []


@pytest.fixture
async def api(shelf: str) -> AsyncIterator[tuple[ClientSession, str]]:
    """A client, and the address of a server with the API."""
    with Database(shelf) as database:
        app = web.Application()
        app.add_routes(deal_routes(database))
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with ClientSession() as session:
            yield session, f"http://127.0.0.1:{port}"
        await runner.cleanup()


async def test_the_api_pages_by_cursor(api: tuple[ClientSession, str]) -> None:
    """Every deal comes once; a page that has not changed is not sent again."""
    session, address = api
    seen: list[str] = []
    place: str | None = ""
    while place is not None:
        wanted = {"limit": "10", "sort": "price", "cursor": place}
        async with session.get(f"{address}/api/deals", params=wanted) as response:
            page = await response.json()
            tag = response.headers["ETag"]
        seen += [deal["asin"] for deal in page["deals"]]
        place = page["next"]
    known = {"If-None-Match": tag}
    async with session.get(f"{address}/api/deals", params=wanted, headers=known) as response:
        unchanged = response.status

    assert len(seen) == len(set(seen)) == ROWS
    assert unchanged == 304


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/api/deals?prize=1", "prize"),
        ("/api/deals?price_max=x", "price_max"),
        ("/api/deals?limit=1001", "limit"),
        ("/api/deals?limit=1&limit=2", "limit"),
        ("/api/deals?cursor=nonsense", "cursor"),
        ("/api/deals.csv?sort=color", "sort"),
        ("/api/deals.csv?state=good", "state"),
    ],
)
async def test_a_mistake_in_an_address_is_named(
    api: tuple[ClientSession, str], address: str, name: str
) -> None:
    """The answer is 400 with the parameter."""
    session, server = api
    async with session.get(server + address) as response:
        problem = await response.json()

    assert (response.status, problem["error"]["name"]) == (400, name)


@pytest.mark.parametrize("kind", ExportFormat)
async def test_downloads_are_files(api: tuple[ClientSession, str], kind: ExportFormat) -> None:
    """Each format can be downloaded, with the filters of the page."""
    session, server = api
    async with session.get(f"{server}/api/deals.{kind}?state=accepted") as response:
        body = await response.read()

    assert response.status == 200
    assert response.headers["Content-Disposition"] == f'attachment; filename="deals.{kind}"'
    assert len(body) > 1_000


async def test_the_description_names_all_filters(api: tuple[ClientSession, str]) -> None:
    """OpenAPI lists what the handlers read, and what a deal has."""
    session, server = api
    async with session.get(f"{server}/api/openapi.json") as response:
        described = await response.json()
    listing = described["paths"]["/api/deals"]["get"]

    assert described == openapi()
    assert {field.name for field in FIELDS} <= {one["name"] for one in listing["parameters"]}
    assert set(HEADERS) == set(described["components"]["schemas"]["Deal"]["properties"])
    assert set(COLUMNS) < set(HEADERS)
