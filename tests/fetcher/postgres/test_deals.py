"""Deals in Postgres: the newest row of each product, and what changed."""

from collections.abc import Iterator
from typing import Any

import pytest

from fetcher.postgres import Database
from fetcher.postgres.database import Connection
from fetcher.postgres.deals import known_asins, upsert_deals
from tests.fetcher.keepa_pages import MINUTE_MS, NOON_MS, PRICE_TYPE, asin, page, row


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database."""
    with Database(database_url) as database:
        yield database


def write(database: Database, *rows: dict[str, Any], served_ms: int = NOON_MS) -> None:
    """Stores rows as served at a time."""
    with database.connection() as connection:
        upsert_deals(connection, page(rows).deals, reply_time_ms=served_ms)


def stored(connection: Connection, column: str) -> Any:
    """A column of the only deal."""
    statement = f"SELECT {column} FROM deals"
    return connection.execute(statement.encode()).fetchall()[0][0]


def changes(connection: Connection) -> list[dict[str, Any]]:
    """What has changed, the oldest first."""
    statement = "SELECT changes FROM deal_changes ORDER BY id"
    return [found for (found,) in connection.execute(statement)]


def test_a_page_can_be_written_twice(database: Database) -> None:
    """Repeating a write changes nothing and is no change."""
    rows = [row(number) for number in range(150)]
    write(database, *rows)
    write(database, *rows)
    with database.connection() as connection:
        count = connection.execute("SELECT count(*) FROM deals").fetchone()
        history = changes(connection)

    assert count == (150,)
    assert history == []


def test_an_older_reply_never_overwrites_a_newer(database: Database) -> None:
    """The row updated last stays, whatever arrives last."""
    write(database, row(1, price=900, updated_ms=NOON_MS))
    write(database, row(1, price=1000, updated_ms=NOON_MS - 4 * MINUTE_MS))
    with database.connection() as connection:
        price = stored(connection, "price_minor")

    assert price == 900


def test_of_equally_updated_rows_the_one_served_last_stays(database: Database) -> None:
    """Averages move without an update of the product."""
    later_ms = NOON_MS + MINUTE_MS
    write(database, row(1, price=900, updated_ms=NOON_MS), served_ms=later_ms)
    write(database, row(1, price=1000, updated_ms=NOON_MS), served_ms=NOON_MS)
    with database.connection() as connection:
        price = stored(connection, "price_minor")

    assert price == 900


def test_an_update_from_the_future_does_not_stay_for_good(database: Database) -> None:
    """A row that claims to be from next year is replaced by an ordinary later one."""
    write(database, row(1, price=1, updated_ms=NOON_MS + 365 * 24 * 60 * MINUTE_MS))
    hour_later_ms = NOON_MS + 60 * MINUTE_MS
    write(database, row(1, price=900, updated_ms=hour_later_ms), served_ms=hour_later_ms)
    with database.connection() as connection:
        price = stored(connection, "price_minor")

    assert price == 900


def test_a_changed_price_is_history(database: Database) -> None:
    """Before and after are kept, in minor units."""
    write(database, row(1, price=1000))
    write(database, row(1, price=900), served_ms=NOON_MS + MINUTE_MS)
    with database.connection() as connection:
        history = changes(connection)

    assert history == [{"price_minor": [1000, 900]}]


def test_a_price_that_vanishes_is_unknown_not_zero(database: Database) -> None:
    """Keepa's -1 is null in the history too."""
    write(database, row(1, price=1000))
    write(database, row(1, price=-1), served_ms=NOON_MS + MINUTE_MS)
    write(database, row(1, price=0), served_ms=NOON_MS + 2 * MINUTE_MS)
    with database.connection() as connection:
        history = changes(connection)

    assert history == [{"price_minor": [1000, None]}, {"price_minor": [None, 0]}]


def test_strange_texts_can_be_stored(database: Database) -> None:
    """NUL, half a surrogate pair and HTML harm neither the row nor its page."""
    write(database, row(1, title="a\0b \ud800 <b>c</b>", extra={"x": "\0"}), row(2))
    with database.connection() as connection:
        known = known_asins(connection, 1, PRICE_TYPE, [asin(1), asin(2), asin(3)])

    assert known == {asin(1), asin(2)}
