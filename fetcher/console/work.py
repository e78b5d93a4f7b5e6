"""The pages of the work: rejections, queries, the fleet, dead pages."""

import asyncio
from datetime import datetime, timedelta
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from fetcher.console.context import ConsoleContext
from fetcher.postgres.dead_pages import list_dead, requeue
from fetcher.postgres.measures import measure_reading
from fetcher.postgres.overview import fleet, queries_overview, rejections
from fetcher.queries.query import DealQuery
from fetcher.replies.units import span_words
from protos.web.charts import bar
from protos.web.door import CALLER
from protos.web.live import LiveParts

PERIODS: Final = {
    "1h": ("an hour", timedelta(hours=1)),
    "24h": ("a day", timedelta(days=1)),
    "7d": ("a week", timedelta(days=7)),
    "": ("all time", None),
}
ROWS_MAX: Final = 200
LIVE_S: Final = 5.0
SCAN_ID_MAX: Final = 2**63 - 1


class WorkPages:
    """The handlers."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._live = LiveParts(self._fleet_parts)

    def add_to(self, routes: web.Application) -> None:
        """Adds the pages and forms, behind the door."""
        viewing, acting = self._context.viewing, self._context.acting
        routes.add_routes(
            [
                web.get("/rejections", viewing(self.rejections)),
                web.get("/queries", viewing(self.queries)),
                web.get("/fleet", viewing(self.fleet)),
                web.get("/fleet/live", viewing(self.fleet_live)),
                web.get("/dead", viewing(self.dead)),
                web.post("/dead/requeue", acting(self.requeue)),
            ]
        )
        routes.on_shutdown.append(self._live.close)

    async def rejections(self, request: web.Request) -> web.Response:
        """Rejections as bars, by query and period."""
        period = request.query.get("since", "24h")
        period = period if period in PERIODS else "24h"
        query = request.query.get("query") or None
        exact = bool(request.query.get("exact"))
        found = await self._context.read(
            rejections, query=_text(query), since=PERIODS[period][1], exact=exact
        )
        counts: dict[str, dict[str, int]] = {}
        by_query: dict[str, list[Any]] = {}
        for row in found.rows:
            name, deals = row["query"], row["deals"]
            if row["rule"] is None:
                counts.setdefault(name, {})[row["state"]] = deals
                continue
            share = deals / max(counts[name].get("rejected", 0), 1)
            by_query.setdefault(name, []).append(
                {**row, "share": round(100 * share), "bar": bar(share)}
            )
        for rows in by_query.values():
            rows.sort(key=lambda row: -row["deals"])
        return self._context.pages.page(
            request,
            "rejections.html",
            counts=counts,
            rules=by_query,
            sampled=found.sampled,
            periods={name: words for name, (words, _) in PERIODS.items()},
            period=period,
            query=query,
        )

    async def queries(self, request: web.Request) -> web.Response:
        """How each query stands, and what it waits for."""
        folder = self._context.folder
        await asyncio.to_thread(folder.refresh)
        queries = list(folder.book.queries)
        rows = await self._context.read(queries_overview, queries)
        reading = await self._context.read(measure_reading, queries)
        hours = {hour.query: hour for hour in reading}
        known = {query.name: query for query in queries}
        for row in rows:
            row["interval"], row["next"] = _next_scan(row, known[row["query"]])
            row["hour"] = hours[row["query"]]
            row["words"] = known[row["query"]].explain()
        return self._context.pages.page(
            request, "queries.html", rows=rows, errors=[str(error) for error in folder.book.errors]
        )

    async def fleet(self, request: web.Request) -> web.Response:
        """The fetchers."""
        parts = await self._fleet_parts(request)
        return self._context.pages.page(request, "fleet.html", parts=parts)

    async def fleet_live(self, request: web.Request) -> web.StreamResponse:
        """The same, as events."""
        return await self._live.serve(request, partial(asyncio.sleep, LIVE_S))

    async def dead(self, request: web.Request) -> web.Response:
        """Pages that were put aside."""
        rows = await self._context.read(list_dead, limit=ROWS_MAX)
        return self._context.pages.page(
            request,
            "dead.html",
            rows=rows,
            most=ROWS_MAX,
            done=request.query.get("done"),
            can_act=request[CALLER].may_act and self._context.writing is not None,
        )

    async def requeue(self, request: web.Request) -> web.Response:
        """Puts dead pages back to work, of one scan or all."""
        text = str((await request.post()).get("scan", ""))
        if text and (not text.isascii() or not text.isdecimal() or int(text) > SCAN_ID_MAX):
            return web.Response(status=HTTPStatus.BAD_REQUEST, text="scan: write its number\n")
        pages, dropped, products = await self._context.write(requeue, int(text) if text else None)
        done = f"{pages}-{dropped}-{products}"
        return web.Response(
            status=HTTPStatus.SEE_OTHER, headers={"Location": f"/dead?done={done}"}
        )

    async def _fleet_parts(self, _request: web.Request) -> str:
        rows = await self._context.read(fleet, limit=ROWS_MAX)
        return self._context.pages.text(
            "fleet_parts.html", rows=rows, silent_s=self._context.silent_s, span=span_words
        )


def _text(value: str | None) -> str | None:
    """What Postgres can compare; anything else matches nothing."""
    return value if value is None or value.isprintable() else "\ufffd"


def _next_scan(row: dict[str, Any], query: DealQuery) -> tuple[str, str]:
    """When the query is read again in words, and why not earlier."""
    fixed_s = None if query.interval_ms is None else query.interval_ms / 1000
    interval_s = fixed_s or row["interval_s"]
    if interval_s is None:
        interval = "not known yet"
    elif fixed_s is None:
        interval = f"about every {span_words(interval_s)}, as the tokens allow"
    else:
        interval = f"every {span_words(interval_s)}, as its file sets"
    now: datetime = row["keepa_now"]
    if row["pages_claimed"]:
        return interval, "being read now"
    if row["pages_ready"]:
        wait = "" if not row["error"] else f"; last try: {row['error']}"
        return interval, f"a page waits for tokens or a free fetcher{wait}"
    if row["last_scan"] is None:
        return interval, "never read: it waits for a fetcher"
    if interval_s is None:
        return interval, "when its interval has passed"
    left_s = (row["last_scan"] + timedelta(seconds=interval_s) - now).total_seconds()
    if left_s > 0:
        return interval, f"in {span_words(left_s)}, when its interval has passed"
    return interval, f"due for {span_words(-left_s)}: it waits for a fetcher or for tokens"
