"""Deals over HTTP: pages of JSON with a cursor and an ETag, downloads, and their description.

    GET /api/deals                  {"deals": […], "next": cursor or null}
    GET /api/deals.csv              the same deals as a file; also .xlsx, .jsonl, .parquet
    GET /api/openapi.json           OpenAPI 3.1

Filters and sorts are those of `filters`. The application that mounts the handlers decides
which callers may use them.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Final

from aiohttp import web

from fetcher.deals.export import MEDIA_TYPES, as_json, write_deals_file
from fetcher.deals.filters import (
    FIELDS,
    SORTS,
    Cursor,
    DealFilter,
    FilterError,
    Sort,
    read_filter,
    read_sort,
)
from fetcher.deals.formats import ExportFormat
from fetcher.errors import DatabaseAwayError
from fetcher.postgres import Database
from fetcher.postgres.deal_rows import (
    COLUMNS,
    PAGE_ROWS_MAX,
    DealRows,
    TextRows,
    read_deal_rows,
    stream_deal_rows,
)

PAGE_ROWS: Final = 100
# Each holds a connection for as long as its reader reads.
DOWNLOADS_MAX: Final = 2
STALLED_S: Final = 60.0
OWN_NAMES: Final = ("cursor", "limit", "sort")


@dataclass(frozen=True, slots=True)
class Asked:
    """What an address asks for."""

    wanted: DealFilter
    sort: Sort
    after: Cursor | None
    limit: int


def deal_routes(database: Database) -> list[web.RouteDef]:
    """Returns the routes; *database* lends a connection per request."""
    downloads = asyncio.Semaphore(DOWNLOADS_MAX)
    return [
        web.get("/api/deals", partial(_page, database)),
        web.get(r"/api/deals.{kind:csv|xlsx|jsonl|parquet}", partial(_file, database, downloads)),
        web.get("/api/openapi.json", _description),
    ]


def read_query(values: Mapping[str, str]) -> Asked:
    """Reads the parameters of an address.

    Raises:
        FilterError: One of them is unknown or unreadable.
    """
    own = {name: values.get(name, "").strip() for name in OWN_NAMES}
    wanted = read_filter({name: text for name, text in values.items() if name not in own})
    sort = read_sort(own["sort"])
    limit = own["limit"] or str(PAGE_ROWS)
    if not limit.isdecimal() or not 1 <= int(limit[:9]) <= PAGE_ROWS_MAX:
        raise FilterError("limit", f"write a number from 1 to {PAGE_ROWS_MAX}")
    after = Cursor.parse(own["cursor"], sort=sort) if own["cursor"] else None
    return Asked(wanted, sort, after, int(limit))


async def _page(database: Database, request: web.Request) -> web.Response:
    try:
        asked = read_query(_once_each(request))
        page = await asyncio.to_thread(_read, database, asked)
    except (FilterError, DatabaseAwayError) as exc:
        return _problem(exc)
    answer = {
        "deals": [as_json(row) for row in page.rows],
        "next": None if page.next is None else str(page.next),
    }
    body = json.dumps(answer, separators=(",", ":")).encode()
    tag = hashlib.sha256(body).hexdigest()[:32]
    headers = {"ETag": f'"{tag}"', "Cache-Control": "private, no-cache"}
    if any(given.value in {tag, "*"} for given in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, content_type="application/json", headers=headers)


def _read(database: Database, asked: Asked) -> DealRows:
    with database.connection() as connection:
        return read_deal_rows(
            connection, asked.wanted, sort=asked.sort, after=asked.after, limit=asked.limit
        )


async def _file(
    database: Database, downloads: asyncio.Semaphore, request: web.Request
) -> web.StreamResponse:
    kind = ExportFormat(request.match_info["kind"])
    try:
        asked = read_query(_once_each(request))
    except FilterError as exc:
        return _problem(exc)
    if downloads.locked():
        return web.json_response(
            {"error": {"reason": "other downloads are running; try again"}},
            status=503,
            headers={"Retry-After": "10"},
        )
    async with downloads:
        response = web.StreamResponse(
            headers={
                "Content-Type": MEDIA_TYPES[kind],
                "Content-Disposition": f'attachment; filename="deals.{kind}"',
                "Cache-Control": "private, no-store",
            }
        )
        writer = _ResponseWriter(request, response)
        try:
            await asyncio.to_thread(_write, database, asked, kind, writer)
        except (FilterError, DatabaseAwayError, ModuleNotFoundError) as exc:
            if response.prepared:
                raise
            return _problem(exc)
        if not response.prepared:
            # JSON lines without a row have no byte.
            await response.prepare(request)
        await response.write_eof()
        return response


def _write(
    database: Database, asked: Asked, kind: ExportFormat, writer: "_ResponseWriter"
) -> None:
    with (
        database.connection() as connection,
        stream_deal_rows(connection, asked.wanted, sort=asked.sort, after=asked.after) as parts,
    ):
        # The first part decides whether there is an answer or an error.
        first = next(parts, TextRows([], None))
        write_deals_file(chain([first], parts), kind, writer)


class _ResponseWriter:
    """Lets a thread write a response: each write waits until the reader has room for it."""

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        self._request, self._response = request, response
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes, /) -> None:
        """Writes some bytes, and the head before the first.

        Raises:
            OSError: The reader is gone, or has taken nothing for a minute.
        """
        if data:
            future = asyncio.run_coroutine_threadsafe(self._write(data), self._loop)
            try:
                future.result(STALLED_S)
            except TimeoutError:
                future.cancel()
                raise

    async def _write(self, data: bytes) -> None:
        if not self._response.prepared:
            await self._response.prepare(self._request)
        await self._response.write(data)


def _once_each(request: web.Request) -> dict[str, str]:
    for name in request.query:
        if len(request.query.getall(name)) > 1:
            raise FilterError(name, "given more than once")
    return dict(request.query)


def _problem(exc: Exception) -> web.Response:
    if isinstance(exc, FilterError):
        return web.json_response({"error": {"name": exc.name, "reason": exc.reason}}, status=400)
    if isinstance(exc, ModuleNotFoundError):
        reason = f"this format needs {exc.name} on the server"
        return web.json_response({"error": {"reason": reason}}, status=501)
    return web.json_response({"error": {"reason": "Postgres is away; try again"}}, status=503)


async def _description(_request: web.Request) -> web.Response:
    return web.json_response(openapi())


def openapi() -> dict[str, Any]:
    """Returns the description of the API, as OpenAPI 3.1."""
    common, limit = _parameters()
    page = {
        "type": "object",
        "required": ["deals", "next"],
        "properties": {
            "deals": {"type": "array", "items": {"$ref": "#/components/schemas/Deal"}},
            "next": {"type": ["string", "null"]},
        },
    }
    wrong: dict[str, Any] = {
        "400": {"description": "A parameter is unknown or unreadable; the body names it."}
    }
    files: dict[str, Any] = {
        f"/api/deals.{kind}": {
            "get": {
                "summary": f"All deals of a filter as {kind}",
                "parameters": common,
                "responses": {
                    "200": {"description": "The file.", "content": {media.partition(";")[0]: {}}},
                    **wrong,
                },
            }
        }
        for kind, media in MEDIA_TYPES.items()
    }
    listing: dict[str, Any] = {
        "summary": "A page of deals",
        "parameters": [*common, limit],
        "responses": {
            "200": {
                "description": "The page, with an ETag.",
                "content": {"application/json": {"schema": page}},
            },
            "304": {"description": "The page is the one that If-None-Match names."},
            **wrong,
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Deals", "version": "1"},
        "paths": {"/api/deals": {"get": listing}, **files},
        "components": {"schemas": {"Deal": _deal_schema()}},
    }


def _parameters() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns the parameters of all lists, and the one of pages only."""
    filters: list[dict[str, Any]] = [
        {
            "name": field.name,
            "in": "query",
            "description": field.meaning,
            "schema": {"type": "integer" if field.kind == "whole" else "string"},
        }
        for field in FIELDS
    ]
    order = {
        "name": "sort",
        "in": "query",
        "description": "; ".join(f"{name}: {words}" for name, words in SORTS.items()),
        "schema": {"type": "string", "enum": list(SORTS), "default": "created"},
    }
    cursor = {
        "name": "cursor",
        "in": "query",
        "description": "the place to go on from: `next` of the page before",
        "schema": {"type": "string"},
    }
    limit = {
        "name": "limit",
        "in": "query",
        "schema": {
            "type": "integer",
            "minimum": 1,
            "maximum": PAGE_ROWS_MAX,
            "default": PAGE_ROWS,
        },
    }
    return [*filters, order, cursor], limit


def _deal_schema() -> dict[str, Any]:
    kinds: dict[str, Any] = {key: {"type": ["integer", "null"]} for key in COLUMNS}
    text = {"type": ["string", "null"]}
    kinds |= dict.fromkeys(("query", "state", "asin", "title", "currency"), text)
    times = ("creation_time", "reply_time", "first_seen", "judged_at")
    kinds |= {key: {"type": ["string", "null"], "format": "date-time"} for key in times}
    kinds["failed_rules"] = {"type": "array", "items": {"type": "string"}}
    return {
        "type": "object",
        "description": "A deal as one query sees it; amounts in minor units of the currency.",
        "properties": kinds,
    }
