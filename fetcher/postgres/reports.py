"""The listings of the commands: scans, deals, rejections."""

from datetime import timedelta
from typing import Final, LiteralString

from fetcher.postgres.database import Connection, Row, fetch_dicts
from fetcher.postgres.grid import query_names

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

# The grid has an index for its newest rows: only these are looked up, out of millions. A deal
# has one row for each query. Drop and average depend on a query's date range: they are those of
# the query in the filter, else of the query that judged last.
DEALS: Final[LiteralString] = """
WITH newest AS (
    SELECT DISTINCT domain_id, asin, price_type FROM (
        SELECT g.domain_id, g.asin, g.price_type FROM deal_grid g
         WHERE (%(query)s::text IS NULL OR g.query = %(query)s)
           AND (%(state)s::text IS NULL OR g.state = %(state)s)
         ORDER BY g.created_ms DESC FETCH FIRST %(rows)s ROWS WITH TIES) g)
SELECT d.domain_id, d.asin, d.price_type, l.title, d.price_minor, d.value,
       s.date_range, s.average_minor, s.drop_minor, s.drop_percent, l.rank, l.rating,
       d.creation_time, d.last_update, d.reply_time, d.first_seen,
       coalesce(v.verdicts, '[]') AS verdicts
  FROM (SELECT d.* FROM newest JOIN deals d USING (domain_id, asin, price_type)
         ORDER BY d.creation_time DESC NULLS LAST, d.domain_id, d.asin, d.price_type
         LIMIT %(limit)s) d
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
 ORDER BY d.creation_time DESC NULLS LAST, d.domain_id, d.asin, d.price_type
"""

# The grid holds the verdict that counts, and an index of the times of judging.
STATES: Final[LiteralString] = """
SELECT query, count(*) FILTER (WHERE state = 'accepted') AS accepted,
       count(*) FILTER (WHERE state = 'pending') AS pending,
       count(*) FILTER (WHERE state = 'rejected') AS rejected
  FROM deal_grid
 WHERE (%(query)s::text IS NULL OR query = %(query)s)
   AND (%(since)s::interval IS NULL OR judged_at >= now() - %(since)s::interval)
 GROUP BY query ORDER BY query
"""

RULES: Final[LiteralString] = """
SELECT g.query, failure ->> 'rule' AS rule,
       count(*) FILTER (WHERE failure ->> 'outcome' = 'failed') AS failed,
       count(*) FILTER (WHERE failure ->> 'outcome' = 'unknown') AS unknown
  FROM deal_grid g
 CROSS JOIN LATERAL (
       SELECT v.failures FROM verdicts v
        WHERE v.query = g.query AND v.domain_id = g.domain_id AND v.asin = g.asin
          AND v.price_type = g.price_type
        ORDER BY v.stage DESC LIMIT 1) v
 CROSS JOIN LATERAL jsonb_array_elements(v.failures) AS failure
 WHERE g.state = 'rejected'
   AND (%(query)s::text IS NULL OR g.query = %(query)s)
   AND (%(since)s::interval IS NULL OR g.judged_at >= now() - %(since)s::interval)
 GROUP BY g.query, rule ORDER BY g.query, count(*) DESC, rule
"""


def list_scans(connection: Connection, *, query: str | None, limit: int) -> list[Row]:
    """Returns the newest scans, with sums over their pages."""
    return fetch_dicts(connection, SCANS, {"query": query, "limit": limit})


def list_deals(
    connection: Connection, *, query: str | None, state: str | None, limit: int
) -> list[Row]:
    """Returns the newest deals that a query has judged, with every query's verdict."""
    queries = len(query_names(connection)) if query is None else 1
    values = {"query": query, "state": state, "limit": limit, "rows": limit * max(queries, 1)}
    return fetch_dicts(connection, DEALS, values)


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
