"""Price history: written by whatever changes a price, imported, rolled up."""

import gzip
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fetcher.commands.history import import_history
from fetcher.commands.output import Format
from fetcher.postgres.database import Connection
from fetcher.postgres.history import price_history, write_points
from fetcher.postgres.retention import prune_some
from fetcher.replies.history import PricePoint
from fetcher.replies.units import ms_to_minutes
from fetcher.work.page_commit import write_deals
from tests.fetcher.keepa_pages import MINUTE_MS, NOON_MS, PRICE_TYPE, asin, query, reply, row

ASIN = asin(1)


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """A migrated database."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def serve(connection: Connection, minutes: int, **changes: Any) -> None:
    """Writes product 1 as served some *minutes* after noon; its price began then."""
    at_ms = NOON_MS + minutes * MINUTE_MS
    served = row(1, created_ms=at_ms, **changes)
    with connection.transaction():
        write_deals(connection, query(), reply([served], at_ms), scan_id=None)


def values(connection: Connection, price_type: int = PRICE_TYPE) -> list[tuple[int, int | None]]:
    """The history of one price: minutes after noon, and values."""
    noon = datetime.fromtimestamp(NOON_MS / 1000, UTC)
    return [
        ((found["time"] - noon) // timedelta(minutes=1), found["value"])
        for found in price_history(connection, 1, ASIN, [price_type])
    ]


def test_each_change_of_a_price_is_a_point(connection: Connection) -> None:
    """The first price, and each that differs, from the moment on that Keepa names."""
    serve(connection, 0, price=1000)
    serve(connection, 10, price=1000)
    serve(connection, 20, price=900)
    serve(connection, 30, price=1000)

    assert values(connection) == [(0, 1000), (20, 900), (30, 1000)]


def test_prices_of_the_product_have_their_own_history(connection: Connection) -> None:
    """Amazon's price and that of the buy box come with every deal, and may end."""
    for minutes, amazon, buy_box in ((0, 1500, 1400), (10, -1, 1400), (20, 1600, 1400)):
        served = row(1)["current"]
        served[0], served[18] = amazon, buy_box
        serve(connection, minutes, current=served)

    assert values(connection, 0) == [(0, 1500), (10, None), (20, 1600)]
    assert values(connection, 18) == [(0, 1400)]


def test_points_are_written_once(connection: Connection) -> None:
    """Details that repeat a history add only what is new."""
    points = [
        PricePoint(1, ASIN, 1, NOON_MS + n * MINUTE_MS, value) for n, value in ((0, 5), (2, None))
    ]
    first = write_points(connection, points, source="product")
    more = [*points, PricePoint(1, ASIN, 1, NOON_MS + 9 * MINUTE_MS, 7)]
    again = write_points(connection, more, source="product")

    assert (first, again) == (2, 1)
    assert values(connection, 1) == [(0, 5), (2, None), (9, 7)]


def body(*prices: int) -> bytes:
    """A saved reply of /product with these NEW prices, a minute apart."""
    start = ms_to_minutes(NOON_MS)
    flat = [part for n, price in enumerate(prices) for part in (start + n, price)]
    products = [{"asin": ASIN, "domainId": 1, "csv": [None, flat]}, {"asin": 5}, "x"]
    return json.dumps({"products": products}).encode()


def test_saved_replies_are_imported(
    connection: Connection, database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain or gzip; a file that is none is named, and stops no other."""
    plain, zipped, broken = (tmp_path / name for name in ("a.json", "b.json.gz", "c\x1b.json"))
    plain.write_bytes(body(900, 800))
    zipped.write_bytes(gzip.compress(body(900, 800, 700)))
    broken.write_text("no JSON")
    code = import_history(database_url, [plain, broken, zipped], output=Format.TABLE)
    printed = capsys.readouterr().out

    assert code == 1
    assert "no JSON" in printed
    assert "\x1b" not in printed
    assert "2 products with 5 prices, 3 new" in printed
    assert values(connection, 1) == [(0, 900), (1, 800), (2, 700)]


def test_stored_products_are_imported(
    connection: Connection, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without files, what the database holds of products is read."""
    serve(connection, 0)
    connection.execute(
        "INSERT INTO products (domain_id, asin, state, operation, parameters, unit_tokens, raw)"
        " VALUES (1, %s, 'known', 'product', '{}', 1, %s)",
        (ASIN, json.dumps(json.loads(body(900))["products"][0])),
    )
    code = import_history(database_url, [], output=Format.JSON)

    assert code == 0
    assert json.loads(capsys.readouterr().out)["new"] == 1
    assert values(connection, 1) == [(0, 900)]


def test_old_days_are_rolled_up(connection: Connection) -> None:
    """An old day keeps its last value, its lowest and its highest; young days stay whole."""
    now = datetime.now(UTC)
    old = (now - timedelta(days=200)).replace(hour=1, minute=0, second=0, microsecond=0)
    times = [old, old + timedelta(hours=3), old + timedelta(hours=9), old + timedelta(days=1)]
    times += [now - timedelta(hours=2), now - timedelta(hours=1)]
    points = [
        PricePoint(1, ASIN, 1, int(time.timestamp() * 1000), value)
        for time, value in zip(times, (500, 300, 400, 700, 1, 2), strict=True)
    ]
    write_points(connection, points, source="import")
    rolled = prune_some(connection, "prices", timedelta(days=90))
    again = prune_some(connection, "prices", timedelta(days=90))
    found = price_history(connection, 1, ASIN, [1])
    deleted = prune_some(connection, "old_prices", now - old - timedelta(hours=12))

    assert (rolled, again) == (2, 0)
    assert [(row["value"], row["low"], row["high"]) for row in found] == [
        (400, 300, 500), (700, None, None), (1, None, None), (2, None, None)
    ]  # fmt: skip
    assert deleted == 1
