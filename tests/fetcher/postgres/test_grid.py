"""Searches in the grid: by index or in order, within their time, and words of titles."""

from collections.abc import Iterator

import psycopg
import pytest

from deploy.local.postgres import PostgresServer
from fetcher.deals.filters import SORTS, Cursor, DealFilter, Sort, read_filter
from fetcher.postgres.database import Connection
from fetcher.postgres.deal_rows import COLUMNS, CONDITIONS, read_deal_rows
from fetcher.postgres.grid import INDEXED, GridPage, read_grid
from fetcher.postgres.overview import Rejections, rejections
from fetcher.work.page_commit import write_deals
from tests.fetcher.keepa_pages import MINUTE_MS, NOON_MS, asin, query, reply, row

TITLES = {
    0: "The Hitch-Hiker's Guide (42nd Edition)",
    1: "GUIDE to hiking",
    2: "ソニー ワイヤレスイヤホン WF-1000XM5",
    3: "100% cotton, size_L; 'quoted' \\ {{ 7 }}",
    4: "Ünïcode “curly” quotes \u2013 and dashes",
    5: None,
}
EVERY_FILTER = {
    "query": "used",
    "state": "rejected",
    "domain": "1",
    "price_type": "2",
    "asin": asin(7),
    "title": "product",
    "category": "283155",
    "condition": "1",
    "price_min": "1500",
    "price_max": "1500",
    "drop_percent_min": "40",
    "profit_min": "-100000",
    "roi_percent_min": "-1000",
    "rank_max": "5010",
    "rating_min": "45",
    "reviews_min": "7",
    "new_offers_min": "3",
    "used_offers_min": "3",
    "rule": "price",
    "created_within": "999999d",
    "judged_within": "1h",
    "judged_since": "2025-01-01T00:00+02:00",
}


@pytest.fixture(scope="module")
def shelf(postgres_server: PostgresServer, migrated_template: str) -> Iterator[Connection]:
    """Sixty deals, some of unknown price, rank or drop."""
    url = postgres_server.create_database("grid", template=migrated_template)
    with psycopg.connect(url, autocommit=True) as connection:
        deals = []
        for number in range(60):
            price = 1000 + number % 3 * 500 if number % 5 else -1
            deal = row(number, price=price, title=TITLES.get(number, f"Product {number}"))
            deal["current"][16], deal["current"][17] = 40 + number % 10, number
            deal["current"][3] = 5000 + number if number % 4 else -1
            deals.append(deal)
        asked = query(rules={"price": {"max": 1600}})
        with connection.transaction():
            write_deals(connection, asked, reply(deals), scan_id=None)
        connection.execute("ANALYZE")
        yield connection


def asins(page: GridPage) -> list[str]:
    """The products of a page."""
    return [found["asin"] for found in page.rows]


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("name", EVERY_FILTER)
def test_both_searches_and_the_export_find_the_same(
    shelf: Connection, name: str, *, beyond: bool
) -> None:
    """In order, by index and for programs; a bound beyond all values lets no unknown one in."""
    text = EVERY_FILTER[name]
    if beyond and name.endswith(("_min", "_max")):
        text = f"{'-' if name.endswith('_min') else ''}{'9' * 18}"
    wanted = read_filter({name: text})
    in_order = read_grid(shelf, wanted, limit=100)
    by_index = read_grid(shelf, wanted, limit=100, first_rows=1)
    listed = read_deal_rows(shelf, wanted, limit=100)

    assert asins(in_order) == asins(by_index)
    assert asins(in_order) == [found[COLUMNS.index("asin")] for found in listed.rows]
    assert in_order.count == by_index.count == len(in_order.rows)


def test_every_filter_is_tried() -> None:
    """A filter that is added later is compared too."""
    assert EVERY_FILTER.keys() == CONDITIONS.keys() > INDEXED.keys()


@pytest.mark.parametrize("sort", [sort for sort in SORTS if sort != "changed"])
def test_pages_by_either_search_show_every_deal_once(shelf: Connection, sort: Sort) -> None:
    """Turned by cursors, whichever search has found the page."""
    seen: list[str] = []
    after: Cursor | None = None
    for number in range(9):
        page = read_grid(
            shelf, DealFilter(), sort=sort, after=after, limit=7, first_rows=1 + number % 2 * 99
        )
        seen += asins(page)
        after = page.next

    assert after is None
    assert len(seen) == len(set(seen)) == 60


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("guide", {0, 1}),
        ("GUI", {0, 1}),
        ("guide hik", {0, 1}),
        ("hiking guide", {1}),
        ("uide", set()),
        ("42nd", {0}),
        ("hiker's", {0}),
        ("イヤホン", {2}),
        ("ホンイヤ", {2}),
        ("wf-1000xm5", {2}),
        ("100% cotton", {3}),
        ("100%", {2, 3}),
        ("size l", {3}),
        ("curly quotes", {4}),
        ("%", set()),
        ("'", set()),
        ("' OR true --", set()),
        ("\u202e\u200b", set()),
        ("!&|:*()<->", set()),
        ("x" * 200, set()),
    ],
)
def test_a_search_is_for_words_and_beginnings(
    shelf: Connection, search: str, found: set[int]
) -> None:
    """In any order and case; signs separate words, and are never an operator."""
    wanted = read_filter({"title": search})
    pages = [read_grid(shelf, wanted, limit=50, first_rows=rows) for rows in (1, 100)]
    listed = read_deal_rows(shelf, wanted).rows

    assert [set(asins(page)) for page in pages] == [{asin(number) for number in found}] * 2
    assert len(listed) == len(found)


def test_the_words_follow_the_title(database_url: str) -> None:
    """A new title is found, the one before is not; so is one that was unknown."""
    with psycopg.connect(database_url, autocommit=True) as connection:

        def serve(minutes: int, title: str | None) -> None:
            at_ms = NOON_MS + minutes * MINUTE_MS
            changed = row(1, title=title, updated_ms=at_ms)
            with connection.transaction():
                write_deals(connection, query(), reply([changed], at_ms), scan_id=None)

        def finds(search: str) -> bool:
            wanted = DealFilter(title=search)
            return bool(read_grid(connection, wanted, limit=1, first_rows=1).rows)

        serve(0, None)
        serve(1, "Silver spoon")
        first = finds("silver"), finds("golden")
        serve(2, "Golden spoon")
        then = finds("silver"), finds("golden")
        connection.execute("DELETE FROM listings")
        left = connection.execute("SELECT count(*) FROM titles").fetchone()

    assert first == (True, False)
    assert then == (False, True)
    assert left == (0,)


def test_a_search_that_takes_too_long_names_where_it_stopped(shelf: Connection) -> None:
    """The page holds what the first rows have, their number, and the place behind them."""
    wanted = read_filter({"title": "guide"})
    with psycopg.connect(shelf.info.dsn) as other:
        other.execute("LOCK TABLE titles IN ACCESS EXCLUSIVE MODE")
        with shelf.transaction():
            page = read_grid(shelf, wanted, limit=5, first_rows=10, search_ms=50)
            on = read_grid(shelf, wanted, after=page.next, limit=5, first_rows=100, search_ms=50)
            bound = shelf.execute("SHOW statement_timeout").fetchone()

    assert set(asins(page)) == {asin(0), asin(1)}
    assert page.looked_through == 10
    assert page.is_estimate
    assert page.next is not None
    assert page.next.asin == asin(9)
    assert (asins(on), on.next, on.looked_through) == ([], None, None)
    assert bound == ("0",)


def test_rejections_are_counted_or_estimated(shelf: Connection) -> None:
    """A sample covers whole blocks; of one block it is everything."""

    def counts(found: Rejections) -> dict[tuple[str, str | None], int]:
        return {(each["state"], each["rule"]): each["deals"] for each in found.rows}

    exact = rejections(shelf, query=None, since=None)
    sampled = rejections(shelf, query="used", since=None, counted_max=30)
    insisted = rejections(shelf, query="used", since=None, counted_max=30, exact=True)

    assert exact.sampled is None
    assert counts(exact)["rejected", None] == counts(exact)["rejected", "price"] == 28
    assert sampled.sampled == pytest.approx(0.5)
    assert insisted == exact
