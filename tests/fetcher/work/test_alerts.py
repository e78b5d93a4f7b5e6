"""Alerts are put into the outbox with the page that causes them, once per crossing."""

from collections.abc import Iterator
from typing import Any

import pytest

from fetcher.postgres import Database
from fetcher.postgres.alerts import end_first_run, standings_of_alerts
from fetcher.postgres.database import Connection
from fetcher.postgres.marks import remove_mark, set_mark
from fetcher.postgres.products import store_products, want_products
from fetcher.queries.judging import request_of
from fetcher.queries.query import DealQuery
from fetcher.replies.products import parse_products
from fetcher.work.page_commit import write_deals
from fetcher.work.verdicts import judge_again, judge_outdated
from tests.fetcher.builders import product_row
from tests.fetcher.keepa_pages import MINUTE_MS, NOON_MS, asin, query, reply, row
from tests.fetcher.work.test_page_commit import claim, commit, start

TEAM = [{"channel": "team"}]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database."""
    with Database(database_url) as database:
        yield database


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """One transaction in a migrated database."""
    with database.connection() as connection:
        yield connection


def prime(connection: Connection, asked: DealQuery) -> None:
    """Ends the first run of the query's alerts."""
    standings_of_alerts(connection, asked)
    end_first_run(connection, asked)


def serve(
    connection: Connection,
    asked: DealQuery,
    *rows: dict[str, Any],
    minutes: int = 0,
    fills_gap: bool = False,
) -> None:
    """Writes rows as served to *asked*."""
    paid = reply(rows, NOON_MS + minutes * MINUTE_MS)
    write_deals(connection, asked, paid, scan_id=None, fills_gap=fills_gap)


def outbox(connection: Connection) -> list[tuple[Any, ...]]:
    """The reports in the outbox: channel, ASIN, occasion, and which message they are in."""
    return connection.execute(
        "SELECT a.channel, a.asin, a.occasion, dense_rank() OVER (ORDER BY message)::int"
        "  FROM alerts a ORDER BY a.id"
    ).fetchall()


def messages(connection: Connection) -> list[tuple[Any, ...]]:
    """The messages in the outbox."""
    return connection.execute(
        "SELECT channel, kind, content FROM alert_messages ORDER BY id"
    ).fetchall()


def test_a_page_reports_its_accepted_deals_in_one_message(connection: Connection) -> None:
    """Rejected deals are not reported, and a second reading reports nothing."""
    asked = query(rules={"price": {"max": 1500}}, alerts=TEAM)
    prime(connection, asked)
    for minutes in (0, 0, 1, 60):
        serve(connection, asked, row(1), row(2), row(3, price=2000), minutes=minutes)

    assert outbox(connection) == [
        ("team", asin(1), "crossing", 1),
        ("team", asin(2), "crossing", 1),
    ]
    assert messages(connection) == [("team", "deals", None)]


def test_the_first_scan_reports_a_summary(database: Database) -> None:
    """A new query alerts to nothing; its first scan's matches are counted in one message."""
    asked = query(rules={"price": {"max": 1500}}, alerts=TEAM)
    start(database, asked)
    commit(database, claim(database, asked), asked, reply([row(0), row(1), row(2, price=2000)]))
    start(database, asked)
    later_ms = NOON_MS + 60 * MINUTE_MS
    newest = row(9, created_ms=later_ms)
    commit(database, claim(database, asked), asked, reply([newest, row(0)], later_ms))
    with database.connection() as connection:
        kinds = messages(connection)

        assert [(kind, content and content["matches"]) for _, kind, content in kinds] == [
            ("summary", 2),
            ("deals", None),
        ]
        assert outbox(connection) == [("team", asin(9), "crossing", 1)]


def test_an_alert_added_later_is_silent_about_what_was_there(connection: Connection) -> None:
    """Deals that the query has accepted before are no news to a new alert."""
    serve(connection, query(), row(1))
    asked = query(alerts=TEAM)
    prime(connection, asked)
    serve(connection, asked, row(1), row(2), minutes=1)

    assert outbox(connection) == [("team", asin(2), "crossing", 1)]


def test_changed_rules_report_nothing(connection: Connection) -> None:
    """Stored deals that new rules let through are no news."""
    strict = query(rules={"price": {"max": 500}}, alerts=TEAM)
    prime(connection, strict)
    serve(connection, strict, row(1), row(2))
    relaxed = query(rules={"price": {"max": 1500}}, alerts=TEAM)
    judged = judge_outdated(connection, relaxed)
    serve(connection, relaxed, row(1), minutes=1)

    assert judged == 2
    assert outbox(connection) == []


def test_a_late_reply_reports_nothing(connection: Connection) -> None:
    """An older page that comes in late changes neither verdict nor alert."""
    asked = query(rules={"price": {"max": 1500}}, alerts=TEAM)
    prime(connection, asked)
    serve(connection, asked, row(1, price=2000, updated_ms=NOON_MS), minutes=5)
    serve(connection, asked, row(1, price=1000, updated_ms=NOON_MS - MINUTE_MS))

    assert outbox(connection) == []


def test_old_deals_of_a_gap_are_no_news(connection: Connection) -> None:
    """A gap that the first scan left is read later, and floods no channel."""
    asked = query(alerts=TEAM)
    prime(connection, asked)
    future_ms = 2 * NOON_MS
    serve(connection, asked, row(1), row(2, created_ms=future_ms), fills_gap=True)

    assert outbox(connection) == [("team", asin(2), "crossing", 1)]


def test_two_alerts_of_a_query_go_to_their_channels(connection: Connection) -> None:
    """Each alert has its own condition and memory."""
    cheap = {"channel": "cheap", "when": {"price": {"max": 900}}}
    asked = query(alerts=[*TEAM, cheap])
    prime(connection, asked)
    serve(connection, asked, row(1))
    serve(connection, asked, row(1, price=900), minutes=30)

    assert outbox(connection) == [
        ("team", asin(1), "crossing", 1),
        ("cheap", asin(1), "crossing", 2),
    ]


def test_a_digest_collects_reports_of_several_pages(connection: Connection) -> None:
    """They go into one message until a sender claims it; the next ones into another."""
    asked = query(alerts=[{"channel": "team", "digest": "1h"}])
    prime(connection, asked)
    serve(connection, asked, row(1), row(2))
    serve(connection, asked, row(3), minutes=1)
    connection.execute("UPDATE alert_messages SET state = 'claimed', fence = 1")
    serve(connection, asked, row(4), minutes=2)
    due = connection.execute("SELECT not_before - created_at FROM alert_messages").fetchall()

    assert [place for *_, place in outbox(connection)] == [1, 1, 1, 2]
    assert {delay.total_seconds() for (delay,) in due} == {3600}


def test_details_decide_what_needs_them(connection: Connection) -> None:
    """An alert on profit waits for the product, and reports it with its profit."""
    asked = query(alerts=[{"channel": "team", "when": {"profit": {"min": 500}}}], enrichment=True)
    prime(connection, asked)
    serve(connection, asked, row(1))
    before = outbox(connection)
    request = request_of(asked)
    assert request is not None
    want_products(connection, request, {asin(1): None})
    bought = parse_products({"products": [product_row(asin(1))]}, domain_id=1, asins=(asin(1),))
    store_products(connection, request, bought.products, bought.raws, reply_time_ms=NOON_MS)
    for _ in range(2):
        judge_again(connection, [asked], 1, [asin(1)])
    reported = connection.execute("SELECT deal ->> 'profit_minor' FROM alerts").fetchall()

    assert before == []
    assert outbox(connection) == [("team", asin(1), "crossing", 1)]
    assert int(reported[0][0]) >= 500


def test_marked_products_are_not_reported(connection: Connection) -> None:
    """What a person has ignored or bought leaves the alerts, until the mark is taken off."""
    asked = query(alerts=TEAM)
    prime(connection, asked)
    set_mark(connection, asked.domain_id, asin(1), "bought", by="anna")
    serve(connection, asked, row(1), row(2))
    marked = [report[1] for report in outbox(connection)]
    remove_mark(connection, asked.domain_id, asin(1))
    serve(connection, asked, row(1, updated_ms=NOON_MS + MINUTE_MS), minutes=1)

    assert marked == [asin(2)]
    assert [report[1] for report in outbox(connection)] == [asin(2), asin(1)]


def test_a_hostile_title_is_stored(connection: Connection) -> None:
    """Zero bytes and halves of pairs, which Postgres can't store, cost no alert."""
    asked = query(alerts=TEAM)
    prime(connection, asked)
    serve(connection, asked, row(1, title="a\0b\ud800 <b>\x1b[31m" + "x" * 10_000))

    assert len(outbox(connection)) == 1


def test_pruned_deals_take_their_memory_along(connection: Connection) -> None:
    """A deal that comes back after it was deleted is new."""
    asked = query(alerts=TEAM)
    prime(connection, asked)
    serve(connection, asked, row(1))
    connection.execute("DELETE FROM listings")
    left = connection.execute("SELECT count(*) FROM alert_memory").fetchone()
    serve(connection, asked, row(1), minutes=60)

    assert left == (0,)
    assert len(outbox(connection)) == 2
