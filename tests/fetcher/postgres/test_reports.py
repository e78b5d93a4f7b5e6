"""The listings of the commands, from the grid, are those of the verdicts themselves."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from fetcher.postgres import Database
from fetcher.postgres.database import Connection
from fetcher.postgres.reports import count_rejections, count_states, list_deals
from fetcher.queries.query import parse_query
from fetcher.work.page_commit import write_deals
from tests.fetcher.keepa_pages import MINUTE_MS, NOON_MS, asin, query_text, reply, row

STATES = """
SELECT query, state, count(*) FROM final_verdicts GROUP BY query, state ORDER BY query, state
"""
RULES = """
SELECT query, failure ->> 'rule', count(*) FILTER (WHERE failure ->> 'outcome' = 'failed'),
       count(*) FILTER (WHERE failure ->> 'outcome' = 'unknown')
  FROM final_verdicts, jsonb_array_elements(failures) AS failure
 WHERE state = 'rejected' GROUP BY 1, 2 ORDER BY 1, count(*) DESC, 2
"""
# As if details of some products had been bought: the verdict with them counts.
OVERRULE = """
INSERT INTO verdicts (query, domain_id, asin, price_type, stage, state, failures, rule_version,
                      reply_time)
SELECT query, domain_id, asin, price_type, 'product', 'rejected',
       '[{"rule": "offers", "outcome": "unknown"}, {"rule": "profit", "outcome": "failed"}]',
       rule_version, reply_time
  FROM verdicts WHERE asin = ANY(%s)
"""


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """Ten deals that three queries have judged, the newest with the lowest number."""
    rules: tuple[dict[str, object], ...] = ({}, {"price": {"max": 1004}}, {"price": {"max": 900}})
    with Database(database_url) as database, database.connection() as connection:
        for minutes, wanted in enumerate(rules):
            query = parse_query(f"query-{minutes}", query_text(rules=wanted))
            rows = [row(number, price=1000 + number) for number in range(10)]
            write_deals(
                connection, query, reply(rows, NOON_MS + minutes * MINUTE_MS), scan_id=None
            )
        connection.execute(OVERRULE, ([asin(1), asin(7)],))
        yield connection


def test_the_newest_deals_are_listed_once_though_each_query_has_judged_them(
    connection: Connection,
) -> None:
    """A limit counts deals, not verdicts."""
    listed = list_deals(connection, query=None, state=None, limit=4)

    assert [deal["asin"] for deal in listed] == [asin(number) for number in range(4)]
    assert all(len(deal["verdicts"]) == 3 for deal in listed)


def test_deals_are_listed_by_query_and_by_the_verdict_that_counts(connection: Connection) -> None:
    """A verdict with details hides the one without."""
    accepted = list_deals(connection, query="query-1", state="accepted", limit=4)
    rejected = list_deals(connection, query="query-0", state="rejected", limit=4)

    assert [deal["asin"] for deal in accepted] == [asin(number) for number in (0, 2, 3, 4)]
    assert [deal["asin"] for deal in rejected] == [asin(1), asin(7)]


def test_deals_of_one_moment_do_not_widen_a_limit(connection: Connection) -> None:
    """Deals without a time of creation stand last, in the order of their keys."""
    connection.execute("UPDATE deals SET creation_time = NULL WHERE asin >= %s", (asin(2),))
    listed = list_deals(connection, query="query-0", state=None, limit=4)

    assert [deal["asin"] for deal in listed] == [asin(number) for number in range(4)]


def test_counts_are_those_of_the_verdicts_that_count(connection: Connection) -> None:
    """States and rules agree with all verdicts, read one by one."""
    states = {
        (counts["query"], state): counts[state]
        for counts in count_states(connection, query=None, since=None)
        for state in ("accepted", "pending", "rejected")
        if counts[state]
    }
    rules = [
        tuple(counts.values()) for counts in count_rejections(connection, query=None, since=None)
    ]

    assert states == {(query, state): n for query, state, n in connection.execute(STATES)}
    assert rules == connection.execute(RULES).fetchall()
    assert len(rules) >= 5


def test_counts_of_a_time_leave_older_verdicts_out(connection: Connection) -> None:
    """Only what was judged since then counts."""
    connection.execute(
        "UPDATE verdicts SET judged_at = now() - interval '2 days' WHERE query = 'query-2'"
    )
    day = timedelta(days=1)
    states = count_states(connection, query=None, since=day)
    rules = count_rejections(connection, query=None, since=day)

    assert {counts["query"] for counts in states} == {"query-0", "query-1"}
    assert {counts["query"] for counts in rules} == {"query-0", "query-1"}
