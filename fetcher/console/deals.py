"""The pages of deals: the grid, a deal's story, marks."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from fetcher.console.context import ConsoleContext, price_kind, words_of_value
from fetcher.deals.filters import (
    SORTS,
    STATES,
    Cursor,
    DealFilter,
    FilterError,
    Sort,
    read_filter,
    read_sort,
)
from fetcher.postgres.database import Connection, Row
from fetcher.postgres.grid import SEARCH_MS, query_names, read_grid
from fetcher.postgres.history import price_history
from fetcher.postgres.marks import MARKS, list_marks, marks_of, remove_mark, set_mark
from fetcher.postgres.overview import readers
from fetcher.postgres.story import product_story
from fetcher.replies.units import (
    AMAZON,
    BUY_BOX,
    CURRENCIES,
    DATE_RANGES,
    DOMAINS,
    NEW,
    PRICE_TYPES,
    is_price,
)
from protos.web.charts import Point, Series, step_chart
from protos.web.door import CALLER

PAGE_ROWS: Final = 48
# Linked to where it is mounted.
API: Final = "/api/deals"
MARKS_ROWS: Final = 100
CHANGES: Final = 50
# The other filters are folded up while none of them is used.
MAIN_FILTERS: Final = {"title", "state", "query", "sort", "created_within", "domain"}
# The address of a search that may take longer, within the bound of all pages.
PATIENT: Final = "patient"
PATIENT_MS: Final = 8_000
OWN_NAMES: Final = frozenset({"sort", PATIENT})


@dataclass(frozen=True, slots=True)
class Slider:
    """A range of a filter: what the slider covers; the number beside it may be any."""

    name: str
    label: str
    least: int
    most: int
    step: int
    # The end of the slider that means "any".
    none: int


SLIDERS: Final = (
    Slider("drop_percent_min", "Drop at least, %", 0, 95, 5, 0),
    Slider("price_min", "Price at least, in cents", 0, 50_000, 500, 0),
    Slider("price_max", "Price at most, in cents", 0, 50_000, 500, 50_000),
    Slider("profit_min", "Profit at least, in cents", 0, 10_000, 100, 0),
    Slider("roi_percent_min", "Return at least, %", 0, 200, 5, 0),
    Slider("rank_max", "Sales rank at most", 0, 2_000_000, 10_000, 2_000_000),
    Slider("rating_min", "Rating at least, 0 to 50", 0, 50, 5, 0),
    Slider("reviews_min", "Reviews at least", 0, 1_000, 10, 0),
    Slider("new_offers_min", "New offers at least", 0, 50, 1, 0),
    Slider("used_offers_min", "Used offers at least", 0, 50, 1, 0),
)
AGES: Final = {"1h": "an hour", "6h": "6 hours", "24h": "a day", "7d": "a week", "31d": "a month"}
FORMATS: Final = {"csv": "CSV", "xlsx": "Excel", "jsonl": "JSON lines", "parquet": "Parquet"}
# Views to begin with; any address can be kept as a bookmark.
VIEWS: Final = {
    "Accepted, newest": "state=accepted",
    "Best profit": "state=accepted&sort=profit",
    "Largest drops of a day": "drop_percent_min=50&created_within=24h&sort=drop",
    "Rejected lately": "state=rejected&judged_within=24h",
    "All": "state=",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What the address of the grid asks for."""

    values: Mapping[str, str]
    wanted: DealFilter
    sort: Sort
    after: Cursor | None
    search_ms: int

    def address(self, **changes: str) -> str:
        """The address of the same list with *changes*; an empty value is left out."""
        values = {**self.values, **changes}
        # An empty state means any, and is no default.
        kept = {name: text for name, text in values.items() if text or name == "state"}
        return f"/?{urlencode(kept)}"

    def patiently(self) -> str:
        """The address of the same page with a longer search."""
        place = {} if self.after is None else {"cursor": str(self.after)}
        return self.address(**{PATIENT: "1"}, **place)


def read_address(query: Mapping[str, str]) -> Asked:
    """Reads the address of the grid.

    Raises:
        FilterError: A filter, the sort or the place is unusable.
    """
    values = {"state": "accepted"} if not query else {}
    values |= {name: text.strip() for name, text in query.items() if name != "cursor"}
    shared = {name: text for name, text in values.items() if name not in OWN_NAMES}
    sort = read_sort(values.get("sort", ""))
    wanted = read_filter(shared)
    place = query.get("cursor", "")
    after = Cursor.parse(place, sort=sort) if place else None
    kept = {name: text for name, text in values.items() if text or name == "state"}
    search_ms = PATIENT_MS if values.get(PATIENT) else SEARCH_MS
    return Asked(kept, wanted, sort, after, search_ms)


class DealPages:
    """The handlers."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        """The pages and forms, behind the door."""
        viewing, acting = self._context.viewing, self._context.acting
        return [
            web.get("/", viewing(self.grid)),
            web.get("/deal/{domain:[0-9]{1,2}}/{asin:[A-Z0-9]{10}}", viewing(self.story)),
            web.post("/deal/{domain:[0-9]{1,2}}/{asin:[A-Z0-9]{10}}/mark", acting(self.mark)),
            web.get("/marks", viewing(self.marks)),
        ]

    async def grid(self, request: web.Request) -> web.Response:
        """The list of deals."""
        context, problem = self._context, ""
        try:
            asked = read_address(request.query)
        except FilterError as exc:
            # The form shows what is wrong; nothing is widened silently.
            problem, asked = str(exc), read_address({"state": "accepted", "asin": "0000000000"})
        page, names = await context.read(_grid, asked)
        return context.pages.page(
            request,
            "deals.html",
            status=HTTPStatus.BAD_REQUEST if problem else HTTPStatus.OK,
            problem=problem,
            page=page,
            asked=asked,
            values=defaultdict(str, dict(request.query) if problem else asked.values),
            has_more=bool(asked.values.keys() - MAIN_FILTERS),
            first=asked.address(),
            following=None if page.next is None else asked.address(cursor=str(page.next)),
            is_first=asked.after is None,
            patient=None if asked.search_ms > SEARCH_MS else asked.patiently(),
            query_names=names,
            states=STATES,
            sorts=SORTS,
            sites=DOMAINS,
            price_types=list(enumerate(PRICE_TYPES)),
            sliders=SLIDERS,
            ages=AGES,
            views=VIEWS,
            ranges=DATE_RANGES,
            images=context.images,
            has_api=any(resource.canonical == API for resource in request.app.router.resources()),
            formats=FORMATS,
            export=urlencode(asked.wanted.parameters() | {"sort": asked.sort}),
            can_mark=request[CALLER].may_act and context.writing is not None,
        )

    async def story(self, request: web.Request) -> web.Response:
        """Everything about one product of one site."""
        context = self._context
        domain_id, asin = int(request.match_info["domain"]), request.match_info["asin"]
        story = await context.read(_story, domain_id, asin)
        if not story["listings"]:
            return context.pages.page(
                request,
                "trouble.html",
                status=HTTPStatus.NOT_FOUND,
                problem=f"{asin} was never served to any query on this site",
            )
        return context.pages.page(
            request,
            "deal.html",
            asin=asin,
            domain_id=domain_id,
            listing=story["listings"][0],
            story=story,
            charts=_charts(story["history"], domain_id),
            mark=story["mark"],
            images=context.images,
            can_mark=request[CALLER].may_act and context.writing is not None,
        )

    async def mark(self, request: web.Request) -> web.Response:
        """Marks a product, or takes the mark off."""
        domain_id, asin = int(request.match_info["domain"]), request.match_info["asin"]
        form = await request.post()
        mark = str(form.get("mark", ""))
        match mark:
            case "ignored" | "bought":
                by = request[CALLER].name or "console"
                await self._context.write(set_mark, domain_id, asin, mark, by=by)
            case "none":
                await self._context.write(remove_mark, domain_id, asin)
            case _:
                text = f"mark: write one of {', '.join(MARKS)}, none\n"
                return web.Response(status=HTTPStatus.BAD_REQUEST, text=text)
        back = str(form.get("back", ""))
        is_own = back.startswith("/") and not back.startswith(("//", "/\\")) and back.isprintable()
        location = back if is_own else f"/deal/{domain_id}/{asin}"
        return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": location})

    async def marks(self, request: web.Request) -> web.Response:
        """The list of marks."""
        wanted = request.query.get("mark")
        mark = next((each for each in MARKS if each == wanted), None)
        before = request.query.get("before")
        try:
            before = None if not before else datetime.fromisoformat(before).isoformat()
        except ValueError:
            before = None
        rows = await self._context.read(list_marks, mark=mark, before=before, limit=MARKS_ROWS + 1)
        shown = rows[:MARKS_ROWS]
        following = None
        if len(rows) > MARKS_ROWS:
            last = shown[-1]["marked_at"].isoformat()
            following = f"/marks?{urlencode({'mark': mark or '', 'before': last})}"
        return self._context.pages.page(
            request,
            "marks.html",
            rows=shown,
            mark=mark,
            following=following,
            can_mark=request[CALLER].may_act and self._context.writing is not None,
        )


def _grid(connection: Connection, asked: Asked) -> tuple[Any, list[str]]:
    page = read_grid(
        connection,
        asked.wanted,
        sort=asked.sort,
        after=asked.after,
        limit=PAGE_ROWS,
        search_ms=asked.search_ms,
    )
    return page, query_names(connection)


def _story(connection: Connection, domain_id: int, asin: str) -> dict[str, Any]:
    story: dict[str, Any] = {
        **product_story(connection, asin, changes=CHANGES, domains=[domain_id])
    }
    types = {row["price_type"] for row in story["deals"]} | {AMAZON, NEW, BUY_BOX}
    story["history"] = price_history(connection, domain_id, asin, sorted(types))
    story["readers"] = readers(connection, domain_id, asin)
    story["mark"] = marks_of(connection, asin).get(domain_id)
    return story


def _charts(history: list[Row], domain_id: int) -> list[Mapping[str, Any]]:
    """Draws prices in one chart, and each rank, rating or count in its own."""
    by_type: dict[int, list[Row]] = {}
    for row in history:
        by_type.setdefault(row["price_type"], []).append(row)
    prices = [price_type for price_type in by_type if is_price(price_type)]
    groups = [prices, *([each] for each in by_type if not is_price(each))]
    return [_chart(group, by_type, domain_id) for group in groups if group]


def _chart(
    price_types: list[int], by_type: Mapping[int, list[Row]], domain_id: int
) -> Mapping[str, Any]:
    lines, words = [], []
    for price_type in price_types:
        rows = by_type[price_type]
        points = [
            Point(row["time"].timestamp(), row["value"], row["low"], row["high"]) for row in rows
        ]
        lines.append(Series(price_kind(price_type), points))
        values = [row["value"] for row in rows if row["value"] is not None]
        span = f"since {rows[0]['time']:%d %b %Y}"
        if values:
            low, high = (
                words_of_value(value, price_type, domain_id)
                for value in (min(values), max(values))
            )
            now = words_of_value(rows[-1]["value"], price_type, domain_id)
            words.append(f"{price_kind(price_type)}: {low} to {high} {span}, now {now}.")
    is_money = is_price(price_types[0])
    currency = CURRENCIES.get(domain_id)
    title = f"Price history, {currency.code}" if is_money and currency else "History"
    if not is_money:
        title = f"History of {price_kind(price_types[0])}"
    digits = currency.digits if is_money and currency else 0
    chart = step_chart(
        lines, title=title, until_s=datetime.now(UTC).timestamp(), words=words, decimals=digits
    )
    sources = sorted({row["source"] for price_type in price_types for row in by_type[price_type]})
    return {"title": title, "chart": chart, "words": words, "sources": sources}
