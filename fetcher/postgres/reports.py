"""The listings of the commands: scans, deals, rejections."""

from datetime import timedelta
from typing import Final, LiteralString

from fetcher.postgres.database import Connection, Row, fetch_dicts

SCANS: Final[LiteralString] = """
SELECT s.id, s.query, s.kind, s.state, s.end_reason, s.started_at, s.ended_at, s.watermark,
       count(p.page) FILTER (WHERE p.state = 'done') AS pages_read,
       count(p.page) FILTER (WHERE p.state IN ('ready', 'claimed')) AS pages_open,
       count(p.page) FILTER (WHERE p.state = 'dead') AS pages_dead,
       coalesce(sum(p.row_count), 0)::bigint AS rows,
       coalesce(sum(p.new_deals), 0)::bigint AS new_deals,
       coalesce(sum(p.tokens), 0)::bigint AS tokens
  FROM (SELECT * FROM scans WHERE %(query)s::text IS NULL OR query = %(query)s
         ORDER BY id DESC LIMIT %(limit)s) s
  LEFT JOIN scan_pages p ON p.scan_id = s.id
 GROUP BY s.id, s.query, s.kind, s.state, s.end_reason, s.started_at, s.ended_at, s.watermark
 ORDER BY s.id DESC
"""

# Drop and average depend on a query's date range: they are those of the query in the filter,
# else of the query that judged last.
DEALS: Final[LiteralString] = """
SELECT d.domain_id, d.asin, d.price_type, l.title, d.price_minor, d.value,
       s.date_range, s.average_minor, s.drop_minor, s.drop_percent, l.rank, l.rating,
       d.creation_time, d.last_update, d.reply_time, d.first_seen,
       coalesce(v.verdicts, '[]') AS verdicts
  FROM deals d
  JOIN listings l USING (domain_id, asin)
  LEFT JOIN LATERAL (
       SELECT jsonb_agg(jsonb_build_object(
                  'query', f.query, 'state', f.state, 'date_range', f.date_range,
                  'average_minor', f.average_minor, 'drop_minor', f.drop_minor,
                  'drop_percent', f.drop_percent, 'profit_minor', f.profit_minor)
                  ORDER BY f.query) AS verdicts
         FROM final_verdicts f
        WHERE f.domain_id = d.domain_id AND f.asin = d.asin
          AND f.price_type = d.price_type) v ON true
  LEFT JOIN LATERAL (
       SELECT f.date_range, f.average_minor, f.drop_minor, f.drop_percent
         FROM final_verdicts f
        WHERE f.domain_id = d.domain_id AND f.asin = d.asin
          AND f.price_type = d.price_type
          AND (%(query)s::text IS NULL OR f.query = %(query)s)
        ORDER BY f.reply_time DESC, f.query LIMIT 1) s ON true
 WHERE (%(query)s::text IS NULL AND %(state)s::text IS NULL)
    OR EXISTS (SELECT FROM final_verdicts f
                WHERE f.domain_id = d.domain_id AND f.asin = d.asin
                  AND f.price_type = d.price_type
                  AND (%(query)s::text IS NULL OR f.query = %(query)s)
                  AND (%(state)s::text IS NULL OR f.state = %(state)s))
 ORDER BY d.creation_time DESC NULLS LAST, d.domain_id, d.asin, d.price_type
 LIMIT %(limit)s
"""

STATES: Final[LiteralString] = """
SELECT query, count(*) FILTER (WHERE state = 'accepted') AS accepted,
       count(*) FILTER (WHERE state = 'pending') AS pending,
       count(*) FILTER (WHERE state = 'rejected') AS rejected
  FROM final_verdicts
 WHERE (%(query)s::text IS NULL OR query = %(query)s)
   AND (%(since)s::interval IS NULL OR judged_at >= now() - %(since)s::interval)
 GROUP BY query ORDER BY query
"""

RULES: Final[LiteralString] = """
SELECT query, failure ->> 'rule' AS rule,
       count(*) FILTER (WHERE failure ->> 'outcome' = 'failed') AS failed,
       count(*) FILTER (WHERE failure ->> 'outcome' = 'unknown') AS unknown
  FROM final_verdicts, jsonb_array_elements(failures) AS failure
 WHERE state = 'rejected'
   AND (%(query)s::text IS NULL OR query = %(query)s)
   AND (%(since)s::interval IS NULL OR judged_at >= now() - %(since)s::interval)
 GROUP BY query, rule ORDER BY query, count(*) DESC, rule
"""


def list_scans(connection: Connection, *, query: str | None, limit: int) -> list[Row]:
    """Returns the newest scans, with sums over their pages."""
    return fetch_dicts(connection, SCANS, {"query": query, "limit": limit})


def list_deals(
    connection: Connection, *, query: str | None, state: str | None, limit: int
) -> list[Row]:
    """Returns the newest deals with every query's verdict."""
    return fetch_dicts(connection, DEALS, {"query": query, "state": state, "limit": limit})


def count_states(
    connection: Connection, *, query: str | None, since: timedelta | None
) -> list[Row]:
    """Counts deals by verdict, one row per query."""
    return fetch_dicts(connection, STATES, {"query": query, "since": since})


def count_rejections(
    connection: Connection, *, query: str | None, since: timedelta | None
) -> list[Row]:
    """Counts rejected deals by the rules against them; a deal counts for each."""
    return fetch_dicts(connection, RULES, {"query": query, "since": since})
