"""Alerts: what each remembers of each deal, and the outbox, all in the caller's transaction.

Law:
1. A report and the memory of it are written together with the verdict that caused them.
2. Decisions follow the stored verdicts: the verdicts' row locks, taken before, let one
   transaction at a time decide about a deal.
3. Rows are written in the order of their keys: writers never wait in a circle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

from psycopg.types.json import Jsonb

from fetcher.postgres.database import Connection, execute_each, instant, unix_ms
from fetcher.postgres.deals import as_jsonb
from fetcher.queries.alerts import Alert, Memory, Occasion
from fetcher.queries.query import DealQuery

RULES: Final[LiteralString] = "SELECT rule, added_at, primed_at FROM alert_rules WHERE query = %s"

ADD_RULE: Final[LiteralString] = """
INSERT INTO alert_rules (query, rule, channel) VALUES (%s, %s, %s)
ON CONFLICT DO NOTHING RETURNING rule
"""

# What the query has let through before the alert existed is no news.
REMEMBER_BEFORE: Final[LiteralString] = """
INSERT INTO alert_memory (query, rule, domain_id, asin, price_type, phase)
SELECT query, %(rule)s, domain_id, asin, price_type, 'before'
  FROM final_verdicts
 WHERE query = %(query)s AND domain_id = %(domain_id)s AND price_type = %(price_type)s
   AND state IN (%(state)s, 'pending')
 ORDER BY asin
ON CONFLICT DO NOTHING
"""

# A late reply changes no verdict, so it must cause no alert either.
JUDGED_AT: Final[LiteralString] = """
SELECT asin, reply_time FROM verdicts
 WHERE query = %s AND domain_id = %s AND asin = ANY(%s) AND price_type = %s AND stage = 'deal'
"""

MEMORY: Final[LiteralString] = """
SELECT asin, rule, phase, value, reported FROM alert_memory
 WHERE query = %s AND domain_id = %s AND asin = ANY(%s) AND price_type = %s
"""

REMEMBER: Final[LiteralString] = """
INSERT INTO alert_memory (query, rule, domain_id, asin, price_type, phase, value, reported)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (query, rule, domain_id, asin, price_type) DO UPDATE SET
    phase = EXCLUDED.phase, value = EXCLUDED.value, reported = EXCLUDED.reported
"""

FORGET: Final[LiteralString] = """
DELETE FROM alert_memory
 WHERE query = %s AND rule = %s AND domain_id = %s AND asin = %s AND price_type = %s
"""

OPEN_MESSAGE: Final[LiteralString] = """
INSERT INTO alert_messages (channel, kind, query, rule) VALUES (%s, 'deals', %s, %s) RETURNING id
"""

# Locks the digest that collects: a sender leaves it alone until this transaction has ended.
OPEN_DIGEST: Final[LiteralString] = """
INSERT INTO alert_messages (channel, kind, query, rule, is_digest, not_before)
VALUES (%s, 'deals', %s, %s, true, now() + %s * interval '1 ms')
ON CONFLICT (channel, query, rule) WHERE is_digest AND state = 'waiting' AND fence = 0
DO UPDATE SET query = EXCLUDED.query
RETURNING id
"""

REPORT: Final[LiteralString] = """
INSERT INTO alerts (message, channel, query, rule, domain_id, asin, price_type, crossing,
                    occasion, deal)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (query, rule, domain_id, asin, price_type, crossing) DO NOTHING
"""

DROP_EMPTY: Final[LiteralString] = """
DELETE FROM alert_messages m
 WHERE id = %s AND NOT EXISTS (SELECT FROM alerts a WHERE a.message = m.id)
"""

PRIME: Final[LiteralString] = """
UPDATE alert_rules SET primed_at = now()
 WHERE query = %s AND rule = ANY(%s) AND primed_at IS NULL RETURNING rule, channel
"""

MATCHING: Final[LiteralString] = """
SELECT count(*) FROM alert_memory WHERE query = %s AND rule = %s AND phase = 'in'
"""

POST: Final[LiteralString] = """
INSERT INTO alert_messages (channel, kind, query, rule, content)
VALUES (%(channel)s, %(kind)s, %(query)s, %(rule)s, %(content)s) RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """When an alert was added, in Unix ms of Postgres; whether its first scan is over."""

    added_ms: int
    is_primed: bool


@dataclass(frozen=True, slots=True)
class Remembered:
    """One deal's memory after a decision; None forgets it."""

    asin: str
    memory: Memory | None


@dataclass(frozen=True, slots=True)
class Report:
    """One deal to be reported, as it was when Keepa served it at *crossing_ms*."""

    asin: str
    crossing_ms: int
    occasion: Occasion
    deal: Mapping[str, object]


def standings_of_alerts(connection: Connection, query: DealQuery) -> dict[str, Standing]:
    """Returns how the alerts of *query* stand, by key; adds those that are new."""
    found = _standings(connection, query)
    for alert in query.alerts:
        if alert.key in found:
            continue
        values = (query.name, alert.key, alert.channel)
        if connection.execute(ADD_RULE, values).fetchone() is not None:
            connection.execute(
                REMEMBER_BEFORE,
                {
                    "query": query.name,
                    "rule": alert.key,
                    "state": alert.state,
                    "domain_id": query.domain_id,
                    "price_type": query.price_type,
                },
            )
    wanted = {alert.key for alert in query.alerts}
    return found if wanted <= found.keys() else _standings(connection, query)


def _standings(connection: Connection, query: DealQuery) -> dict[str, Standing]:
    return {
        rule: Standing(unix_ms(added_at) or 0, primed_at is not None)
        for rule, added_at, primed_at in connection.execute(RULES, (query.name,))
    }


def judged_at_ms(
    connection: Connection, query: DealQuery, asins: Sequence[str]
) -> dict[str, int | None]:
    """Returns when Keepa served what the stored verdicts rest on, by ASIN, in Unix ms."""
    values = (query.name, query.domain_id, list(asins), query.price_type)
    return {asin: unix_ms(time) for asin, time in connection.execute(JUDGED_AT, values)}


def memories(
    connection: Connection, query: DealQuery, asins: Sequence[str]
) -> dict[tuple[str, str], Memory]:
    """Returns what the alerts of *query* remember, by alert's key and ASIN."""
    values = (query.name, query.domain_id, list(asins), query.price_type)
    return {
        (rule, asin): Memory(phase, value, unix_ms(reported))
        for asin, rule, phase, value, reported in connection.execute(MEMORY, values)
    }


def remember(
    connection: Connection, query: DealQuery, alert: Alert, changes: Sequence[Remembered]
) -> None:
    """Writes what *alert* remembers from now on."""
    kept: list[tuple[Any, ...]] = []
    gone: list[tuple[Any, ...]] = []
    for change in sorted(changes, key=lambda change: change.asin):
        key = (query.name, alert.key, query.domain_id, change.asin, query.price_type)
        if (memory := change.memory) is None:
            gone.append(key)
        else:
            kept.append((*key, memory.phase, memory.value, instant(memory.reported_ms)))
    execute_each(connection, REMEMBER, kept)
    execute_each(connection, FORGET, gone)


def report(
    connection: Connection, query: DealQuery, alert: Alert, reports: Sequence[Report]
) -> None:
    """Puts *reports* into the outbox: in one message, or in the digest that collects now."""
    if not reports:
        return
    to = (alert.channel, query.name, alert.key)
    if alert.digest_ms is None:
        row = connection.execute(OPEN_MESSAGE, to).fetchone()
    else:
        row = connection.execute(OPEN_DIGEST, (*to, alert.digest_ms)).fetchone()
    assert row is not None
    message = row[0]
    rows = [
        (
            message,
            *to,
            query.domain_id,
            one.asin,
            query.price_type,
            instant(one.crossing_ms),
            one.occasion,
            as_jsonb(one.deal),
        )
        for one in sorted(reports, key=lambda one: one.asin)
    ]
    execute_each(connection, REPORT, rows)
    # A crossing that is in the outbox already is not reported again.
    connection.execute(DROP_EMPTY, (message,))


def end_first_run(connection: Connection, query: DealQuery) -> dict[str, int]:
    """Ends the first run of each alert of *query* that has one; returns its matches, by key."""
    keys = [alert.key for alert in query.alerts]
    matches: dict[str, int] = {}
    for rule, _channel in connection.execute(PRIME, (query.name, keys)).fetchall():
        row = connection.execute(MATCHING, (query.name, rule)).fetchone()
        matches[rule] = 0 if row is None else int(row[0])
    return matches


def post(
    connection: Connection,
    *,
    channel: str,
    kind: str,
    content: Mapping[str, object],
    query: str | None = None,
    rule: str | None = None,
) -> int:
    """Puts one message with a text of its own into the outbox; returns its number."""
    values = {
        "channel": channel,
        "kind": kind,
        "query": query,
        "rule": rule,
        "content": Jsonb(content),
    }
    row = connection.execute(POST, values).fetchone()
    assert row is not None
    return int(row[0])
