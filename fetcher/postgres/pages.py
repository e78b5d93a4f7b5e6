"""Pages of scans: who reads which, under which fencing number, and what came of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg.types.json import Jsonb

from fetcher.errors import ClaimLostError
from fetcher.postgres.database import Connection, instant
from fetcher.postgres.records import FACTS, to_jsonb
from fetcher.queries.query import DealQuery
from fetcher.scans.page_facts import PageFacts

OPEN: Final[LiteralString] = """
INSERT INTO scan_pages (scan_id, page) VALUES (%s, %s) ON CONFLICT DO NOTHING
"""

# An expired claim is ready too: its holder died or was cut off.
READY: Final[LiteralString] = """
SELECT p.scan_id, p.page, s.query, s.background
  FROM scan_pages p
  JOIN scans s ON s.id = p.scan_id
  JOIN unnest(%(names)s::text[], %(hashes)s::text[], %(ranks)s::integer[])
       AS q (query, selection_hash, rank) USING (query, selection_hash)
 WHERE s.state = 'running' AND p.state IN ('ready', 'claimed') AND p.not_before <= now()
   AND (p.state = 'ready' OR p.claim_expires < now())
 ORDER BY s.background, q.rank, s.id, p.page
 LIMIT 1
"""

# A claim that expired counts as a try: a page that kills its readers must not go on for ever.
CLAIM: Final[LiteralString] = f"""
WITH next AS ({READY} FOR UPDATE OF p SKIP LOCKED)
UPDATE scan_pages p
   SET attempts = p.attempts + (p.state = 'claimed')::integer, state = 'claimed',
       fence = p.fence + 1, holder = %(holder)s,
       claim_expires = now() + %(ttl_s)s * interval '1 second'
  FROM next
 WHERE p.scan_id = next.scan_id AND p.page = next.page
RETURNING p.scan_id, p.page, p.fence, next.query, next.background, p.attempts, p.reads
"""  # noqa: S608 - both parts are constants

HELD: Final[LiteralString] = """
SELECT FROM scan_pages
 WHERE scan_id = %s AND page = %s AND state = 'claimed' AND fence = %s FOR UPDATE
"""

RENEW: Final[LiteralString] = """
UPDATE scan_pages SET claim_expires = now() + %s * interval '1 second'
 WHERE holder = %s AND state = 'claimed'
"""

# Only the holder of the newest claim may put a page back.
RELEASE: Final[LiteralString] = """
UPDATE scan_pages
   SET state = %(state)s, error = %(error)s, attempts = attempts + %(attempts)s, holder = NULL,
       claim_expires = NULL, not_before = now() + %(delay_s)s * interval '1 second'
 WHERE scan_id = %(scan_id)s AND page = %(page)s AND state = 'claimed' AND fence = %(fence)s
"""

# A page that is read again keeps its first facts: the seams were judged by them.
DONE: Final[LiteralString] = """
UPDATE scan_pages
   SET state = 'done', holder = NULL, claim_expires = NULL, error = NULL, reads = reads + 1,
       tokens = tokens + %(tokens)s, row_count = %(row_count)s,
       new_deals = coalesce(new_deals, 0) + %(new_deals)s, oddities = %(oddities)s,
       fresh_deals = coalesce(fresh_deals, %(fresh_deals)s),
       facts = coalesce(facts, %(facts)s), reply_time = %(reply_time)s, done_at = now()
 WHERE scan_id = %(scan_id)s AND page = %(page)s
"""

PAGES: Final[LiteralString] = """
SELECT page, state, reads, fresh_deals, facts FROM scan_pages WHERE scan_id = %s ORDER BY page
"""

DROP_AFTER: Final[LiteralString] = """
UPDATE scan_pages SET state = 'dropped' WHERE scan_id = %s AND page > %s AND state = 'ready'
"""

REOPEN: Final[LiteralString] = """
UPDATE scan_pages SET state = 'ready', attempts = 0, not_before = now()
 WHERE scan_id = %s AND page = ANY(%s) AND state = 'done'
"""

RANKS: Final = {"high": 0, "normal": 1, "low": 2}


@dataclass(frozen=True, slots=True)
class NextPage:
    """What there is to do; nobody holds it yet."""

    query: str
    in_background: bool


@dataclass(frozen=True, slots=True)
class PageClaim:
    """The right to read and commit one page, until somebody claims it under a higher fence."""

    scan_id: int
    page: int
    fence: int
    query: str
    in_background: bool
    attempts: int
    reads: int


@dataclass(frozen=True, slots=True)
class StoredPage:
    """A page's state, and what was measured on it once it was read."""

    page: int
    state: str
    reads: int
    fresh_deals: int | None
    facts: PageFacts | None


@dataclass(frozen=True, slots=True)
class PageResult:
    """What a page brought, for people and for the scan."""

    facts: PageFacts
    tokens: int
    new_deals: int
    fresh_deals: int
    oddities: Mapping[str, int]


def open_pages(connection: Connection, scan_id: int, pages: Iterable[int]) -> None:
    """Let *pages* be claimed, unless they have been already."""
    with connection.cursor() as cursor:
        cursor.executemany(OPEN, [(scan_id, page) for page in pages])


def next_page(connection: Connection, queries: Sequence[DealQuery]) -> NextPage | None:
    """The page that would be claimed now, without claiming it."""
    row = connection.execute(READY, _asked(queries)).fetchone()
    return None if row is None else NextPage(query=row[2], in_background=row[3])


def claim_page(
    connection: Connection, queries: Sequence[DealQuery], *, holder: str, ttl_s: float
) -> PageClaim | None:
    """Claim the most urgent page of *queries* for *ttl_s* seconds; None if there is none."""
    values = _asked(queries) | {"holder": holder, "ttl_s": ttl_s}
    row = connection.execute(CLAIM, values).fetchone()
    return None if row is None else PageClaim(*row)


def renew_pages(connection: Connection, *, holder: str, ttl_s: float) -> None:
    """Extend every claim of a living *holder*."""
    connection.execute(RENEW, (ttl_s, holder))


def release_page(connection: Connection, claim: PageClaim, *, delay_s: float = 0.0) -> None:
    """Give the page back unharmed; others may claim it after *delay_s* seconds."""
    _release(connection, claim, state="ready", error=None, attempts=0, delay_s=delay_s)


def fail_page(connection: Connection, claim: PageClaim, error: str, *, delay_s: float) -> None:
    """Count a failed try; the next one waits for *delay_s* seconds."""
    _release(connection, claim, state="ready", error=error, attempts=1, delay_s=delay_s)


def bury_page(connection: Connection, claim: PageClaim, error: str) -> None:
    """Set the page aside until a person looks at it.

    Raises:
        ClaimLostError: It is somebody else's by now.
    """
    hold_page(connection, claim)
    _release(connection, claim, state="dead", error=error, attempts=1, delay_s=0.0)


def hold_page(connection: Connection, claim: PageClaim) -> None:
    """Lock the claimed page until the transaction ends.

    Raises:
        ClaimLostError: The claim expired and another one was made.
    """
    held = connection.execute(HELD, (claim.scan_id, claim.page, claim.fence)).fetchone()
    if held is None:
        raise ClaimLostError(f"page {claim.page} of scan {claim.scan_id} is somebody else's now")


def finish_page(connection: Connection, claim: PageClaim, result: PageResult) -> None:
    """Mark the page as read and committed."""
    connection.execute(
        DONE,
        {
            "scan_id": claim.scan_id,
            "page": claim.page,
            "tokens": result.tokens,
            "row_count": result.facts.row_count,
            "new_deals": result.new_deals,
            "fresh_deals": result.fresh_deals,
            "oddities": Jsonb(dict(result.oddities)),
            "facts": to_jsonb(FACTS, result.facts),
            "reply_time": instant(result.facts.server_ms),
        },
    )


def scan_pages(connection: Connection, scan_id: int) -> list[StoredPage]:
    """All pages of a scan in order."""
    return [
        StoredPage(
            page, state, reads, fresh, None if facts is None else FACTS.validate_python(facts)
        )
        for page, state, reads, fresh, facts in connection.execute(PAGES, (scan_id,))
    ]


def drop_pages_after(connection: Connection, scan_id: int, page: int) -> None:
    """Pages beyond *page* are not needed."""
    connection.execute(DROP_AFTER, (scan_id, page))


def reopen_pages(connection: Connection, scan_id: int, pages: Sequence[int]) -> None:
    """Have pages read once more."""
    connection.execute(REOPEN, (scan_id, list(pages)))


def _asked(queries: Sequence[DealQuery]) -> dict[str, object]:
    return {
        "names": [query.name for query in queries],
        "hashes": [query.selection_hash for query in queries],
        "ranks": [RANKS[query.priority] for query in queries],
    }


def _release(
    connection: Connection,
    claim: PageClaim,
    *,
    state: str,
    error: str | None,
    attempts: int,
    delay_s: float,
) -> None:
    connection.execute(
        RELEASE,
        {
            "scan_id": claim.scan_id,
            "page": claim.page,
            "fence": claim.fence,
            "state": state,
            "error": error,
            "attempts": attempts,
            "delay_s": delay_s,
        },
    )
