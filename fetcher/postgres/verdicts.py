"""Verdicts: the outcome of each query's rules for each deal, with every reason."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, LiteralString

from fetcher.postgres.database import Connection, instant
from fetcher.postgres.deals import as_jsonb
from fetcher.postgres.records import FAILURES, PROFIT
from fetcher.queries.judging import JudgedDeal
from fetcher.queries.query import DealQuery
from fetcher.queries.rules import Breakdown, RuleCount

# A verdict on an older reply must not overwrite one on a newer reply, unless the query changed.
UPSERT: Final[LiteralString] = """
INSERT INTO verdicts (query, domain_id, asin, price_type, stage, state, failures, rule_version,
                      date_range, average_minor, drop_minor, drop_percent,
                      profit, profit_minor, roi_percent, reply_time, scan_id)
SELECT r.* FROM jsonb_to_recordset(%s) AS r (
    query text, domain_id smallint, asin text, price_type smallint, stage text, state text,
    failures jsonb, rule_version text, date_range smallint, average_minor bigint,
    drop_minor bigint, drop_percent integer, profit jsonb, profit_minor bigint,
    roi_percent integer, reply_time timestamptz, scan_id bigint)
 ORDER BY r.domain_id, r.asin, r.price_type, r.stage
ON CONFLICT (query, domain_id, asin, price_type, stage) DO UPDATE SET
    state = EXCLUDED.state, failures = EXCLUDED.failures,
    rule_version = EXCLUDED.rule_version, date_range = EXCLUDED.date_range,
    average_minor = EXCLUDED.average_minor, drop_minor = EXCLUDED.drop_minor,
    drop_percent = EXCLUDED.drop_percent, profit = EXCLUDED.profit,
    profit_minor = EXCLUDED.profit_minor, roi_percent = EXCLUDED.roi_percent,
    reply_time = EXCLUDED.reply_time, scan_id = coalesce(EXCLUDED.scan_id, verdicts.scan_id),
    judged_at = now()
WHERE verdicts.reply_time <= EXCLUDED.reply_time
   OR verdicts.rule_version <> EXCLUDED.rule_version
   OR verdicts.date_range IS DISTINCT FROM EXCLUDED.date_range
"""

# Verdicts by details that are no longer bought, or no longer stored.
DELETE_OUTDATED: Final[LiteralString] = """
DELETE FROM verdicts
 WHERE query = %s AND domain_id = %s AND asin = ANY(%s) AND price_type = %s
   AND stage = 'product' AND (rule_version <> %s OR date_range IS DISTINCT FROM %s)
"""

DELETE_STRAYS: Final[LiteralString] = """
DELETE FROM verdicts WHERE query = %s AND (domain_id <> %s OR price_type <> %s)
"""

STATES_OF_SCAN: Final[LiteralString] = """
SELECT state, count(*) FROM verdicts
 WHERE query = %s AND scan_id = %s AND stage = 'deal' GROUP BY state
"""

RULES_OF_SCAN: Final[LiteralString] = """
SELECT failure ->> 'rule', count(*) FILTER (WHERE failure ->> 'outcome' = 'failed'),
       count(*) FILTER (WHERE failure ->> 'outcome' = 'unknown')
  FROM verdicts, jsonb_array_elements(failures) AS failure
 WHERE query = %s AND scan_id = %s AND stage = 'deal' AND state = 'rejected'
 GROUP BY 1 ORDER BY count(*) DESC, 1
"""


def upsert_verdicts(
    connection: Connection, query: str, judged: Iterable[JudgedDeal], *, scan_id: int | None
) -> None:
    """Writes verdicts of *query*, in the order of keys: writers never wait in a circle.

    In one statement, so that what follows from verdicts in the database is done once.
    """
    if rows := [_row(query, deal, scan_id) for deal in judged]:
        connection.execute(UPSERT, (as_jsonb(rows),))


def delete_outdated(connection: Connection, query: DealQuery, asins: Sequence[str]) -> None:
    """Deletes verdicts by details that today's *query* did not renew."""
    connection.execute(
        DELETE_OUTDATED,
        (
            query.name,
            query.domain_id,
            list(asins),
            query.price_type,
            query.rules.version,
            query.date_range,
        ),
    )


def delete_strays(connection: Connection, query: DealQuery) -> None:
    """Deletes verdicts on a price type or site that *query* no longer asks for."""
    connection.execute(DELETE_STRAYS, (query.name, query.domain_id, query.price_type))


def scan_breakdown(connection: Connection, query: str, scan_id: int) -> Breakdown:
    """Counts the verdicts on the deals of a scan, before any details were bought."""
    states: dict[str, int] = dict(connection.execute(STATES_OF_SCAN, (query, scan_id)).fetchall())
    rules = [RuleCount(*row) for row in connection.execute(RULES_OF_SCAN, (query, scan_id))]
    return Breakdown(
        accepted=states.get("accepted", 0),
        pending=states.get("pending", 0),
        rejected=states.get("rejected", 0),
        rules=tuple(rules),
    )


def _row(query: str, judged: JudgedDeal, scan_id: int | None) -> dict[str, Any]:
    deal, verdict, profit = judged.deal, judged.verdict, judged.verdict.profit
    reply_time = instant(judged.reply_time_ms)
    assert reply_time is not None
    return {
        "query": query,
        "domain_id": deal.domain_id,
        "asin": deal.asin,
        "price_type": deal.price_type,
        "stage": verdict.stage,
        "state": verdict.state,
        "failures": FAILURES.dump_python(verdict.failures, mode="json"),
        "rule_version": verdict.rule_version,
        "date_range": deal.date_range,
        "average_minor": deal.average_minor,
        "drop_minor": deal.drop_minor,
        "drop_percent": deal.drop_percent,
        "profit": None if profit is None else PROFIT.dump_python(profit, mode="json"),
        "profit_minor": None if profit is None else profit.profit_minor,
        "roi_percent": None if profit is None else profit.roi_percent,
        "reply_time": reply_time.isoformat(),
        "scan_id": scan_id,
    }
