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


def settings(folder: Path, *, token: bool = False, is_open: bool = False) -> ScrapeSettings:
    """Settings with or without a token."""
    path = folder / "token"
    path.write_text(f"{TOKEN}\n")
    return ScrapeSettings(metrics_token_file=path if token else None, metrics_open=is_open)


def door(folder: Path | None = None, open_role: Role | None = None) -> Door:
    """The door of a page; with a folder, of one identity that may view."""
    identities = None
    if folder is not None:
        path = folder / "identities.toml"
        digest = sha256(VIEWERS.encode()).hexdigest()
        path.write_text(f'[anna]\nrole = "viewer"\ntoken_sha256 = ["{digest}"]\n')
        identities = Followed([path], lambda: IdentityFile.read("X", path))
    return Door("t", identities=identities, setting="X", open_role=open_role, secret=b"t")


async def test_a_scraper_brings_its_token(stack: AsyncExitStack, tmp_path: Path) -> None:
    """No token, a wrong one, the right one, a huge one; on loopback too."""
    guard = Guard(settings(tmp_path, token=True), LOOPBACK)
    tokens = (None, "wrong", TOKEN, "x" * 8_000, "ü", "")

    assert await statuses(stack, guard, *tokens) == [401, 401, 200, 401, 401, 401, 200]


async def test_a_replaced_token_counts_at_once(stack: AsyncExitStack, tmp_path: Path) -> None:
    """The file is followed; one that is emptied changes nothing."""
    guard = Guard(settings(tmp_path, token=True), ELSEWHERE)
    (tmp_path / "token").write_text("another-token")

    assert await statuses(stack, guard, TOKEN, "another-token") == [401, 200, 200]
    (tmp_path / "token").write_text("")
    assert await statuses(stack, guard, "", "another-token") == [401, 200, 200]


async def test_viewers_read_what_the_page_shows(stack: AsyncExitStack, tmp_path: Path) -> None:
    """With identities their tokens count, and the scraper's beside them."""
    guard = Guard(settings(tmp_path, token=True), ELSEWHERE, door(tmp_path))
    only = Guard(settings(tmp_path), ELSEWHERE, door(tmp_path))

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
    guard = Guard(settings(tmp_path, is_open=is_open), listen, page)

    assert await statuses(stack, guard, None) == [expected, 200]
