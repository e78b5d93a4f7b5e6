"""Pages of scans: choosing the next one, and storing what was read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from fetcher.errors import ClaimLostError
from fetcher.postgres.claims import PAGE_WORK, bury_claims, claim_statement, lock_claims
from fetcher.postgres.database import Connection, instant
from fetcher.postgres.records import FACTS, to_jsonb
from fetcher.queries.query import DealQuery
from fetcher.scans.page_facts import PageFacts

OPEN: Final[LiteralString] = """
INSERT INTO scan_pages (scan_id, page) VALUES (%s, %s) ON CONFLICT DO NOTHING
"""

CANDIDATES: Final[LiteralString] = f"""
SELECT w.scan_id, w.page, s.query, s.background AS in_background
  FROM scan_pages w
  JOIN scans s ON s.id = w.scan_id
  JOIN unnest(%(names)s::text[], %(hashes)s::text[], %(ranks)s::integer[])
       AS q (query, selection_hash, rank) USING (query, selection_hash)
 WHERE s.state = 'running' AND {PAGE_WORK.is_open}
 ORDER BY s.background, q.rank, s.id, w.page
 LIMIT 1
"""  # noqa: S608 - every part is a constant

CLAIM: Final = claim_statement(
    PAGE_WORK,
    CANDIDATES,
    "w.scan_id, w.page, w.fence, next.query, next.in_background, w.attempts, w.reads",
)

# A page that is read again keeps its first facts: they have decided its seams.
DONE: Final[LiteralString] = """
UPDATE scan_pages
   SET state = 'done', holder = NULL, claim_expires = NULL, error = NULL, reads = reads + 1,
       tokens = tokens + %(tokens)s, row_count = %(row_count)s,
       new_deals = coalesce(new_deals, 0) + %(new_deals)s, oddities = %(oddities)s,
       fresh_deals = coalesce(fresh_deals, %(fresh_deals)s),
       facts = coalesce(facts, %(facts)s), reply_time = %(reply_time)s, done_at = now()
 WHERE scan_id = %(scan_id)s AND page = %(page)s
"""

# A page's commit reads two pages; only the end of a scan reads all of them.
PAGES: Final[LiteralString] = """
SELECT page, reads, fresh_deals, facts FROM scan_pages
 WHERE scan_id = %s AND page BETWEEN %s AND %s ORDER BY page
"""

# Uses two partial indexes: as fast for many pages as for few.
UNREAD: Final[LiteralString] = """
SELECT EXISTS (SELECT FROM scan_pages
                WHERE scan_id = %(scan_id)s AND page <= %(page)s AND state IN ('ready', 'claimed'))
    OR EXISTS (SELECT FROM scan_pages
                WHERE scan_id = %(scan_id)s AND page <= %(page)s AND state = 'dead')
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
    """The next page to read, not yet claimed."""

    query: str
    in_background: bool


@dataclass(frozen=True, slots=True)
class PageClaim:
    """The right to read and commit one page; see `claims`."""

    scan_id: int
    page: int
    fence: int
    query: str
    in_background: bool
    attempts: int
    reads: int

    @property
    def key(self) -> tuple[int, int]:
        """Its row in the table of pages."""
        return self.scan_id, self.page


@dataclass(frozen=True, slots=True)
class StoredPage:
    """How often a page has been read, and what its first read measured."""

    page: int
    reads: int
    fresh_deals: int | None
    facts: PageFacts | None


@dataclass(frozen=True, slots=True)
class PageResult:
    """What a page brought, for reports and for the scan."""

    facts: PageFacts
    tokens: int
    new_deals: int
    fresh_deals: int
    oddities: Mapping[str, int]


def open_pages(connection: Connection, scan_id: int, pages: Iterable[int]) -> None:
    """Makes *pages* ready for claims, unless they have been before."""
    with connection.cursor() as cursor:
        cursor.executemany(OPEN, [(scan_id, page) for page in pages])


def next_page(
    connection: Connection, queries: Sequence[DealQuery], *, take_over: bool = True
) -> NextPage | None:
    """Returns the page that would be claimed now, without claiming it."""
    row = connection.execute(CANDIDATES, _asked(queries) | {"take_over": take_over}).fetchone()
    return None if row is None else NextPage(*row[2:])


def claim_page(
    connection: Connection,
    queries: Sequence[DealQuery],
    *,
    holder: str,
    ttl_s: float,
    take_over: bool = True,
) -> PageClaim | None:
    """Claims the most urgent page of *queries* for *ttl_s* seconds; None if there is none.

    With *take_over* also a page with an expired claim.
    """
    values = _asked(queries) | {"holder": holder, "ttl_s": ttl_s, "take_over": take_over}
    with connection.cursor(row_factory=class_row(PageClaim)) as cursor:
        return cursor.execute(CLAIM, values).fetchone()


def bury_page(connection: Connection, claim: PageClaim, error: str) -> None:
    """Sets the page aside until a person looks at it.

    Raises:
        ClaimLostError: The claim expired and another one was made.
    """
    if bury_claims(connection, PAGE_WORK, [claim], error):
        raise _lost(claim)


def hold_page(connection: Connection, claim: PageClaim) -> None:
    """Locks the claimed page until the transaction ends.

    Raises:
        ClaimLostError: The claim expired and another one was made.
    """
    if lock_claims(connection, PAGE_WORK, [claim]):
        raise _lost(claim)


def finish_page(connection: Connection, claim: PageClaim, result: PageResult) -> None:
    """Marks the page as read and committed."""
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


def stored_pages(
    connection: Connection, scan_id: int, first: int, last: int
) -> dict[int, StoredPage]:
    """Returns the pages of a scan from *first* to *last*, in order and by number."""
    return {
        page: StoredPage(
            page, reads, fresh, None if facts is None else FACTS.validate_python(facts)
        )
        for page, reads, fresh, facts in connection.execute(PAGES, (scan_id, first, last))
    }


def has_unread_pages(connection: Connection, scan_id: int, last: int) -> bool:
    """Returns whether a page of a scan up to *last* still has to be read."""
    row = connection.execute(UNREAD, {"scan_id": scan_id, "page": last}).fetchone()
    return row is not None and bool(row[0])


def drop_pages_after(connection: Connection, scan_id: int, page: int) -> None:
    """Drops the ready pages beyond *page*: they are not needed."""
    connection.execute(DROP_AFTER, (scan_id, page))


def reopen_pages(connection: Connection, scan_id: int, pages: Sequence[int]) -> None:
    """Makes pages that have been read ready to be read once more."""
    connection.execute(REOPEN, (scan_id, list(pages)))


def _asked(queries: Sequence[DealQuery]) -> dict[str, object]:
    return {
        "names": [query.name for query in queries],
        "hashes": [query.selection_hash for query in queries],
        "ranks": [RANKS[query.priority] for query in queries],
    }


def _lost(claim: PageClaim) -> ClaimLostError:
    return ClaimLostError(f"page {claim.page} of scan {claim.scan_id} has another holder now")
