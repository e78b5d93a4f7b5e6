"""Verdicts: what each query's rules say about each deal, with every reason."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

from fetcher.postgres.database import Connection, instant
from fetcher.postgres.records import FAILURES, PROFIT, to_jsonb
from fetcher.queries.rules import Breakdown, RuleCount, Verdict

# A verdict on an older reply must not overwrite one on a newer, unless the rules changed.
UPSERT: Final[LiteralString] = """
INSERT INTO verdicts (query, domain_id, asin, stage, state, failures, rule_version, profit,
                      profit_minor, roi_percent, reply_time, scan_id)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (query, domain_id, asin, stage) DO UPDATE SET
    state = EXCLUDED.state, failures = EXCLUDED.failures,
    rule_version = EXCLUDED.rule_version, profit = EXCLUDED.profit,
    profit_minor = EXCLUDED.profit_minor, roi_percent = EXCLUDED.roi_percent,
    reply_time = EXCLUDED.reply_time, scan_id = coalesce(EXCLUDED.scan_id, verdicts.scan_id),
    judged_at = now()
WHERE verdicts.reply_time <= EXCLUDED.reply_time
   OR verdicts.rule_version <> EXCLUDED.rule_version
"""

# By details that are no longer bought, or no longer known.
DELETE_OUTDATED: Final[LiteralString] = """
DELETE FROM verdicts
 WHERE query = %s AND domain_id = %s AND asin = ANY(%s) AND stage = 'product'
   AND rule_version <> %s
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


@dataclass(frozen=True, slots=True)
class JudgedDeal:
    """A verdict with whom it is about; *reply_time_ms* is Keepa's clock at the reply."""

    domain_id: int
    asin: str
    verdict: Verdict
    reply_time_ms: int


def upsert_verdicts(
    connection: Connection, query: str, judged: Iterable[JudgedDeal], *, scan_id: int | None
) -> None:
    """Write verdicts of *query*; sorted by key, so that writers don't block in a circle."""
    rows = sorted((_row(query, deal, scan_id) for deal in judged), key=lambda row: row[:4])
    if rows:
        with connection.pipeline(), connection.cursor() as cursor:
            cursor.executemany(UPSERT, rows)


def delete_outdated(
    connection: Connection, query: str, domain_id: int, asins: Sequence[str], rule_version: str
) -> None:
    """Delete verdicts with details that today's rules did not renew."""
    connection.execute(DELETE_OUTDATED, (query, domain_id, list(asins), rule_version))


def scan_breakdown(connection: Connection, query: str, scan_id: int) -> Breakdown:
    """How the deals that a scan brought were judged, before any details were bought."""
    states: dict[str, int] = dict(connection.execute(STATES_OF_SCAN, (query, scan_id)).fetchall())
    rules = [RuleCount(*row) for row in connection.execute(RULES_OF_SCAN, (query, scan_id))]
    return Breakdown(
        accepted=states.get("accepted", 0),
        pending=states.get("pending", 0),
        rejected=states.get("rejected", 0),
        rules=tuple(rules),
    )


def _row(query: str, deal: JudgedDeal, scan_id: int | None) -> tuple[Any, ...]:
    verdict, profit = deal.verdict, deal.verdict.profit
    return (
        query,
        deal.domain_id,
        deal.asin,
        verdict.stage,
        verdict.state,
        to_jsonb(FAILURES, verdict.failures),
        verdict.rule_version,
        None if profit is None else to_jsonb(PROFIT, profit),
        None if profit is None else profit.profit_minor,
        None if profit is None else profit.roi_percent,
        instant(deal.reply_time_ms),
        scan_id,
    )
