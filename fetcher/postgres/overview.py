"""What console and metrics show of the work: queries, rejections, the fleet, readers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, LiteralString

from fetcher.postgres.database import Connection, Row, fetch_dicts, planned_rows
from fetcher.queries.query import DealQuery

# Times of scans are Keepa's; ages are measured by Keepa's clock too.
QUERIES: Final[LiteralString] = """
SELECT q.query, w.watermark, w.last_scan, w.newest_deal, w.moved_at,
       coalesce(jsonb_array_length(w.gaps), 0) AS gaps,
       now() + coalesce(w.keepa_ahead_ms, 0) * interval '1 ms' AS keepa_now,
       s.id AS scan_id, s.kind, s.started_at, s.pages_ready, s.pages_claimed,
       s.not_before, s.attempts, s.error, recent.interval_s, dead.pages AS pages_dead
  FROM unnest(%(queries)s::text[], %(hashes)s::text[]) AS q (query, selection_hash)
  LEFT JOIN watermarks w USING (query, selection_hash)
  LEFT JOIN LATERAL (
       SELECT r.id, r.kind, r.started_at,
              count(*) FILTER (WHERE p.state = 'ready') AS pages_ready,
              count(*) FILTER (WHERE p.state = 'claimed') AS pages_claimed,
              min(p.not_before) FILTER (WHERE p.state = 'ready') AS not_before,
              max(p.attempts) AS attempts, max(p.error) AS error
         FROM scans r JOIN scan_pages p ON p.scan_id = r.id
        WHERE r.query = q.query AND r.selection_hash = q.selection_hash
          AND r.state = 'running' AND p.state IN ('ready', 'claimed')
        GROUP BY r.id ORDER BY r.background, r.id LIMIT 1) s ON true
  LEFT JOIN LATERAL (
       SELECT extract(epoch FROM (max(r.started_at) - min(r.started_at))
                                 / nullif(count(*) - 1, 0))::float8 AS interval_s
         FROM (SELECT started_at FROM scans
                WHERE query = q.query AND selection_hash = q.selection_hash
                  AND NOT background ORDER BY id DESC LIMIT 6) r) recent ON true
  LEFT JOIN LATERAL (
       SELECT count(*) AS pages FROM scans r JOIN scan_pages p ON p.scan_id = r.id
        WHERE r.query = q.query AND p.state = 'dead') dead ON true
 ORDER BY q.query
"""

FLEET: Final[LiteralString] = """
SELECT holder, version, doing, started_at, seen_at,
       extract(epoch FROM now() - seen_at)::float8 AS silent_s,
       extract(epoch FROM now() - started_at)::float8 AS age_s
  FROM workers ORDER BY holder LIMIT %(limit)s
"""

# Every reply about a deal that a scan has brought: its readers and times.
READERS: Final[LiteralString] = """
SELECT v.query, v.domain_id, v.price_type, v.stage, v.reply_time, v.scan_id, s.kind,
       s.started_at
  FROM verdicts v LEFT JOIN scans s ON s.id = v.scan_id
 WHERE v.domain_id = %(domain_id)s AND v.asin = %(asin)s
 ORDER BY v.reply_time DESC LIMIT 50
"""

JUDGED: Final[LiteralString] = """
SELECT query, state, failed_rules FROM deal_grid
 WHERE (%(query)s::text IS NULL OR query = %(query)s)
"""
SINCE: Final[LiteralString] = " AND judged_at >= now() - %(since)s::interval"
# Behind the rows to be counted.
COUNTED: Final[LiteralString] = """)
SELECT query, state, NULL AS rule, count(*) AS deals FROM judged GROUP BY query, state
UNION ALL
SELECT query, state, rule, count(*) FROM judged CROSS JOIN LATERAL unnest(failed_rules) AS rule
 WHERE state = 'rejected' GROUP BY query, state, rule
 ORDER BY 1, 3 NULLS FIRST, 2
"""
# The blocks of a sample are the same each time: a page that is loaded again shows the same.
SAMPLED: Final[LiteralString] = "FROM deal_grid TABLESAMPLE SYSTEM (%(percent)s) REPEATABLE (1)"
# So many rows are counted within some tens of milliseconds.
COUNTED_MAX: Final = 30_000


def queries_overview(connection: Connection, queries: Sequence[DealQuery]) -> list[Row]:
    """Returns how each of *queries* stands with its present selection."""
    values = {
        "queries": [query.name for query in queries],
        "hashes": [query.selection_hash for query in queries],
    }
    return fetch_dicts(connection, QUERIES, values)


def fleet(connection: Connection, *, limit: int) -> list[Row]:
    """Returns the processes that have reported within a day."""
    return fetch_dicts(connection, FLEET, {"limit": limit})


def readers(connection: Connection, domain_id: int, asin: str) -> list[Row]:
    """Returns which scans have brought a product, the newest first."""
    return fetch_dicts(connection, READERS, {"domain_id": domain_id, "asin": asin})


@dataclass(frozen=True, slots=True)
class Rejections:
    """Deals by query, state and rule; a rule of None counts all of the state.

    Args:
        rows: The counts.
        sampled: The share of all rows that was counted, for estimates; None: all.
    """

    rows: list[Row]
    sampled: float | None


def rejections(
    connection: Connection,
    *,
    query: str | None,
    since: timedelta | None,
    exact: bool = False,
    counted_max: int = COUNTED_MAX,
) -> Rejections:
    """Returns the numbers of deals by verdict, and of rejected ones by rule.

    Where that means to count more than *counted_max* rows, it estimates from a sample of
    whole blocks, unless it must be *exact*.
    """
    values: dict[str, Any] = {"query": query, "since": since}
    judged: LiteralString = JUDGED if since is None else JUDGED + SINCE
    sampled = None
    if not exact and planned_rows(connection, judged, values) > counted_max:
        everything = planned_rows(connection, "SELECT 1 FROM deal_grid", {})
        sampled = counted_max / max(everything, counted_max)
        judged = judged.replace("FROM deal_grid", SAMPLED)
        values["percent"] = 100 * sampled
    rows = fetch_dicts(connection, f"WITH judged AS ({judged} {COUNTED}", values)
    if sampled is not None:
        for row in rows:
            row["deals"] = round(row["deals"] / sampled)
    return Rejections(rows, sampled)
