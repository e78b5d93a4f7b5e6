"""Metrics and health: read by scrapers and viewers; probes are open."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from protos.process.addresses import Listen
from protos.process.identities import IdentityFile, Role
from protos.process.scrape_token import scrape_token
from protos.process.settings import ScrapeSettings
from protos.process.watched_files import Followed
from protos.web.door import Door
from protos.web.guard import Guard
from protos.web.prometheus import metrics_application
from protos.web.serving import serving

TOKEN, VIEWERS = "scraper-4711", "anna-0815"
ELSEWHERE = Listen("0.0.0.0", 9464)
LOOPBACK = Listen("127.0.0.1", 9464)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What a test opens."""
    async with AsyncExitStack() as opened:
        yield opened


async def statuses(stack: AsyncExitStack, guard: Guard, *tokens: str | None) -> list[int]:
    """The status of /metrics for each token, None for no header; then that of /livez."""
    routes = metrics_application(CollectorRegistry(), guard)
    listen = await stack.enter_async_context(
        serving(routes, Listen("127.0.0.1", 0), setting="X", name="test")
    )
    http = await stack.enter_async_context(aiohttp.ClientSession(f"http://{listen}"))
    found = []
    for token in tokens:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with http.get("/metrics", headers=headers) as reply:
            found.append(reply.status)
    async with http.get("/livez") as reply:
        found.append(reply.status)
    return found


def token(folder: Path) -> Followed[str] | None:
    """The token as the settings name it."""
    path = folder / "token"
    path.write_text(f"{TOKEN}\n")
    return scrape_token(ScrapeSettings(metrics_token_file=path))


def door(folder: Path | None = None, open_role: Role | None = None) -> Door:
    """The door of a page; with a folder, of one identity that may view."""
    identities = None
    if folder is not None:
        path = folder / "identities.toml"
        digest = sha256(VIEWERS.encode()).hexdigest()
        path.write_text(f'[anna]\nrole = "viewer"\ntoken_sha256 = ["{digest}"]\n')
        identities = Followed([path], lambda: IdentityFile.read("X", path)).now
    return Door("t", identities=identities, setting="X", open_role=open_role, secret=b"t")


async def test_a_scraper_brings_its_token(stack: AsyncExitStack, tmp_path: Path) -> None:
    """No token, a wrong one, the right one, a huge one; on loopback too."""
    guard = Guard(token(tmp_path), LOOPBACK, is_open=False)
    tokens = (None, "wrong", TOKEN, "x" * 8_000, "ü", "")

    assert await statuses(stack, guard, *tokens) == [401, 401, 200, 401, 401, 401, 200]


async def test_a_replaced_token_counts_at_once(stack: AsyncExitStack, tmp_path: Path) -> None:
    """The file is followed; one that is emptied changes nothing."""
    guard = Guard(token(tmp_path), ELSEWHERE, is_open=False)
    (tmp_path / "token").write_text("another-token")

    assert await statuses(stack, guard, TOKEN, "another-token") == [401, 200, 200]
    (tmp_path / "token").write_text("")
    assert await statuses(stack, guard, "", "another-token") == [401, 200, 200]


async def test_viewers_read_what_the_page_shows(stack: AsyncExitStack, tmp_path: Path) -> None:
    """With identities their tokens count, and the scraper's beside them."""
    guard = Guard(token(tmp_path), ELSEWHERE, door(tmp_path), is_open=False)
    only = Guard(None, ELSEWHERE, door(tmp_path), is_open=False)

    assert await statuses(stack, guard, None, VIEWERS, TOKEN) == [401, 200, 200, 200]
    assert await statuses(stack, only, None, VIEWERS, TOKEN) == [401, 200, 401, 200]


@pytest.mark.parametrize(
    ("listen", "is_open", "page", "expected"),
    [
        (LOOPBACK, False, None, 200),
        (ELSEWHERE, False, None, 403),
        (ELSEWHERE, True, None, 200),
        (ELSEWHERE, False, door(), 403),
        (ELSEWHERE, True, door(), 200),
        (ELSEWHERE, False, door(open_role=Role.VIEWER), 200),
        (LOOPBACK, False, door(open_role=Role.OPERATOR), 200),
    ],
)
async def test_without_credentials_loopback_is_open(
    listen: Listen, is_open: bool, page: Door | None, expected: int,  # noqa: FBT001 - a case
    stack: AsyncExitStack, tmp_path: Path,
) -> None:  # fmt: skip
    """Elsewhere an operator opens the port, or the page on it."""
    guard = Guard(None, listen, page, is_open=is_open)

    assert await statuses(stack, guard, None) == [expected, 200]
