"""Deals by filter: pages in a stable order, and streams of any length.

Law:
1. A list is sorted by one expression that is never null, then by the row's key, all in one
   direction. A place in it is a comparison of rows, and no row is skipped or repeated.
2. "changed" sorts by the transaction that changed the row. Only what no running transaction
   can still precede is shown: a reader that goes on from its cursor misses no change.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, LiteralString

from fetcher.deals.filters import Cursor, DealFilter, FilterError, Sort
from fetcher.postgres.database import Connection

# The columns of a row, in the order of exports; stable, because programs read them.
COLUMNS: Final = (
    *("query", "state", "domain_id", "asin", "price_type", "title", "price_minor", "value"),
    *("date_range", "drop_minor", "drop_percent", "profit_minor", "roi_percent", "rank"),
    *("rating", "reviews", "new_offers", "used_offers", "root_category", "condition"),
    *("creation_time", "reply_time", "first_seen", "judged_at", "failed_rules"),
)
OF_LISTING: Final = frozenset({"title", "first_seen"})
SELECTED: Final[LiteralString] = ", ".join(COLUMNS)
QUALIFIED: Final[LiteralString] = ", ".join(
    f"l.{name}" if name in OF_LISTING else f"g.{name}" for name in COLUMNS
)

# By the names of DealFilter; a null is within no limit.
CONDITIONS: Final[Mapping[str, LiteralString]] = {
    "query": "query = %(query)s",
    "state": "state = %(state)s",
    "domain": "domain_id = %(domain)s",
    "price_type": "price_type = %(price_type)s",
    "asin": "asin = %(asin)s",
    # The patterns cost little, and leave few titles to be taken into words.
    "title": "short_title LIKE ALL (title_patterns(%(title)s))"
    " AND title_has(short_title, title_query(%(title)s))",
    "category": "root_category = %(category)s",
    "condition": "condition = %(condition)s",
    "price_min": "price_minor >= %(price_min)s",
    "price_max": "price_minor <= %(price_max)s",
    "drop_percent_min": "drop_percent >= %(drop_percent_min)s",
    "profit_min": "profit_minor >= %(profit_min)s",
    "roi_percent_min": "roi_percent >= %(roi_percent_min)s",
    "rank_max": "rank <= %(rank_max)s",
    "rating_min": "rating >= %(rating_min)s",
    "reviews_min": "reviews >= %(reviews_min)s",
    "new_offers_min": "new_offers >= %(new_offers_min)s",
    "used_offers_min": "used_offers >= %(used_offers_min)s",
    "rule": "%(rule)s = ANY(failed_rules)",
    "created_within": "creation_time >= now() - %(created_within)s * interval '1 ms'",
    "judged_within": "judged_at >= now() - %(judged_within)s * interval '1 ms'",
    "judged_since": "judged_at >= %(judged_since)s::timestamptz",
}

# Each as a bigint that is never null. All but "changed" descend.
SORT_VALUES: Final[Mapping[Sort, LiteralString]] = {
    "created": "coalesce((extract(epoch FROM creation_time) * 1000)::bigint, -1)",
    "changed": "changed",
    "profit": "coalesce(profit_minor, -9223372036854775807)",
    "roi": "coalesce(roi_percent, -2147483648)::bigint",
    "drop": "coalesce(drop_percent, -2147483648)::bigint",
    "price": "-coalesce(price_minor, 9223372036854775807)",
    "rank": "-coalesce(rank, 2147483647)::bigint",
}

BEHIND: Final[LiteralString] = """(sort_value, query, domain_id, asin, price_type)
    < (%(after_value)s::bigint, %(after_query)s::text, %(after_domain_id)s::smallint,
       %(after_asin)s::text, %(after_price_type)s::smallint)"""
AFTER: Final[LiteralString] = """(sort_value, query, domain_id, asin, price_type)
    > (%(after_value)s::bigint, %(after_query)s::text, %(after_domain_id)s::smallint,
       %(after_asin)s::text, %(after_price_type)s::smallint)"""
ORDER: Final[LiteralString] = (
    "sort_value DESC, query DESC, domain_id DESC, asin DESC, price_type DESC"
)
ASCENDING: Final[LiteralString] = "sort_value, query, domain_id, asin, price_type"
# A number beyond those of today's transactions comes from a server that was dumped.
SETTLED: Final[LiteralString] = """(sort_value < %(settled)s OR sort_value >= %(begun)s)"""
UNMARKED: Final[LiteralString] = """NOT EXISTS (
    SELECT FROM marks m WHERE m.domain_id = deal.domain_id AND m.asin = deal.asin)"""
HORIZON: Final[LiteralString] = """
SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint,
       (SELECT system_identifier FROM pg_control_system())
  FROM pg_current_snapshot() AS s
"""

PAGE_ROWS_MAX: Final = 1_000
STREAM_ROWS: Final = 2_000
PLACE: Final = ("value", "query", "domain_id", "asin", "price_type")

# Postgres writes every cell as text: to make objects of a million rows takes a minute.
TIME_TEXT: Final[LiteralString] = (
    """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""
)
TEXT_FORMS: Final[Mapping[str, LiteralString]] = {
    **{
        name: TIME_TEXT.replace("{}", name)
        for name in ("creation_time", "reply_time", "first_seen", "judged_at")
    },
    "failed_rules": "array_to_json(failed_rules)",
}
AS_TEXT: Final[LiteralString] = ", ".join(TEXT_FORMS.get(name, name) for name in COLUMNS)
# Source: PostgreSQL's documentation, COPY, "Text Format".
_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DealRows:
    """Rows as tuples of `COLUMNS`, and the place after them; None if no more follow."""

    rows: list[tuple[Any, ...]]
    next: Cursor | None


@dataclass(frozen=True, slots=True)
class TextRows:
    """The same with all cells as text; an unknown value is empty, and `failed_rules` is JSON."""

    rows: list[list[str]]
    next: Cursor | None


@dataclass(frozen=True, slots=True)
class _List:
    """One list: its statement without a limit, the values, the order, the server."""

    statement: LiteralString
    values: dict[str, Any]
    sort: Sort
    server: int

    def place(self, row: Sequence[Any]) -> Cursor:
        """Returns the place after *row*, which ends with the value that it is sorted by."""
        last = dict(zip(COLUMNS, row, strict=False))
        domain_id, price_type = int(last["domain_id"]), int(last["price_type"])
        key = (last["query"], domain_id, last["asin"], price_type)
        return Cursor(self.sort, self.server, int(row[-1]), *key)


def read_deal_rows(
    connection: Connection,
    wanted: DealFilter,
    *,
    sort: Sort = "created",
    after: Cursor | None = None,
    limit: int = 50,
) -> DealRows:
    """Returns up to *limit* of the *wanted* deals behind *after*.

    In the order "changed" there is always a next place: more may follow later.

    Raises:
        FilterError: The cursor comes from another server.
    """
    limit = min(limit, PAGE_ROWS_MAX)
    asked = _list(connection, wanted, sort, after)
    with connection.cursor() as cursor:
        found = cursor.execute(f"{asked.statement} LIMIT {limit + 1}", asked.values).fetchall()
    rows = [row[:-1] for row in found[:limit]]
    if sort == "changed":
        return DealRows(rows, asked.place(found[:limit][-1]) if rows else after)
    return DealRows(rows, asked.place(found[limit - 1]) if len(found) > limit else None)


@contextmanager
def stream_deal_rows(
    connection: Connection,
    wanted: DealFilter,
    *,
    sort: Sort = "changed",
    after: Cursor | None = None,
) -> Iterator[Iterator[TextRows]]:
    """Reads all *wanted* deals behind *after* in parts, at constant memory.

    ``next`` of each part is the place after it. The context ends the reading wherever it stands:
    it holds the connection's lock, so the connection could not even roll back meanwhile.

    Raises:
        FilterError: The cursor comes from another server.
    """
    asked = _list(connection, wanted, sort, after, selected=AS_TEXT)
    statement: LiteralString = f"COPY ({asked.statement}) TO STDOUT (NULL '')"
    with connection.cursor() as cursor, cursor.copy(statement, asked.values) as copy:
        yield _parts(copy, asked)


def _parts(copy: Iterable[bytes | bytearray | memoryview], asked: _List) -> Iterator[TextRows]:
    lines = iter(copy)
    while part := list(islice(lines, STREAM_ROWS)):
        rows = [_cells(line) for line in b"".join(part).decode().split("\n")[:-1]]
        place = asked.place(rows[-1])
        for row in rows:
            row.pop()
        yield TextRows(rows, place)


def _cells(line: str) -> list[str]:
    cells = line.split("\t")
    if "\\" in line:
        return [
            _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), cell) for cell in cells
        ]
    return cells


def _list(
    connection: Connection,
    wanted: DealFilter,
    sort: Sort,
    after: Cursor | None,
    *,
    selected: LiteralString = SELECTED,
) -> _List:
    given = wanted.given()
    conditions: list[LiteralString] = [UNMARKED, *(CONDITIONS[name] for name in given)]
    values: dict[str, Any] = dict(given)
    server = 0
    if sort == "changed":
        row = connection.execute(HORIZON).fetchone()
        assert row is not None
        values["settled"], values["begun"], server = row
        conditions.append(SETTLED)
    if after is not None:
        if after.server != server:
            raise FilterError("cursor", "it comes from another Postgres: start without one")
        conditions.append(AFTER if sort == "changed" else BEHIND)
        values |= {f"after_{name}": getattr(after, name) for name in PLACE}
    statement: LiteralString = f"""
SELECT {selected}, sort_value
  FROM (SELECT *, {SORT_VALUES[sort]} AS sort_value
          FROM (SELECT {QUALIFIED}, g.changed, g.title AS short_title
                  FROM deal_grid g JOIN listings l USING (domain_id, asin)) wide) deal
 WHERE {" AND ".join(conditions)}
 ORDER BY {ASCENDING if sort == "changed" else ORDER}
"""  # noqa: S608 - every part is a constant
    return _List(statement, values, sort, server)
