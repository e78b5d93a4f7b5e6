"""The filter of deals: its words, its rows in Postgres, and places in its lists."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.postgres import PostgresServer
from fetcher.deals.filters import (
    FIELDS,
    SORTS,
    Cursor,
    DealFilter,
    FilterError,
    Sort,
    read_filter,
)
from fetcher.postgres import Database
from fetcher.postgres.database import Connection
from fetcher.postgres.deal_rows import (
    COLUMNS,
    CONDITIONS,
    SORT_VALUES,
    DealRows,
    TextRows,
    read_deal_rows,
    stream_deal_rows,
)
from fetcher.work.page_commit import write_deals
from tests.fetcher.keepa_pages import NOON_MS, asin, query, reply, row

HOSTILE = ("' OR 1=1 --", "%", "_", "\\", "%(query)s", "{}", "é\u202e", "a" * 200)


@pytest.fixture(scope="module")
def shelf(postgres_server: PostgresServer, migrated_template: str) -> Iterator[Connection]:
    """Thirty deals, some alike in what they are sorted by, some without a value."""
    url = postgres_server.create_database("filters", template=migrated_template)
    with Database(url) as database:
        rows = [
            row(
                number,
                price=1000 + number % 3 * 500 if number % 5 else -1,
                title=f"Product 100% {number}" if number % 2 else None,
                created_ms=NOON_MS - number // 4 * 60_000,
            )
            for number in range(30)
        ]
        asked = query(rules={"price": {"max": 1600}})
        for start in (0, 10, 20):
            with database.connection() as connection:
                write_deals(connection, asked, reply(rows[start : start + 10]), scan_id=None)
        with database.connection() as connection:
            yield connection


def column(rows: DealRows | TextRows, name: str) -> list[Any]:
    """One column of *rows*."""
    return [found[COLUMNS.index(name)] for found in rows.rows]


@given(
    st.builds(
        DealFilter,
        query=st.none() | st.just("used"),
        state=st.none() | st.sampled_from(["accepted", "rejected", "pending"]),
        title=st.none() | st.sampled_from(HOSTILE),
        price_max=st.none() | st.integers(-(10**17), 10**17),
        created_within=st.none() | st.integers(0, 999_999).map(lambda seconds: seconds * 1000),
    )
)
def test_a_filter_survives_its_address(wanted: DealFilter) -> None:
    """What `parameters` writes is what `read_filter` reads."""
    assert read_filter(wanted.parameters()) == wanted


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prize_max", "5"),
        ("price_max", "5.5"),
        ("price_max", "1" * 19),
        ("state", "good"),
        ("asin", "B0"),
        ("created_within", "soon"),
        ("judged_since", "yesterday"),
        ("judged_since", "0001-01-01T00:00+14:00"),
        ("title", "x" * 201),
        ("title", "a\0b"),
        ("query", "\ud800"),
    ],
)
def test_a_mistake_names_its_filter(name: str, text: str) -> None:
    """A filter that can't be read never shows more deals than wanted."""
    with pytest.raises(FilterError) as caught:
        read_filter({name: text})

    assert caught.value.name == name


def test_an_empty_value_is_no_filter() -> None:
    """A form sends all its fields."""
    assert read_filter({field.name: " " for field in FIELDS}) == DealFilter()


@given(st.text() | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_no_text_breaks_the_reading_of_cursors(text: str) -> None:
    """A cursor from outside is one, or an error."""
    with pytest.raises(FilterError):
        Cursor.parse(text, sort="created")


@pytest.mark.parametrize(
    "values",
    [
        ["profit", 0, 1, "q", 1, "B", 2],
        ["created", 0, 2**70, "q", 1, "B", 2],
        ["created", 0, 1, "q", 2**15, "B", 2],
        ["created", True, 1, "q", 1, "B", 2],
        ["created", 0, 1, "q\0", 1, "B", 2],
        ["created", 0, 1, "q", 1, "B"],
        {"created": 1},
    ],
)
def test_a_cursor_of_another_list_is_refused(values: object) -> None:
    """The order and every type must fit."""
    text = base64.urlsafe_b64encode(json.dumps(values).encode()).decode()
    with pytest.raises(FilterError):
        Cursor.parse(text, sort="created")


def test_every_filter_and_sort_has_its_sql() -> None:
    """Words and statements cover each other."""
    assert CONDITIONS.keys() == {field.name for field in FIELDS}
    assert SORT_VALUES.keys() == SORTS.keys()


@pytest.mark.parametrize("sort", SORTS)
def test_pages_show_every_deal_once(shelf: Connection, sort: Sort) -> None:
    """In every order, page after page, with the same rows as one stream."""
    after: Cursor | None = None
    seen: list[str] = []
    pages = 0
    while len(seen) < 30 and pages < 5:
        page = read_deal_rows(shelf, DealFilter(), sort=sort, after=after, limit=7)
        seen += column(page, "asin")
        after = None if page.next is None else Cursor.parse(str(page.next), sort=sort)
        pages += 1
    with stream_deal_rows(shelf, DealFilter(), sort=sort) as parts:
        streamed = [found for part in parts for found in column(part, "asin")]

    assert pages == 5
    assert len(set(seen)) == len(seen) == 30
    assert streamed == seen
    assert (after is None) is (sort != "changed")


def test_rows_without_a_value_come_last(shelf: Connection) -> None:
    """Lowest price first; a deal of unknown price is behind all others."""
    prices = column(read_deal_rows(shelf, DealFilter(), sort="price"), "price_minor")
    known = [price for price in prices if price is not None]

    assert known == sorted(known)
    assert prices == known + [None] * 6


def test_a_reader_goes_on_from_its_cursor_and_misses_no_change(database_url: str) -> None:
    """A transaction that began earlier and commits later is not skipped."""
    with Database(database_url) as database:

        def changed(after: Cursor | None) -> tuple[list[str], Cursor | None]:
            with database.connection() as connection:
                page = read_deal_rows(connection, DealFilter(), sort="changed", after=after)
            return column(page, "asin"), page.next

        with database.connection() as early:
            write_deals(early, query(), reply([row(1)]), scan_id=None)
            with database.connection() as late:
                write_deals(late, query(), reply([row(2)]), scan_id=None)
            before, place = changed(None)
        after, place = changed(place)
        with database.connection() as connection:
            write_deals(connection, query(), reply([row(2, price=5)], NOON_MS + 1), scan_id=None)
        again, place = changed(place)
        last, _ = changed(place)

    assert before == []
    assert after == [asin(1), asin(2)]
    assert again == [asin(2)]
    assert last == []


def test_a_cursor_of_another_server_is_refused(shelf: Connection) -> None:
    """Its transactions have other numbers."""
    place = Cursor("changed", 1, 1, "used", 1, asin(1), 2)
    with pytest.raises(FilterError):
        read_deal_rows(shelf, DealFilter(), sort="changed", after=place)


def test_a_marked_product_is_not_shown(database_url: str) -> None:
    """Whatever was marked by hand is out of lists and exports."""
    with Database(database_url) as database, database.connection() as connection:
        write_deals(connection, query(), reply([row(1), row(2)]), scan_id=None)
        connection.execute(
            "INSERT INTO marks (domain_id, asin, mark, marked_by) VALUES (1, %s, 'ignored', 'me')",
            (asin(1),),
        )
        shown = column(read_deal_rows(connection, DealFilter()), "asin")

    assert shown == [asin(2)]


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ({"state": "accepted"}, 16),
        ({"state": "rejected"}, 14),
        ({"query": "used"}, 30),
        ({"query": "other"}, 0),
        ({"asin": asin(3).lower()}, 1),
        ({"title": "PRODUCT 100%"}, 15),
        ({"title": "100_"}, 15),
        ({"title": "roduct"}, 0),
        ({"price_min": "1500", "price_max": "1500"}, 8),
        ({"price_max": "9" * 18}, 24),
        ({"rank_max": "5009"}, 10),
        ({"profit_min": "-999999"}, 0),
        ({"domain": "99999999"}, 0),
        ({"judged_within": "1h"}, 30),
        ({"judged_since": "2025-01-01"}, 30),
        ({"judged_since": "9999-12-31T23:59:59Z"}, 0),
    ],
)
def test_filters_select_rows(shelf: Connection, wanted: dict[str, str], count: int) -> None:
    """Each limit selects what is known to be within it."""
    assert len(read_deal_rows(shelf, read_filter(wanted), limit=1000).rows) == count


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_titles_are_only_looked_for(shelf: Connection, text: str) -> None:
    """A pattern or a statement in a filter is text."""
    found = read_deal_rows(shelf, DealFilter(title=text, query=text)).rows

    assert found == []
