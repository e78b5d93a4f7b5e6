"""Deals by filter: pages in a stable order, and streams of any length.

Law: a list is sorted by one expression that is never null, then by the row's key, all in one
direction. A place in it is a comparison of rows, and no row is skipped or repeated.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, LiteralString

from psycopg.rows import dict_row

from fetcher.deals.filters import Cursor, DealFilter, Sort
from fetcher.postgres.database import Connection, Row

COLUMNS: Final[LiteralString] = """
query, state, domain_id, asin, price_type, title, price_minor, value, date_range,
average_minor, drop_minor, drop_percent, profit_minor, roi_percent, rank, rating, reviews,
new_offers, used_offers, root_category, condition, creation_time, last_update, reply_time,
first_seen, judged_at"""

# By the names of DealFilter; a null is within no limit.
CONDITIONS: Final[Mapping[str, LiteralString]] = {
    "query": "query = %(query)s",
    "state": "state = %(state)s",
    "domain": "domain_id = %(domain)s",
    "price_type": "price_type = %(price_type)s",
    "asin": "asin = %(asin)s",
    "title": "title ILIKE %(title)s",
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
    "created_within": "creation_time >= now() - %(created_within)s * interval '1 ms'",
    "judged_within": "judged_at >= now() - %(judged_within)s * interval '1 ms'",
}

# Each as a bigint that is never null, the first one highest.
SORT_VALUES: Final[Mapping[Sort, LiteralString]] = {
    "created": "coalesce((extract(epoch FROM creation_time) * 1000)::bigint, -1)",
    "profit": "coalesce(profit_minor, -9223372036854775807)",
    "roi": "coalesce(roi_percent, -2147483648)::bigint",
    "drop": "coalesce(drop_percent, -2147483648)::bigint",
    "price": "-coalesce(price_minor, 9223372036854775807)",
    "rank": "-coalesce(rank, 2147483647)::bigint",
}

BEHIND: Final[LiteralString] = """(sort_value, query, domain_id, asin, price_type)
    < (%(after_value)s::bigint, %(after_query)s::text, %(after_domain_id)s::smallint,
       %(after_asin)s::text, %(after_price_type)s::smallint)"""
FROM: Final[LiteralString] = "judged_deals"
PAGE_ROWS_MAX: Final = 1_000
STREAM_ROWS: Final = 2_000
PLACE: Final = ("value", "query", "domain_id", "asin", "price_type")
# A cursor on the server lasts as long as its transaction.
STREAM: Final = "deals"
ORDER: Final[LiteralString] = (
    "sort_value DESC, query DESC, domain_id DESC, asin DESC, price_type DESC"
)
_ESCAPED: Final = r"\\\g<0>"
_LIKE_SIGNS: Final = re.compile(r"[%_\\]")


@dataclass(frozen=True, slots=True)
class DealRows:
    """A page of rows, by column, and the place after them; None if no more follow."""

    rows: list[Row]
    next: Cursor | None


def read_deal_rows(
    connection: Connection,
    wanted: DealFilter,
    *,
    sort: Sort = "created",
    after: Cursor | None = None,
    limit: int = 50,
) -> DealRows:
    """Returns up to *limit* of the *wanted* deals behind *after*."""
    limit = min(limit, PAGE_ROWS_MAX)
    select, values = _select(wanted, sort, after)
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(f"{select} LIMIT {limit + 1}", values).fetchall()
    rows = found[:limit]
    place = _place(rows[-1], sort) if len(found) > limit else None
    for row in rows:
        del row["sort_value"]
    return DealRows(rows, place)


def stream_deal_rows(
    connection: Connection,
    wanted: DealFilter,
    *,
    sort: Sort = "created",
    after: Cursor | None = None,
) -> Iterator[DealRows]:
    """Yields all *wanted* deals behind *after* in parts, at constant memory.

    ``next`` of each part is the place after it.
    """
    select, values = _select(wanted, sort, after)
    with connection.cursor(STREAM, row_factory=dict_row) as cursor:
        cursor.execute(select, values)
        while rows := cursor.fetchmany(STREAM_ROWS):
            place = _place(rows[-1], sort)
            for row in rows:
                del row["sort_value"]
            yield DealRows(rows, place)


def _select(
    wanted: DealFilter, sort: Sort, after: Cursor | None
) -> tuple[LiteralString, dict[str, Any]]:
    """Returns the statement for the rows behind *after*, without a limit, and its values."""
    given = wanted.given()
    conditions = [CONDITIONS[name] for name in given]
    values: dict[str, Any] = dict(given)
    if wanted.title is not None:
        values["title"] = like(wanted.title)
    if after is not None:
        conditions.append(BEHIND)
        values |= {f"after_{name}": getattr(after, name) for name in PLACE}
    where: LiteralString = " AND ".join(conditions) or "true"
    select: LiteralString = f"SELECT {COLUMNS}, {SORT_VALUES[sort]} AS sort_value FROM {FROM}"  # noqa: S608 - every part is a constant
    return f"SELECT * FROM ({select}) deal WHERE {where} ORDER BY {ORDER}", values  # noqa: S608 - as above


def like(text: str) -> str:
    """Returns the pattern for values that contain *text*."""
    return f"%{_LIKE_SIGNS.sub(_ESCAPED, text)}%"


def _place(row: Row, sort: Sort) -> Cursor:
    key = (row["query"], row["domain_id"], row["asin"], row["price_type"])
    return Cursor(sort, row["sort_value"], *key)
