"""What every page of the console needs: the database, the door, the templates."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from aiohttp import web

from fetcher.commands.look import value_of
from fetcher.errors import DatabaseError
from fetcher.postgres import Database
from fetcher.postgres.database import Connection, bound_reading
from fetcher.queries.conditions import limit_words
from fetcher.query_folder import QueryFolder
from fetcher.replies.units import (
    DATE_RANGES,
    DOMAINS,
    PRICE_TYPES,
    money_words,
    span_words,
    value_words,
)
from protos.web.door import Door, Handler
from protos.web.pages import IMAGES, Pages

TEMPLATES: Final = Path(__file__).parent / "templates"
# No page may hold the database for longer.
STATEMENT_TIMEOUT_MS: Final = 10_000
IMAGE_NAME: Final = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-_.%"
)
LINKS: Final = {
    "/": "Deals",
    "/rejections": "Rejections",
    "/queries": "Queries",
    "/fleet": "Fleet",
    "/dead": "Dead pages",
    "/marks": "Marks",
}

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ConsoleContext:
    """One console.

    Args:
        reading: The database for pages; its role need not be able to write.
        writing: The database for marks and requeueing; None if there is none.
        folder: The query files.
        door: Lets callers in.
        images: Whether pages show Amazon's images.
        silent_s: Longest silence of a fetcher that counts as alive, in seconds.
    """

    reading: Database
    writing: Database | None
    folder: QueryFolder
    door: Door
    images: bool
    silent_s: float
    pages: Pages

    async def read(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> T:
        """Runs *function* in a transaction that can't write.

        Raises:
            DatabaseError: Postgres can't be reached, or refuses.
        """

        def run() -> T:
            with self.reading.connection() as connection:
                bound_reading(connection, timeout_ms=STATEMENT_TIMEOUT_MS)
                return function(connection, *arguments, **options)

        return await asyncio.to_thread(run)

    async def write(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> T:
        """Runs *function* in a transaction.

        Raises:
            DatabaseError: Postgres can't be reached, or refuses.
        """
        assert self.writing is not None
        database = self.writing

        def run() -> T:
            with database.connection() as connection:
                return function(connection, *arguments, **options)

        return await asyncio.to_thread(run)

    def viewing(self, handler: Handler) -> Handler:
        """Wraps the handler of a page: callers are let in, a database away is a page."""
        return self.door.viewing(self._explaining(handler))

    def acting(self, handler: Handler) -> Handler:
        """Wraps the handler of a form: operators only."""

        async def needs_a_database(request: web.Request) -> web.StreamResponse:
            if self.writing is None:
                text = "this console only reads: set DATABASE_URL to a role that may write\n"
                return web.Response(status=HTTPStatus.FORBIDDEN, text=text)
            return await handler(request)

        return self.door.acting(self._explaining(needs_a_database))

    def _explaining(self, handler: Handler) -> Handler:
        async def explained(request: web.Request) -> web.StreamResponse:
            try:
                return await handler(request)
            except DatabaseError as exc:
                return self.pages.page(
                    request,
                    "trouble.html",
                    status=HTTPStatus.SERVICE_UNAVAILABLE,
                    problem=str(exc),
                )

        return explained


def console_pages() -> Pages:
    """Returns the templates, with the words for values."""
    pages = Pages(TEMPLATES, console="Keepa deals", links=LINKS)
    for function in (amount, age, site, price_kind, picture, rule_words, when, grid_value):
        pages.filter(function.__name__, function)
    return pages


def amount(minor: int | None, domain_id: int) -> str:
    """An amount of money with its currency."""
    return "unknown" if minor is None else money_words(minor, domain_id)


def age(time: datetime | None, now: datetime | None = None) -> str:
    """How long ago *time* was."""
    if time is None:
        return "never"
    return span_words(((now or datetime.now(UTC)) - time).total_seconds())


def when(time: datetime | None) -> str:
    """A time in UTC, to the minute."""
    return "never" if time is None else f"{time.astimezone(UTC):%d %b %Y %H:%M} UTC"


def site(domain_id: int) -> str:
    """The host name of a site."""
    return DOMAINS.get(domain_id, str(domain_id))


def price_kind(price_type: int) -> str:
    """A price type in words: "buy box shipping"."""
    return PRICE_TYPES[price_type].replace("_", " ").lower()


def grid_value(row: dict[str, Any]) -> str:
    """The value of a deal, such as a price with its currency."""
    return value_of(row) or "none"


def range_words(index: int | None) -> str:
    """The period of a drop."""
    return DATE_RANGES[index] if index is not None and index < len(DATE_RANGES) else ""


def picture(name: str | None) -> str | None:
    """The address of a product's image; None unless *name* is one of Amazon's."""
    if not name or len(name) > 100 or not set(name) <= IMAGE_NAME:  # noqa: PLR2004 - real ones have 16
        return None
    stem, _, kind = name.rpartition(".")
    return f"{IMAGES}/images/I/{stem}._SL160_.{kind}" if stem and kind.isalpha() else None


def rule_words(failure: dict[str, Any], domain_id: int) -> str:
    """A rule that stands against a deal, with its numbers."""
    rule = failure["rule"]
    limit = limit_words(rule, failure["limit"], domain_id)
    if failure["outcome"] == "unknown":
        return f"{rule} is unknown, wanted {limit}"
    return f"{rule} is {limit_words(rule, failure['value'], domain_id)}, wanted {limit}"


def words_of_value(value: int | None, price_type: int, domain_id: int) -> str:
    """A value of a price type, for sentences about charts."""
    if value is None:
        return "no offer"
    return value_words(value, price_type=price_type, domain_id=domain_id)
