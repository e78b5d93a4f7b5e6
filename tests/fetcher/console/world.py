"""A console over a database, in this process, and deals to show."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from aiohttp import web

from fetcher.console.application import console
from fetcher.console.context import ConsoleContext, console_pages
from fetcher.postgres import Database
from fetcher.queries.query import parse_query
from fetcher.query_folder import QueryFolder
from fetcher.work.page_commit import write_deals
from protos.process.identities import IdentityFile, Role
from protos.process.watched_files import Followed
from protos.web.door import Door
from tests.fetcher.keepa_pages import MINUTE_MS, NOON_MS, asin, query_text, reply, row

# What Keepa may serve as a title: markup, escapes of terminals and of text direction, length.
HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>\x1b]0;owned\x07',
    "\u202egnp.exe \u2066 \u200b\u2069 {{ 7 * 7 }} {% raw %}",
    "<b>" + "W" * 10_000,
)
IMAGE = "51Abcdefg+L.jpg"


@contextmanager
def console_over(
    database_url: str,
    queries: Path,
    *,
    identities: Path | None = None,
    writes: bool = True,
    open_role: Role | None = Role.OPERATOR,
    images: bool = False,
) -> Iterator[web.Application]:
    """The console of a database; images stay away, so that a browser asks nothing outside."""
    followed = None
    if identities is not None:
        followed = Followed([identities], lambda: IdentityFile.read("IDENTITIES", identities)).now
    door = Door(
        "dealfetcher",
        identities=followed,
        setting="CONSOLE_IDENTITIES_FILE",
        open_role=open_role,
        secret=b"a secret of the test",
    )
    # On a full machine, Postgres may take seconds to let a connection in.
    with Database(database_url, connections_max=4, timeout_s=60.0) as database:
        context = ConsoleContext(
            reading=database,
            writing=database if writes else None,
            folder=QueryFolder(queries),
            door=door,
            images=images,
            silent_s=30,
            pages=console_pages(),
        )
        yield console(context, secure=False)


def fill(database_url: str, queries: Path, *, deals: int = 120) -> None:
    """Makes deals of the query "used", a few with hostile titles, with rules and history."""
    text = query_text(rules={"price": {"max": 3000}})
    (queries / "used.json").write_text(text)
    query = parse_query("used", text)
    with psycopg.connect(database_url) as connection:
        for minutes, dearer in ((0, 300), (600, 0)):
            rows = [_row(number, dearer) for number in range(deals)]
            at_ms = NOON_MS + minutes * MINUTE_MS
            for deal in rows:
                deal["lastUpdate"] += minutes
                deal["currentSince"] = [since + minutes for since in deal["currentSince"]]
            with connection.transaction():
                write_deals(connection, query, reply(rows, at_ms), scan_id=None)
        connection.execute(
            "INSERT INTO workers (holder, version, doing) VALUES (%s, '1.0', 'reading page 3')",
            (f"host-1 {HOSTILE[0]}",),
        )
        scan = connection.execute(
            "INSERT INTO scans (query, selection_hash, selection, sort_type, kind, background,"
            " plan, state, end_reason, ended_at) VALUES ('used', %s, '{}', 1, 'fresh', false,"
            " '{}', 'abandoned', 'gave up', now()) RETURNING id",
            (query.selection_hash,),
        ).fetchone()
        assert scan is not None
        connection.execute(
            "INSERT INTO scan_pages (scan_id, page, state, attempts, error)"
            " VALUES (%s, 0, 'dead', 8, %s)",
            (scan[0], f"Keepa answered {HOSTILE[1]}".replace("\x07", "")),
        )


def _row(number: int, dearer: int) -> dict[str, Any]:
    price = 1000 + 30 * number + dearer
    deal = row(number, price=price, title=f"Book number {number}", image=_image())
    if number < len(HOSTILE):
        deal["title"] = HOSTILE[number]
    deal["current"][0] = price + 500
    deal["current"][16], deal["current"][17] = 40 + number % 10, number
    return json.loads(json.dumps(deal))  # type: ignore[no-any-return]  # a copy


def _image() -> list[int]:
    return [ord(letter) for letter in IMAGE]


__all__ = ["HOSTILE", "asin", "console_over", "fill"]
