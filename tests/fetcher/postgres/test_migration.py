"""A database of version 0.1 is carried over to deals by price type."""

import psycopg
import pytest

from fetcher.postgres import migrate
from fetcher.queries.query import DealQuery, parse_query
from fetcher.work.verdicts import judge_outdated
from tests.fetcher.first_schema import QUERIES, fill_first_schema
from tests.fetcher.keepa_pages import query_text

ROWS = 5_000


def asked(name: str) -> DealQuery:
    """The query called *name* as it stood when the database was filled."""
    price_type, date_range = QUERIES[name]
    return parse_query(name, query_text(price_type=price_type, date_range=date_range))


@pytest.fixture
def migrated_url(empty_database_url: str) -> str:
    """A database that was filled by version 0.1, migrated."""
    fill_first_schema(empty_database_url, ROWS)
    migrate(empty_database_url)
    return empty_database_url


def test_every_judged_price_has_its_deal(migrated_url: str) -> None:
    """Rows keep their type; prices that another query overwrote come back from the raw row."""
    with psycopg.connect(migrated_url) as connection:
        deals = connection.execute(
            "SELECT price_type, count(*), count(price_minor), count(value) FROM deals"
            " GROUP BY 1 ORDER BY 1"
        ).fetchall()
        wrong = connection.execute(
            "SELECT count(*) FROM deals WHERE price_minor <>"
            " CASE price_type WHEN 1 THEN 2000 WHEN 2 THEN 1000 END + substr(asin, 2)::int"
            " OR (raw -> 'current' ->> price_type)::int"
            " IS DISTINCT FROM coalesce(price_minor, value)"
        ).fetchone()
        homeless = connection.execute(
            "SELECT count(*) FROM verdicts v LEFT JOIN judged_deals j"
            " USING (query, domain_id, asin, price_type) WHERE j.title IS NULL"
        ).fetchone()
        listings = connection.execute("SELECT count(*), count(title) FROM listings").fetchone()
        history = connection.execute("SELECT count(*) FROM deal_changes").fetchone()

    assert deals == [(1, 2950, 2950, 0), (2, 3000, 3000, 0), (3, 50, 0, 50)]
    assert wrong == homeless == history == (0,)
    assert listings == (ROWS, ROWS)


def test_a_verdict_keeps_its_price_type_and_only_its_own_drop(migrated_url: str) -> None:
    """The drop of the query that wrote last is no other query's; those judge again."""
    with psycopg.connect(migrated_url) as connection:
        before = connection.execute(
            "SELECT query, price_type, date_range, count(*), count(drop_percent) FROM verdicts"
            " GROUP BY 1, 2, 3 ORDER BY 1"
        ).fetchall()
        for name in QUERIES:
            while judge_outdated(connection, asked(name)):
                pass
        after = connection.execute(
            "SELECT query, count(*), count(drop_percent), count(drop_minor) FROM verdicts"
            " GROUP BY 1 ORDER BY 1"
        ).fetchall()

    assert before == [
        ("fresh", 2, 0, 250, 0),
        ("new", 1, 3, 2950, 2450),
        ("ranks", 3, 3, 50, 50),
        ("used", 2, 3, 3000, 2500),
    ]
    assert after == [
        ("fresh", 250, 250, 250),
        ("new", 2950, 2950, 2950),
        ("ranks", 50, 50, 0),
        ("used", 3000, 3000, 3000),
    ]
