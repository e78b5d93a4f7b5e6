"""The statements of `dealfetcher doctor`."""

from collections.abc import Iterable
from typing import Final, LiteralString

from fetcher.postgres.database import Connection, Row, fetch_dicts

FRESHNESS: Final[LiteralString] = """
SELECT query, selection_hash, watermark, moved_at, newest_deal, newest_seen,
       extract(epoch FROM newest_seen - newest_deal)::bigint AS newest_age_s,
       extract(epoch FROM now() - moved_at)::bigint AS moved_ago_s,
       jsonb_array_length(gaps) AS gaps
  FROM watermarks ORDER BY query
"""

# Each part by the partial index of its states: pages that are done are not looked at.
STUCK: Final[LiteralString] = """
SELECT (SELECT count(*)::int FROM scan_pages WHERE state = 'dead') AS dead,
       count(*) FILTER (WHERE p.state = 'claimed' AND p.claim_expires < now())::int AS expired,
       count(*) FILTER (WHERE p.state = 'ready' AND s.state = 'running')::int AS ready,
       count(*) FILTER (WHERE p.state = 'ready' AND s.state = 'running'
                          AND p.attempts > 0)::int AS failing,
       max(p.error) FILTER (WHERE p.state = 'ready' AND s.state = 'running'
                              AND p.attempts > 0) AS error,
       (SELECT count(*)::int FROM products WHERE state = 'dead') AS dead_products,
       (SELECT count(*)::int FROM products WHERE state IN ('wanted', 'claimed')) AS wanted
  FROM scan_pages p JOIN scans s ON s.id = p.scan_id
 WHERE p.state IN ('ready', 'claimed')
"""

WORKERS: Final[LiteralString] = """
SELECT holder, version, doing, extract(epoch FROM now() - seen_at)::bigint AS seen_ago_s
  FROM workers WHERE seen_at > now() - interval '1 hour' ORDER BY holder
"""

WITHOUT_RIGHTS: Final[LiteralString] = """
SELECT relname FROM pg_class
 WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')
   AND NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
            AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))
   AND relname = ANY(%s)
 ORDER BY relname
"""
READ_ONLY: Final[LiteralString] = "SHOW transaction_read_only"
VERSION: Final[LiteralString] = "SHOW server_version"


def freshness(connection: Connection) -> list[Row]:
    """Returns how far each query has been read."""
    return fetch_dicts(connection, FRESHNESS)


def stuck(connection: Connection) -> Row:
    """Counts the pages and products that wait or were put aside."""
    return fetch_dicts(connection, STUCK)[0]


def workers(connection: Connection) -> list[Row]:
    """Returns the processes that have been alive within the last hour."""
    return fetch_dicts(connection, WORKERS)


def server_version(connection: Connection) -> str:
    """Returns the version of Postgres."""
    row = connection.execute(VERSION).fetchone()
    return "" if row is None else str(row[0])


def is_read_only(connection: Connection) -> bool:
    """Returns whether the server takes no writes on this connection."""
    return connection.execute(READ_ONLY).fetchone() == ("on",)


def without_rights(connection: Connection, tables: Iterable[str]) -> list[str]:
    """Returns those of *tables* on which the role lacks a right that fetchers need."""
    return [str(name) for (name,) in connection.execute(WITHOUT_RIGHTS, (list(tables),))]
