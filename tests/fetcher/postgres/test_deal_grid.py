"""The console's narrow table holds, at every moment, what the wide ones do."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from fetcher.postgres.database import Connection
from fetcher.postgres.verdicts import delete_strays
from fetcher.queries.query import DealQuery, parse_query
from fetcher.work.page_commit import write_deals
from tests.fetcher.keepa_pages import MINUTE_MS, NOON_MS, query_text, reply, row

RULES = {"rules": {"price": {"max": 800}}}


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """A migrated database; afterwards the narrow table must agree with its view."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection
        # The table has one column more: when each row changed.
        names = connection.execute("SELECT * FROM grid_rows LIMIT 0").description or ()
        grid = f"SELECT {', '.join(column.name for column in names)} FROM deal_grid"
        differences = connection.execute(
            f"({grid} EXCEPT TABLE grid_rows) UNION ALL (TABLE grid_rows EXCEPT {grid})".encode()
        ).fetchall()
    assert differences == []


def asked(name: str, **head: Any) -> DealQuery:
    """A query called *name*."""
    return parse_query(name, query_text(**head))


def serve(
    connection: Connection, query: DealQuery, *rows: dict[str, Any], minutes: int = 0
) -> None:
    """Writes rows as served to *query*."""
    paid = reply(rows, NOON_MS + minutes * MINUTE_MS)
    with connection.transaction():
        write_deals(connection, query, paid, scan_id=None)


def shown(connection: Connection) -> list[tuple[Any, ...]]:
    """The grid, by query and price."""
    return connection.execute(
        "SELECT query, price_minor, state, failed_rules FROM deal_grid ORDER BY 1, 2"
    ).fetchall()


def test_a_page_is_in_the_grid_with_its_verdicts(connection: Connection) -> None:
    """State and failed rules stand beside the price."""
    serve(connection, asked("cheap", **RULES), row(1, price=700), row(2, price=900))

    assert shown(connection) == [
        ("cheap", 700, "accepted", []),
        ("cheap", 900, "rejected", ["price"]),
    ]


def test_a_new_price_reaches_every_query_that_has_judged_it(connection: Connection) -> None:
    """The reply came to one query only; the other one's row follows."""
    serve(connection, asked("cheap"), row(1, price=700))
    serve(connection, asked("other"), row(1, price=700), minutes=1)
    changed = row(1, price=650, updated_ms=NOON_MS + 5 * MINUTE_MS, title="Another")
    serve(connection, asked("cheap"), changed, minutes=5)

    assert [found[:2] for found in shown(connection)] == [("cheap", 650), ("other", 650)]


def test_what_is_deleted_leaves_the_grid(connection: Connection) -> None:
    """Deals that are pruned, and verdicts of a price that a query no longer asks for."""
    serve(connection, asked("cheap"), row(1, price=700), row(2, price=800))
    serve(connection, asked("other"), row(1, price=700))
    connection.execute("DELETE FROM deals WHERE price_minor = 800")
    before = len(shown(connection))
    delete_strays(connection, asked("other", price_type=1))

    assert before == 2
    assert [found[0] for found in shown(connection)] == ["cheap"]


def test_details_decide_while_they_are_there(connection: Connection) -> None:
    """The verdict with details counts; without it the first one does again."""
    serve(connection, asked("cheap"), row(1, price=700))
    connection.execute(
        "INSERT INTO verdicts SELECT (jsonb_populate_record(v, %s)).* FROM verdicts v",
        (Jsonb({"stage": "product", "state": "rejected"}),),
    )
    with_details = shown(connection)[0][2]
    connection.execute("DELETE FROM verdicts WHERE stage = 'product'")

    assert (with_details, shown(connection)[0][2]) == ("rejected", "accepted")
