"""The console's grid: pages of judged deals from the narrow table, whatever the filter.

Conditions and orders are those of `deal_rows`. Each order has an index.

1. A page is looked for among the first rows of its order, which ends the search where the
   filter lets many rows through.
2. Where it lets few through, the whole table is searched: conditions are written so that the
   indexes of the orders serve them too, alone or several at a time.
3. The second search has a bound in time. What it did not find in time is no "nothing": the page
   then holds what is among the first rows, how many those are, and the place behind them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg

from fetcher.deals.filters import Cursor, DealFilter, Sort
from fetcher.postgres.database import Connection, Row, fetch_dicts, planned_rows, timeout_of
from fetcher.postgres.deal_rows import BEHIND, CONDITIONS, ORDER, PLACE, SORT_VALUES
from fetcher.replies.units import DOMAINS

COLUMNS: Final[LiteralString] = """
g.query, g.state, g.domain_id, g.asin, g.price_type, g.title AS short_title, g.created_ms,
g.price_minor, g.value,
g.date_range, g.drop_minor, g.drop_percent, g.profit_minor, g.roi_percent, g.rank, g.rating,
g.reviews, g.new_offers, g.used_offers, g.root_category, g.condition, g.creation_time,
g.reply_time, g.judged_at, g.failed_rules"""

# A product that was marked is not shown.
UNMARKED: Final[LiteralString] = """NOT EXISTS (
    SELECT FROM marks m WHERE m.domain_id = deal.domain_id AND m.asin = deal.asin)"""

NEWEST: Final[LiteralString] = "g.created_ms"
# So many rows of an order are looked through first.
FIRST_ROWS: Final = 10_000
# The whole table in memory takes half of it on a core of its own.
SEARCH_MS: Final = 300
# The same conditions, as the indexes have their values. A bound beyond all values must not
# let those in that are unknown.
INDEXED: Final[Mapping[str, LiteralString]] = {
    "asin": f"domain_id IN ({', '.join(map(str, DOMAINS))}) AND asin = %(asin)s",
    "price_min": "-coalesce(price_minor, 9223372036854775807) <= -%(price_min)s::bigint"
    " AND price_minor IS NOT NULL",
    "price_max": "-coalesce(price_minor, 9223372036854775807) >= -%(price_max)s::bigint"
    " AND price_minor IS NOT NULL",
    "drop_percent_min": "coalesce(drop_percent, -2147483648)::bigint >= %(drop_percent_min)s"
    " AND drop_percent IS NOT NULL",
    "profit_min": "coalesce(profit_minor, -9223372036854775807) >= %(profit_min)s"
    " AND profit_minor IS NOT NULL",
    "roi_percent_min": "coalesce(roi_percent, -2147483648)::bigint >= %(roi_percent_min)s"
    " AND roi_percent IS NOT NULL",
    "rank_max": "-coalesce(rank, 2147483647)::bigint >= -%(rank_max)s::bigint"
    " AND rank IS NOT NULL",
    "created_within": "creation_time IS NOT NULL AND created_ms >= (1000 * extract(epoch FROM"
    " now() - %(created_within)s * interval '1 ms'))::bigint",
}

# Products by words of their titles. Planners overrate how many share a beginning, so the
# products are found first; of more than these, the order's first rows hold enough.
NAMED: Final[LiteralString] = """
SELECT domain_id, asin FROM titles WHERE words @@ title_query(%(title)s) LIMIT %(named_max)s
"""
NAMED_MAX: Final = 5_000
OF_NAMED: Final[LiteralString] = """(domain_id, asin) IN (
    SELECT * FROM unnest(%(named_domains)s::smallint[], %(named_asins)s::text[]))"""

LISTED: Final[LiteralString] = """
page.*, l.title, l.image
  FROM page LEFT JOIN listings l USING (domain_id, asin)
"""

QUERY_NAMES: Final[LiteralString] = """
WITH RECURSIVE names AS (
    (SELECT query FROM deal_grid ORDER BY query LIMIT 1)
    UNION ALL
    SELECT (SELECT g.query FROM deal_grid g WHERE g.query > n.query ORDER BY g.query LIMIT 1)
      FROM names n WHERE n.query IS NOT NULL)
SELECT query FROM names WHERE query IS NOT NULL ORDER BY query
"""


@dataclass(frozen=True, slots=True)
class GridPage:
    """A page of rows.

    Args:
        rows: The deals.
        next: The place after them, or behind the rows that were looked through.
        count: How many deals there are, perhaps estimated.
        is_estimate: Whether it is.
        looked_through: The number of first rows that were searched, if time allowed no more;
            None: all.
    """

    rows: list[Row]
    next: Cursor | None
    count: int
    is_estimate: bool
    looked_through: int | None = None


@dataclass(frozen=True, slots=True)
class _Search:
    """One search, with its parts of a statement."""

    connection: Connection
    sort: Sort
    after: Cursor | None
    values: dict[str, Any]

    @property
    def _order(self) -> LiteralString:
        return NEWEST if self.sort == "created" else SORT_VALUES[self.sort]

    @property
    def _behind(self) -> LiteralString:
        return BEHIND if self.after is not None else "true"

    def conditions(self, forms: Mapping[str, LiteralString] = CONDITIONS) -> LiteralString:
        """What a row must fulfil."""
        given = [form for name, form in forms.items() if name in self.values]
        joined: LiteralString = " AND ".join([*given, UNMARKED])
        return joined

    def first(self, rows: int, limit: int) -> list[Row]:
        """Returns up to *limit* deals among the first *rows* of the order."""
        return self._page(f"{self._in_order()} LIMIT {rows}", self.conditions(), limit)

    def anywhere(self, limit: int) -> list[Row]:
        """Returns up to *limit* deals of the whole table."""
        # The sum keeps the plan from reading in this order: it finds all, and sorts them.
        select = f"SELECT {COLUMNS}, {self._order} + 0 AS sort_value FROM deal_grid g"  # noqa: S608 - every part is a constant
        scan: LiteralString = f"SELECT * FROM ({select}) deal WHERE {self._behind}"  # noqa: S608 - as above
        forms = {**CONDITIONS, **INDEXED}
        if "title" in self.values:
            limits = self.values | {"named_max": NAMED_MAX + 1}
            named = self.connection.execute(NAMED, limits).fetchall()
            if len(named) <= NAMED_MAX:
                self.values["named_domains"] = [domain_id for domain_id, _ in named]
                self.values["named_asins"] = [asin for _, asin in named]
                forms["title"] = OF_NAMED
        return self._page(scan, self.conditions(forms), limit)

    def edge(self, rows: int) -> Cursor | None:
        """Returns the place behind the first *rows* of the order; None if there are no more."""
        key = "query, domain_id, asin, price_type, sort_value"
        statement = f"SELECT {key} FROM ({self._in_order()} OFFSET {rows - 1} LIMIT 1) row"  # noqa: S608 - as above
        found = fetch_dicts(self.connection, statement, self.values)
        return self.place(found[0]) if found else None

    def place(self, row: Row) -> Cursor:
        """Returns the place behind *row*."""
        key = (row["query"], row["domain_id"], row["asin"], row["price_type"])
        return Cursor(self.sort, 0, row["sort_value"], *key)

    def estimate(self) -> int:
        """Returns about how many deals there are."""
        deals = f"SELECT 1 FROM (SELECT {COLUMNS} FROM deal_grid g) deal"  # noqa: S608 - as above
        statement = f"{deals} WHERE {self.conditions()}"
        return planned_rows(self.connection, statement, self.values)

    def _in_order(self) -> LiteralString:
        # The state is part of an index; it makes the first rows the right ones.
        state = CONDITIONS["state"] if "state" in self.values else "true"
        select = f"SELECT {COLUMNS}, {self._order} AS sort_value FROM deal_grid g"  # noqa: S608 - as above
        return f"SELECT * FROM ({select}) deal WHERE {self._behind} AND {state} ORDER BY {ORDER}"  # noqa: S608 - as above

    def _page(self, rows: LiteralString, conditions: LiteralString, limit: int) -> list[Row]:
        """Returns the first of *rows* that fulfil *conditions*, with what the listing has."""
        page = f"SELECT * FROM ({rows}) deal WHERE {conditions} ORDER BY {ORDER} LIMIT {limit}"  # noqa: S608 - as above
        statement = f"WITH page AS ({page}) SELECT {LISTED} ORDER BY {ORDER}"
        return fetch_dicts(self.connection, statement, self.values)


def read_grid(
    connection: Connection,
    wanted: DealFilter,
    *,
    sort: Sort = "created",
    after: Cursor | None = None,
    limit: int,
    first_rows: int = FIRST_ROWS,
    search_ms: int = SEARCH_MS,
) -> GridPage:
    """Returns up to *limit* of the *wanted* deals behind *after*.

    The first *first_rows* of the order are searched at any price, all others for *search_ms*
    milliseconds at most.
    """
    values: dict[str, Any] = dict(wanted.given())
    if after is not None:
        values |= {f"after_{name}": getattr(after, name) for name in PLACE}
    search = _Search(connection, sort, after, values)
    found = search.first(first_rows, limit + 1)
    if len(found) <= limit:
        try:
            with connection.transaction(), timeout_of(connection, search_ms):
                found = search.anywhere(limit + 1)
        except psycopg.errors.QueryCanceled:
            if (edge := search.edge(first_rows)) is not None:
                count = max(len(found), search.estimate())
                return GridPage(found, edge, count, True, first_rows)
    rows = found[:limit]
    place = search.place(rows[-1]) if len(found) > limit else None
    if after is None and place is None:
        return GridPage(rows, None, len(rows), is_estimate=False)
    # Fewer than are here it can't be, whatever the planner believes.
    count = max(len(rows) + (place is not None), search.estimate())
    return GridPage(rows, place, count, is_estimate=True)


def query_names(connection: Connection) -> list[str]:
    """Returns the names of the queries that have judged anything."""
    return [str(name) for (name,) in connection.execute(QUERY_NAMES)]
