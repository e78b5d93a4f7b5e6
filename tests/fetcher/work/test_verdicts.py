"""Verdicts and the deals they are about: by price type, by date range, by site."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from fetcher.postgres import Database
from fetcher.postgres.database import Connection
from fetcher.postgres.products import store_products, want_products
from fetcher.postgres.reports import list_deals
from fetcher.postgres.retention import STATEMENTS, prune_some
from fetcher.queries.judging import request_of
from fetcher.queries.query import DealQuery, parse_query
from fetcher.replies.products import parse_products
from fetcher.work.page_commit import write_deals
from fetcher.work.verdicts import judge_again, judge_outdated
from tests.fetcher.builders import product_row
from tests.fetcher.keepa_pages import MINUTE_MS, NOON_MS, asin, query_text, reply, row

NEW, USED, RANK, COUNT_NEW, RATING = 1, 2, 3, 11, 16


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """One transaction in a migrated database."""
    with Database(database_url) as database, database.connection() as connection:
        yield connection


def asked(name: str, **wanted: Any) -> DealQuery:
    """A query called *name*."""
    return parse_query(name, query_text(**wanted))


def prices(number: int = 1, **by_type: Any) -> dict[str, Any]:
    """A row with used price 1000 and new price 2000, five offers and 4.5 stars."""
    served = row(number, **by_type)
    current = list(served["current"])
    current[NEW], current[USED], current[COUNT_NEW], current[RATING] = 2000, 1000, 5, 45
    # Drops of 10 % over a day, 40 % over 90 days.
    percent = [[10 * (index + 1)] * len(current) for index in range(4)]
    return {**served, "current": current, "deltaPercent": percent}


def serve(
    connection: Connection, query: DealQuery, *rows: dict[str, Any], minutes: int = 0
) -> None:
    """Writes rows as served to *query*."""
    paid = reply(
        rows,
        NOON_MS + minutes * MINUTE_MS,
        price_type=query.price_type,
        date_range=query.date_range,
    )
    write_deals(connection, query, paid, scan_id=None)


def listed(connection: Connection, query: str | None = None) -> list[dict[str, Any]]:
    """What `dealfetcher deals` lists."""
    return list_deals(connection, query=query, state=None, limit=10)


def test_two_queries_on_two_prices_of_a_product_keep_both(connection: Connection) -> None:
    """Each query shows its own price; the product stands once."""
    serve(connection, asked("used", price_type=USED), prices())
    serve(connection, asked("new", price_type=NEW), prices(), minutes=1)
    shown = {name: listed(connection, name)[0]["price_minor"] for name in ("used", "new")}
    listings = connection.execute("SELECT count(*) FROM listings").fetchone()

    assert shown == {"used": 1000, "new": 2000}
    assert len(listed(connection)) == 2
    assert listings == (1,)
    assert connection.execute("SELECT count(*) FROM deal_changes").fetchone() == (0,)


def test_two_date_ranges_on_one_price_see_their_own_drops(connection: Connection) -> None:
    """The drop stands with the verdict, in whatever order the queries read."""
    serve(connection, asked("quarter", date_range=3), prices())
    serve(connection, asked("day", date_range=0), prices(), minutes=1)
    drops = {name: listed(connection, name)[0]["drop_percent"] for name in ("quarter", "day")}

    assert drops == {"quarter": 40, "day": 10}
    assert len(listed(connection)) == 1


def test_the_newest_wins_for_each_price_type_apart(connection: Connection) -> None:
    """A late reply about one price proves nothing about the other."""
    used, new = asked("used", price_type=USED), asked("new", price_type=NEW)
    serve(connection, new, prices(), minutes=5)
    serve(connection, used, prices(), minutes=1)
    late = prices()
    late["current"][NEW] = 1
    serve(connection, new, late, minutes=3)

    assert listed(connection, "used")[0]["price_minor"] == 1000
    assert listed(connection, "new")[0]["price_minor"] == 2000


def test_what_changes_of_the_product_is_history_once(connection: Connection) -> None:
    """A new rating is the product's; a new price is one price's."""
    used, new = asked("used", price_type=USED), asked("new", price_type=NEW)
    changed = prices()
    changed["current"][RATING], changed["current"][USED] = 40, 900
    for query, served, minutes in (
        (used, prices(), 0),
        (new, prices(), 0),
        (used, changed, 1),
        (new, changed, 1),
    ):
        serve(connection, query, served, minutes=minutes)
    history = connection.execute("SELECT price_type, changes FROM deal_changes ORDER BY id")

    assert history.fetchall() == [
        (None, {"rating": [45, 40]}),
        (USED, {"price_minor": [1000, 900]}),
    ]


def test_a_query_that_changes_its_date_range_judges_again(connection: Connection) -> None:
    """Its drops are those of today's range, without a token."""
    serve(connection, asked("used", date_range=3), prices())
    today = asked("used", date_range=0)
    judged = [judge_outdated(connection, today) for _ in range(2)]

    assert judged == [1, 0]
    assert listed(connection, "used")[0]["drop_percent"] == 10


def test_a_query_that_changes_its_price_type_drops_its_old_verdicts(
    connection: Connection,
) -> None:
    """They are about a price that it no longer asks for."""
    serve(connection, asked("one", price_type=USED), prices())
    serve(connection, asked("one", price_type=NEW), prices(), minutes=1)
    judge_outdated(connection, asked("one", price_type=NEW))

    assert [deal["price_minor"] for deal in listed(connection, "one")] == [2000]


@pytest.mark.parametrize(("price_type", "value"), [(RANK, 5001), (COUNT_NEW, 5), (RATING, 45)])
def test_what_is_no_price_is_stored_as_what_it_is(
    connection: Connection, price_type: int, value: int
) -> None:
    """Its price, drop in money and average are unknown; its percentage stays."""
    serve(connection, asked("odd", price_type=price_type), prices())
    deal = listed(connection, "odd")[0]

    assert (deal["price_minor"], deal["value"]) == (None, value)
    assert (deal["drop_minor"], deal["average_minor"]) == (None, None)
    assert deal["drop_percent"] == 40


def test_a_count_brings_no_profit(connection: Connection) -> None:
    """Details don't turn seven offers into seven cents."""
    query = asked("odd", price_type=COUNT_NEW, enrichment=True)
    serve(connection, query, prices())
    buy(connection, query, 1)
    found = connection.execute(
        "SELECT profit_minor, roi_percent, profit -> 'missing' FROM verdicts"
        " WHERE stage = 'product'"
    ).fetchone()

    assert found is not None
    assert found[:2] == (None, None)
    assert "price" in found[2]


def buy(connection: Connection, query: DealQuery, *numbers: int) -> None:
    """Stores details of some products, as a reply holds them."""
    request = request_of(query)
    assert request is not None
    asins = tuple(map(asin, numbers))
    want_products(connection, request, dict.fromkeys(asins))
    page = parse_products(
        {"products": [product_row(each) for each in asins]}, domain_id=1, asins=asins
    )
    store_products(connection, request, page.products, page.raws, reply_time_ms=NOON_MS)
    judge_again(connection, [query], 1, asins)


def test_known_details_are_read_from_what_was_parsed_once(connection: Connection) -> None:
    """A page of known products needs none of their raw details, and judges alike."""
    query = asked("used", enrichment=True)
    serve(connection, query, prices(1), prices(2))
    buy(connection, query, 1, 2)
    statement = "SELECT asin, profit FROM verdicts WHERE stage = 'product' ORDER BY asin"
    before = connection.execute(statement).fetchall()
    # Whatever reads it fails.
    connection.execute("UPDATE products SET raw = '{}'")
    serve(connection, query, prices(1), prices(2), minutes=1)

    assert len(before) == 2
    assert connection.execute(statement).fetchall() == before


def test_details_that_another_revision_parsed_are_read_again(connection: Connection) -> None:
    """The row as served is the source."""
    query = asked("used", enrichment=True)
    serve(connection, query, prices())
    buy(connection, query, 1)
    statement = "SELECT profit FROM verdicts WHERE stage = 'product'"
    before = connection.execute(statement).fetchall()
    connection.execute("UPDATE products SET facts = '{}', facts_revision = 0")
    serve(connection, query, prices(), minutes=1)

    assert connection.execute(statement).fetchall() == before


def test_pruning_leaves_the_prices_that_are_still_served(connection: Connection) -> None:
    """A listing goes with its last deal, and details with it."""
    used, new = asked("used", enrichment=True), asked("new", price_type=NEW)
    serve(connection, used, prices(1), prices(2))
    serve(connection, new, prices(1))
    buy(connection, used, 1, 2)
    for table in ("deals", "listings"):
        connection.execute(f"UPDATE {table} SET reply_time = now() - interval '40 days'".encode())
    for table in ("deals", "listings"):
        fresh = f"UPDATE {table} SET reply_time = now() WHERE asin = '{asin(1)}'"
        also = " AND price_type = 1" if table == "deals" else ""
        connection.execute((fresh + also).encode())
    for what in STATEMENTS:
        prune_some(connection, what, timedelta(days=30))
    deals = connection.execute("SELECT asin, price_type FROM deals").fetchall()
    left = {
        table: connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
        for table in ("listings", "verdicts", "products")
    }

    assert deals == [(asin(1), NEW)]
    assert left == {"listings": (1,), "verdicts": (1,), "products": (1,)}
