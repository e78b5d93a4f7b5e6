"""Verdicts: the outcome of each query's rules for each deal, with every reason."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, LiteralString

from fetcher.postgres.database import Connection, execute_each, instant
from fetcher.postgres.records import FAILURES, PROFIT, to_jsonb
from fetcher.queries.judging import JudgedDeal
from fetcher.queries.query import DealQuery
from fetcher.queries.rules import Breakdown, RuleCount

# A verdict on an older reply must not overwrite one on a newer reply, unless the query changed.
UPSERT: Final[LiteralString] = """
INSERT INTO verdicts (query, domain_id, asin, price_type, stage, state, failures, rule_version,
                      date_range, average_minor, drop_minor, drop_percent,
                      profit, profit_minor, roi_percent, reply_time, scan_id)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
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
    """Writes verdicts of *query*, in the order of keys: writers never wait in a circle."""
    rows = sorted((_row(query, deal, scan_id) for deal in judged), key=lambda row: row[:5])
    execute_each(connection, UPSERT, rows)


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


def _row(query: str, judged: JudgedDeal, scan_id: int | None) -> tuple[Any, ...]:
    deal, verdict, profit = judged.deal, judged.verdict, judged.verdict.profit
    return (
        query,
        deal.domain_id,
        deal.asin,
        deal.price_type,
        verdict.stage,
        verdict.state,
        to_jsonb(FAILURES, verdict.failures),
        verdict.rule_version,
        deal.date_range,
        deal.average_minor,
        deal.drop_minor,
        deal.drop_percent,
        None if profit is None else to_jsonb(PROFIT, profit),
        None if profit is None else profit.profit_minor,
        None if profit is None else profit.roi_percent,
        instant(judged.reply_time_ms),
        scan_id,
    )
