"""The page of tokens at `/`, live; sync, pause and resume for operators."""

import asyncio
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import structlog
from aiohttp import web

from broker.console.series import TokenSeries
from broker.core.leases import DenialReason, LeaseState
from broker.keepa_status import KeepaSyncError
from broker.runtime import BrokerRuntime
from broker.telemetry.metrics import BrokerMetrics
from protos.web.charts import bar
from protos.web.door import CALLER, Door
from protos.web.live import LiveParts
from protos.web.pages import Pages

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

TEMPLATES: Final = Path(__file__).parent / "templates"
# Rows of a list: an operator looks at the first, and counts the rest.
ROWS_MAX: Final = 50
# A countdown moves by itself at this pace; changes come sooner, but not more often.
LIVE_EVERY_S: Final = 2.0
LIVE_S_MIN: Final = 0.5

REASONS: Final[Mapping[DenialReason, str]] = {
    DenialReason.INSUFFICIENT_TOKENS: "not enough tokens yet",
    DenialReason.TOO_LARGE: "larger than any bucket",
    DenialReason.PAUSED: "an operator has paused granting",
    DenialReason.NOT_SYNCED: "Keepa has not answered since the start",
    DenialReason.BUDGET_EXHAUSTED: "its budget is used up",
}


def reason_words(reason: DenialReason) -> str:
    """Why a request waits."""
    return REASONS.get(reason) or reason.value.replace("_", " ")


class TokensPage:
    """The handlers over one runtime."""

    def __init__(self, runtime: BrokerRuntime, metrics: BrokerMetrics, door: Door) -> None:
        self._runtime = runtime
        self._metrics = metrics
        self._door = door
        self._pages = Pages(TEMPLATES, console="Keepa tokens", links={})
        self._pages.filter("span", span)
        self._pages.filter("reason_words", reason_words)
        self._started_s = time.time()
        self.series = TokenSeries(runtime)
        self._live = LiveParts(self._parts)

    def add_to(self, routes: web.Application) -> None:
        """Adds the page, its events and its forms, behind the door."""
        viewing, acting = self._door.viewing, self._door.acting
        self._pages.add_sign_in(routes, self._door)
        routes.add_routes(
            [
                web.get("/", viewing(self.page)),
                web.get("/live", viewing(self.live)),
                web.post("/act", acting(self.act)),
            ]
        )
        routes.on_shutdown.append(self._live.close)

    async def page(self, request: web.Request) -> web.Response:
        """The page as of now."""
        parts = await self._parts(request)
        return self._pages.page(
            request, "tokens.html", parts=parts, problem=request.query.get("problem")
        )

    async def live(self, request: web.Request) -> web.StreamResponse:
        """Its parts, at changes and at every move of the countdown."""

        async def wait() -> None:
            with self._runtime.watching() as changed:
                await asyncio.sleep(LIVE_S_MIN)
                try:
                    await asyncio.wait_for(changed.wait(), LIVE_EVERY_S - LIVE_S_MIN)
                except TimeoutError:
                    return

        return await self._live.serve(request, wait)

    async def act(self, request: web.Request) -> web.Response:
        """Syncs, pauses or resumes."""
        what = str((await request.post()).get("what", ""))
        runtime, by = self._runtime, request[CALLER].name
        location = "/"
        match what:
            case "sync":
                try:
                    await runtime.sync()
                except KeepaSyncError:
                    location = "/?problem=sync"
            case "pause":
                runtime.pause()
                log.warning("granting paused", by=by, through="console")
            case "resume":
                runtime.resume()
                log.warning("granting resumed", by=by, through="console")
            case _:
                text = "what: write sync, pause or resume\n"
                return web.Response(status=HTTPStatus.BAD_REQUEST, text=text)
        return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": location})

    async def _parts(self, request: web.Request) -> str:
        runtime, now_s = self._runtime, time.time()
        view, now_ms = runtime.bucket(), runtime.now_ms()
        operations, holders = self._metrics.spent()
        values: dict[str, Any] = {
            "view": view,
            "stands_by": runtime.stands_by,
            "leader": runtime.leader,
            "caller": request[CALLER],
            "trouble": runtime.probes.trouble,
            "budgets_trouble": runtime.budgets_trouble,
            "chart": self.series.chart(now_s),
            "leases": [
                {
                    "lease": lease,
                    "age_ms": now_ms - lease.granted_ms,
                    "ttl_ms": lease.expires_ms - now_ms,
                }
                for lease in runtime.leases(ROWS_MAX)
            ],
            "open_state": LeaseState.OPEN,
            "waiting": runtime.waiting(ROWS_MAX),
            "spends": {"operation": _shares(operations), "holder": _shares(holders)},
            "totals": runtime.allocator.ledger.totals,
            "runs_for_s": now_s - self._started_s,
            "budgets": [
                (each, bar(each.used / each.limit if each.limit else 1.0)) for each in view.budgets
            ],
        }
        return self._pages.text("tokens_parts.html", **values)


def span(milliseconds: float | None) -> str:
    """A duration for people: "4.2 s", "12 min"."""
    if milliseconds is None:
        return "unknown"
    seconds = max(0.0, milliseconds / 1000)
    for unit, unit_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds // unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _shares(spent: Mapping[str, float]) -> list[tuple[str, int, Any]]:
    """The largest spenders, each with its tokens and a bar of its share."""
    total = sum(spent.values())
    rows = sorted(spent.items(), key=lambda each: -each[1])[:ROWS_MAX]
    return [(name, int(tokens), bar(tokens / total if total else 0)) for name, tokens in rows]
