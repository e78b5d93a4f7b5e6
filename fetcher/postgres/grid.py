"""The console's grid: pages of judged deals from the narrow table, whatever the filter.

Conditions and orders are those of `deal_rows`. Each order has
an index. A page is looked for among the first rows of its order, which ends the search where
the filter lets many rows through. Where it lets few through, one scan of the narrow table
finds them all. Both have a bound, whatever the planner expects.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, LiteralString

from fetcher.deals.filters import Cursor, DealFilter, Sort
from fetcher.postgres.database import Connection, Row, fetch_dicts
from fetcher.postgres.deal_rows import BEHIND, CONDITIONS, ORDER, PLACE, SORT_VALUES, like

COLUMNS: Final[LiteralString] = """
g.query, g.state, g.domain_id, g.asin, g.price_type, g.title, g.created_ms, g.price_minor, g.value,
g.date_range, g.drop_minor, g.drop_percent, g.profit_minor, g.roi_percent, g.rank, g.rating,
g.reviews, g.new_offers, g.used_offers, g.root_category, g.condition, g.creation_time,
g.reply_time, g.judged_at, g.failed_rules"""

# A product that was marked is not shown.
UNMARKED: Final[LiteralString] = """NOT EXISTS (
    SELECT FROM marks m WHERE m.domain_id = deal.domain_id AND m.asin = deal.asin)"""

NEWEST: Final[LiteralString] = "g.created_ms"
# So many rows of an order are looked through first.
FIRST_ROWS: Final = 20_000
# Names other than those of lists.
EXTRAS: Final[Mapping[str, LiteralString]] = {
    "title": "title LIKE lower(%(title)s)",
    "rule": "%(rule)s = ANY(failed_rules)",
    "new_offers_min": "new_offers >= %(new_offers_min)s",
    "used_offers_min": "used_offers >= %(used_offers_min)s",
}

LISTED: Final[LiteralString] = """
page.*, l.title AS full_title, l.image
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
class GridFilter:
    """The wanted deals, with what only the grid can filter by."""

    deals: DealFilter
    rule: str | None = None
    new_offers_min: int | None = None
    used_offers_min: int | None = None


@dataclass(frozen=True, slots=True)
class GridPage:
    """A page of rows and the place after it; how many rows there are, perhaps estimated."""

    rows: list[Row]
    next: Cursor | None
    count: int
    is_estimate: bool


def read_grid(
    connection: Connection,
    wanted: GridFilter,
    *,
    sort: Sort = "created",
    after: Cursor | None = None,
    limit: int,
) -> GridPage:
    """Returns up to *limit* of the *wanted* deals behind *after*."""
    conditions, values = _conditions(wanted)
    order: LiteralString = NEWEST if sort == "created" else SORT_VALUES[sort]
    select: LiteralString = f"SELECT {COLUMNS}, {order} AS sort_value FROM deal_grid g"  # noqa: S608 - every part is a constant
    if after is not None:
        values |= {f"after_{name}": getattr(after, name) for name in PLACE}
    behind: LiteralString = BEHIND if after is not None else "true"
    state = CONDITIONS["state"] if wanted.deals.state is not None else "true"
    # The state is part of an index; it makes the first rows the right ones.
    first = (
        f"SELECT * FROM ({select}) deal WHERE {behind} AND {state} ORDER BY {ORDER}"  # noqa: S608 - as above
        f" LIMIT {FIRST_ROWS}"
    )
    found = _page(connection, first, conditions, values, limit + 1)
    if len(found) <= limit:
        # The sum keeps the plan from the index of the order: it is a scan, and a short sort.
        select = f"SELECT {COLUMNS}, {order} + 0 AS sort_value FROM deal_grid g"  # noqa: S608 - as above
        scan: LiteralString = f"SELECT * FROM ({select}) deal WHERE {behind}"  # noqa: S608 - as above
        found = _page(connection, scan, conditions, values, limit + 1)
    rows = found[:limit]
    place = None
    if len(found) > limit:
        last = rows[-1]
        key = (last["query"], last["domain_id"], last["asin"], last["price_type"])
        place = Cursor(sort, 0, last["sort_value"], *key)
    if after is None and place is None:
        return GridPage(rows, None, len(rows), is_estimate=False)
    everything = f"SELECT 1 FROM deal_grid deal WHERE {conditions}"  # noqa: S608 - as above
    # Fewer than are here it can't be, whatever the planner believes.
    least = len(rows) + (place is not None)
    count = max(least, _estimate(connection, everything, values))
    return GridPage(rows, place, count, is_estimate=True)


def query_names(connection: Connection) -> list[str]:
    """Returns the names of the queries that have judged anything."""
    return [str(name) for (name,) in connection.execute(QUERY_NAMES)]


def _conditions(wanted: GridFilter) -> tuple[LiteralString, dict[str, Any]]:
    """Returns what a row must fulfil, and the values."""
    values: dict[str, Any] = dict(wanted.deals.given())
    if wanted.deals.title is not None:
        values["title"] = like(wanted.deals.title)
    for name in ("rule", "new_offers_min", "used_offers_min"):
        if (value := getattr(wanted, name)) is not None:
            values[name] = value
    conditions = [EXTRAS.get(name) or CONDITIONS[name] for name in values]
    joined: LiteralString = " AND ".join([*conditions, UNMARKED])
    return joined, values


def _page(
    connection: Connection,
    rows: LiteralString,
    conditions: LiteralString,
    values: dict[str, Any],
    limit: int,
) -> list[Row]:
    """Returns the first of *rows* that fulfil *conditions*, with what the listing has."""
    page = f"SELECT * FROM ({rows}) deal WHERE {conditions} ORDER BY {ORDER} LIMIT {limit}"  # noqa: S608 - every part is a constant
    statement = f"WITH page AS ({page}) SELECT {LISTED} ORDER BY {ORDER}"
    found = fetch_dicts(connection, statement, values)
    for row in found:
        row["title"] = row.pop("full_title")
    return found


def _estimate(connection: Connection, select: LiteralString, values: dict[str, Any]) -> int:
    """Returns the planner's estimate of the number of rows; counting would read them all."""
    found = connection.execute(f"EXPLAIN (FORMAT JSON) {select}", values).fetchone()
    assert found is not None
    plan = found[0] if isinstance(found[0], list) else json.loads(found[0])
    return int(plan[0]["Plan"]["Plan Rows"])
