"""Every page of the console as served: structure, names, hostile texts, forms, access."""

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest

from deploy.local.postgres import PostgresServer
from protos.process.addresses import Listen
from protos.web.serving import serving
from tests.fetcher.console.html import Element, parse
from tests.fetcher.console.world import HOSTILE, asin, console_over, fill

PAGES = ("/", "/?state=", f"/deal/1/{asin(0)}", f"/deal/1/{asin(9)}", "/marks", "/rejections",
         "/rejections?since=", "/queries", "/fleet", "/dead")  # fmt: skip
TOKENS = {"anna": "token-of-anna-123456", "victor": "token-of-victor-123456"}
STORY = f"/deal/1/{asin(9)}"


@dataclass
class Site:
    """A console and a browser without scripts."""

    session: aiohttp.ClientSession
    address: str
    database_url: str

    async def get(self, path: str, status: int = 200, **options: Any) -> Element:
        """A page as elements."""
        async with self.session.get(path, **options) as reply:
            text = await reply.text()
            assert reply.status == status, text[:300]
        return parse(text)

    async def post(
        self, path: str, page: Element | None, **values: str
    ) -> tuple[int, str, aiohttp.ClientResponse]:
        """Sends a form of *page*, with its token."""
        if page is not None:
            values["form_token"] = page.find("input", name_="form_token")[0].attributes["value"]
        async with self.session.post(path, data=values, allow_redirects=False) as reply:
            return reply.status, await reply.text(), reply


@pytest.fixture(scope="module")
def filled(
    postgres_server: PostgresServer,
    migrated_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:
    """A database with deals, and its folder of queries."""
    queries = tmp_path_factory.mktemp("queries")
    url = postgres_server.create_database("console_pages", template=migrated_template)
    fill(url, queries)
    return url, queries


@pytest.fixture(scope="module")
async def site(filled: tuple[str, Path]) -> AsyncIterator[Site]:
    """An open console."""
    async with AsyncExitStack() as stack:
        yield await _site(stack, filled)


@pytest.fixture
async def guarded(filled: tuple[str, Path], tmp_path: Path) -> AsyncIterator[Site]:
    """A console with identities: anna is an operator, victor a viewer."""
    entries = [
        f'[{name}]\nrole = "{role}"\ntoken_sha256 = ["{digest(TOKENS[name])}"]\n'
        for name, role in (("anna", "operator"), ("victor", "viewer"))
    ]
    path = tmp_path / "identities.toml"
    path.write_text("\n".join(entries))
    async with AsyncExitStack() as stack:
        yield await _site(stack, filled, identities=path, open_role=None)


async def _site(stack: AsyncExitStack, filled: tuple[str, Path], **options: Any) -> Site:
    routes = stack.enter_context(console_over(*filled, **options))
    listen = await stack.enter_async_context(
        serving(routes, Listen("127.0.0.1", 0), setting="TEST", name="dealfetcher")
    )
    jar = aiohttp.CookieJar(unsafe=True)
    session = aiohttp.ClientSession(f"http://{listen}", cookie_jar=jar)
    return Site(await stack.enter_async_context(session), str(listen), filled[0])


def digest(token: str) -> str:
    """As the file of identities holds it."""
    return hashlib.sha256(token.encode()).hexdigest()


def titles(page: Element) -> list[str]:
    """The titles in the grid."""
    return [heading.text for heading in page.all("h3")]


async def sign_in(site: Site, name: str, target: str = "/") -> tuple[int, str]:
    """Fills in the form of the sign-in; returns the status, and where it leads."""
    page = await site.get(f"/sign-in?next={target}")
    status, _, reply = await site.post("/sign-in", page, token=TOKENS[name], next=target)
    return status, reply.headers.get("Location", "")


@pytest.mark.parametrize("path", PAGES)
async def test_pages_are_accessible(site: Site, path: str) -> None:
    """Language, title, landmarks, one heading of level 1, names for all controls and tables."""
    page = await site.get(path)
    ids = [each.attributes["id"] for each in page.all() if "id" in each.attributes]
    levels = [int(each.name[1]) for each in page.all("h1", "h2", "h3", "h4")]
    labelled = {each for label in page.all("label") for each in map(id, label.all())}
    for_ids = {label.attributes.get("for") for label in page.all("label")}
    nameless = [
        control.attributes
        for control in page.all("input", "select", "textarea")
        if control.attributes.get("type") != "hidden"
        and id(control) not in labelled
        and control.attributes.get("id") not in for_ids
        and not control.attributes.get("aria-label")
    ]
    mute = [
        each.attributes
        for each in page.all("a", "button")
        if not each.text and not each.attributes.get("aria-label")
    ]

    assert page.one("html").attributes["lang"] == "en"
    assert page.one("head").one("title").text
    assert len(page.all("main")) == len(page.all("h1")) == 1
    assert all(nav.attributes.get("aria-label") for nav in page.all("nav"))
    assert page.all("a")[0].attributes["href"] == "#main"
    assert len(ids) == len(set(ids))
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert nameless == mute == []
    assert all("alt" in image.attributes for image in page.all("img"))
    assert all(th.attributes.get("scope") for th in page.all("th"))
    assert all(
        svg.attributes.get("aria-hidden") == "true" or svg.all("title") for svg in page.all("svg")
    )
    references = {
        each.attributes[name]
        for each in page.all()
        for name in ("aria-labelledby", "aria-describedby")
        if name in each.attributes
    }
    assert references <= set(ids)


@pytest.mark.parametrize("path", PAGES)
async def test_nothing_is_inline_or_from_outside(site: Site, path: str) -> None:
    """The policy forbids it, so no page may need it."""
    async with site.session.get(path) as reply:
        policy = reply.headers["Content-Security-Policy"]
        page = parse(await reply.text())
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Server"] == "dealfetcher"
    loaded = [
        each.attributes.get("src") or each.attributes.get("href", "")
        for each in page.all("script", "link", "img")
    ]

    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert all(address.startswith("/assets/") for address in loaded)
    assert all("style" not in each.attributes for each in page.all())
    assert not [name for each in page.all() for name in each.attributes if name.startswith("on")]
    assert all(not script.text for script in page.all("script"))


@pytest.mark.parametrize(
    "path", ["/?state=", *(f"/deal/1/{asin(n)}" for n in range(4)), "/fleet", "/dead"]
)
async def test_hostile_texts_stay_text(site: Site, path: str) -> None:
    """Markup is shown as it is, hidden characters as codes, and templates in it do nothing."""
    async with site.session.get(path) as reply:
        text = await reply.text()
    page = parse(text)

    assert len(page.all("script")) == 1
    assert not page.all("img", "b")
    assert [each for each in page.all("svg") if each.attributes.get("onload")] == []
    assert not set("\x1b\x07\u202e\u2066\u2069\u200b") & set(text)
    assert len(text) < 300_000


async def test_the_hostile_titles_are_there(site: Site) -> None:
    """What is made harmless is still shown."""
    shown = " ".join(titles(await site.get("/?state=&title=exe")))

    assert "\\u202e" in shown
    assert "{{ 7 * 7 }}" in shown


async def test_the_grid_shows_what_its_address_asks(site: Site) -> None:
    """Filters, order and places are in the address; pages follow each other without a gap."""
    page = await site.get("/?state=accepted&sort=price")
    seen: list[str] = []
    while True:
        seen += titles(page)
        following = page.find("a", rel="next")
        if not following:
            break
        page = await site.get(following[0].attributes["href"])
    cheap = await site.get("/?state=&price_max=1300&title=book&sort=price")
    ruled = await site.get("/?state=rejected&rule=price&drop_percent_min=40")
    none = await site.get("/?state=&used_offers_min=5")

    # 3,000 is the limit of the rule: 1000 + 30 n at the second page served.
    assert len(seen) == len(set(seen)) == 67
    assert seen[10] == "Book number 10"
    assert titles(cheap) == [f"Book number {n}" for n in range(4, 11)]
    assert len(titles(ruled)) == 48
    assert "(estimated), " in ruled.one("p", role="status").text
    assert titles(none) == []
    assert "0 deals" in none.one("p", role="status").text


@pytest.mark.parametrize(
    "query",
    ["price_min=x", "nonsense=1", "state=odd", "sort=odd", "cursor=%00", "title=%00", "rule=%1b",
     "used_offers_min=99999999999999", "domain=99999999999999999999", "cursor=WzEyXQ",
     "created_within=" + "9" * 30, "price_type=999999"],
)  # fmt: skip
async def test_a_wrong_address_is_a_message(site: Site, query: str) -> None:
    """It names the filter; it never widens the list, and never is an error of the server."""
    async with site.session.get(f"/?state=&{query}") as reply:
        page = parse(await reply.text())

    assert reply.status in {200, 400}
    assert reply.status == 200 or page.one("p", role="alert").text
    assert len(titles(page)) == 0


async def test_a_story_has_history_rules_and_readers(site: Site) -> None:
    """The chart has a summary in words; each failed rule has its numbers."""
    story = await site.get(f"/deal/1/{asin(100)}")
    chart = story.one("svg", role="img")

    assert "used: 40.00 USD to 43.00 USD" in chart.one("desc").text
    assert "amazon: 45.00 USD to 48.00 USD" in story.all("figcaption")[0].text
    assert "price is 40.00 USD, wanted <= 30.00 USD" in story.text
    assert "used" in story.one("section", aria_labelledby="readers").text
    assert (await site.get("/deal/1/B999999999", 404)).one("p", role="alert")
    assert (await site.get("/deal/99/B000000001", 404)).one("p", role="alert")


async def test_a_mark_takes_the_deal_out_of_the_grid(site: Site) -> None:
    """And the list of marks holds it, until the mark is taken off."""
    story = await site.get(STORY)
    status, _, reply = await site.post(f"{STORY}/mark", story, mark="ignored", back="/marks")
    grid = await site.get("/?state=&title=number+9")
    marks = await site.get("/marks")
    await site.post(f"{STORY}/mark", marks, mark="none")
    back = await site.get("/?state=&title=number+9")

    assert (status, reply.headers["Location"]) == (303, "/marks")
    assert "Book number 9" not in titles(grid)
    assert "Book number 9" in marks.text
    assert "ignored" in marks.one("tbody").text
    assert "Book number 9" in titles(back)


@pytest.mark.parametrize(
    "address",
    [
        "/?state=rejected&rule=price&sort=price",
        "/?state=&title=book+number+7&new_offers_min=0",
        "/?state=accepted&price_max=1500&drop_percent_min=40",
    ],
)
async def test_the_export_holds_what_the_page_shows(site: Site, address: str) -> None:
    """The links beside the grid have its filter and order, in every format."""
    grid = await site.get(address)
    links = {
        each.text: each.attributes["href"]
        for each in grid.all("a")
        if "/api/deals" in each.attributes["href"]
    }
    async with site.session.get(links["JSON lines"]) as reply:
        exported = [json.loads(line)["asin"] for line in (await reply.text()).splitlines()]
    shown = [heading.one("a").attributes["href"].rpartition("/")[2] for heading in grid.all("h3")]

    assert links.keys() == {"CSV", "Excel", "JSON lines", "Parquet", "JSON"}
    assert exported[: len(shown)] == shown
    assert len(exported) == len(shown) or len(shown) == 48


@pytest.mark.parametrize(
    "back", ["//evil.example", "https://evil.example", "/\\evil", "", "/\x1b"]
)
async def test_a_form_leads_to_no_other_site(site: Site, back: str) -> None:
    """The address to return to must be a path of this console."""
    story = await site.get(STORY)
    _, _, reply = await site.post(f"{STORY}/mark", story, mark="none", back=back)

    assert reply.headers["Location"] == STORY


async def test_another_site_can_send_no_form(site: Site) -> None:
    """Without the token of the page, from another origin, or under another name: refused."""
    story = await site.get(STORY)
    without, _, _ = await site.post(f"{STORY}/mark", None, mark="ignored")
    token = story.find("input", name_="form_token")[0].attributes["value"]
    statuses = []
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example"},
    ):
        async with site.session.post(
            f"{STORY}/mark", data={"mark": "ignored", "form_token": token}, headers=headers
        ) as reply:
            statuses.append(reply.status)
    async with site.session.get("/", headers={"Host": "evil.example"}) as reply:
        rebound = reply.status

    assert (without, statuses, rebound) == (403, [403] * 4, 403)


async def test_dead_pages_are_requeued(site: Site) -> None:
    """The list names the error; a page that no newer scan has read is tried again."""
    page = await site.get("/dead")
    status, _, reply = await site.post("/dead/requeue", page, scan="")
    after = await site.get(reply.headers["Location"])

    assert "Keepa answered" in page.one("tbody").text
    assert status == 303
    assert "1 pages requeued" in after.one("p", role="status").text
    with psycopg.connect(site.database_url) as connection:
        state = connection.execute("SELECT state FROM scan_pages").fetchall()
        connection.execute("UPDATE scan_pages SET state = 'dead'")
        connection.execute("UPDATE scans SET state = 'abandoned'")
    assert state == [("ready",)]


async def test_the_work_has_its_pages(site: Site) -> None:
    """Rejections by rule, queries with what they wait for, the fleet."""
    rejections = await site.get("/rejections?since=")
    queries = await site.get("/queries")
    fleet = await site.get("/fleet")

    assert "67 accepted" in rejections.text
    assert rejections.one("tbody").text.startswith("price 53 100 %")
    assert "Next scan" in queries.text
    assert "reading page 3" in fleet.text


async def test_the_fleet_is_live(site: Site) -> None:
    """Server-sent events hold the parts of the page."""
    async with site.session.get("/fleet/live") as reply:
        first = await reply.content.readuntil(b"\n\n")

    assert reply.headers["Content-Type"].startswith("text/event-stream")
    assert first.startswith(b'event: parts\ndata: <div id="fleet">')


async def test_a_stranger_is_led_to_the_form(guarded: Site) -> None:
    """A browser gets the form and comes back; a program gets a refusal; assets are open."""
    html = {"Accept": "text/html"}
    async with guarded.session.get(STORY, headers=html, allow_redirects=False) as reply:
        led = reply.headers["Location"]
    async with guarded.session.get("/", allow_redirects=False) as reply:
        refused = reply.status
    wrong_page = await guarded.get("/sign-in")
    wrong, _, _ = await guarded.post("/sign-in", wrong_page, token="wrong", next="/")
    status, location = await sign_in(guarded, "anna", STORY)
    story = await guarded.get(STORY)

    assert led == f"/sign-in?next={STORY}"
    assert (refused, wrong) == (401, 403)
    assert (status, location) == (303, STORY)
    assert "anna (operator)" in story.text
    assert TOKENS["anna"] not in str(list(guarded.session.cookie_jar))


@pytest.mark.parametrize(
    "path",
    ["/", "/marks", "/rejections", "/queries", "/fleet", "/fleet/live", "/dead", STORY,
     "/api/deals", "/api/deals.csv", "/api/openapi.json"],
)  # fmt: skip
async def test_nothing_is_shown_to_strangers(guarded: Site, path: str) -> None:
    """Every page, stream and download is behind the door."""
    async with guarded.session.get(path, allow_redirects=False) as reply:
        stranger = reply.status
    headers = {"Authorization": f"Bearer {TOKENS['victor']}"}
    async with guarded.session.get(path, headers=headers) as reply:
        viewer = reply.status

    assert (stranger, viewer) == (401, 200)


async def test_the_cookie_is_for_this_console_only(guarded: Site) -> None:
    """HttpOnly and SameSite; a forged or expired one is nothing."""
    await sign_in(guarded, "anna")
    [cookie] = list(guarded.session.cookie_jar)
    statuses = []
    for value in (cookie.value[:-1], f"9{cookie.value}", "..", "a.b.c.d", ""):
        async with (
            aiohttp.ClientSession() as other,
            other.get(f"http://{guarded.address}/", cookies={"dealfetcher": value}) as reply,
        ):
            statuses.append(reply.status)

    assert cookie["httponly"]
    assert cookie["samesite"] == "Lax"
    assert statuses == [401] * 5


async def test_viewers_only_look(guarded: Site) -> None:
    """A viewer sees no buttons, and a form of its own making is refused."""
    await sign_in(guarded, "victor")
    story = await guarded.get(STORY)
    status, text, _ = await guarded.post(f"{STORY}/mark", story, mark="ignored")

    assert not [button for button in story.all("button") if button.text != "Sign out"]
    assert status == 403
    assert "needs operator" in text


async def test_programs_sign_in_by_header(guarded: Site) -> None:
    """A bearer token needs no cookie and no form token."""
    statuses = []
    for name in ("anna", "victor"):
        headers = {"Authorization": f"Bearer {TOKENS[name]}"}
        async with guarded.session.post(
            f"{STORY}/mark", data={"mark": "none"}, headers=headers, allow_redirects=False
        ) as reply:
            statuses.append(reply.status)
    async with guarded.session.get("/", headers={"Authorization": "Basic x"}) as reply:
        statuses.append(reply.status)

    assert statuses == [303, 403, 401]


async def test_signing_out_ends_the_session(guarded: Site) -> None:
    """The form of one session is no form of another."""
    await sign_in(guarded, "anna")
    page = await guarded.get("/")
    await sign_in(guarded, "victor")
    stale, _, _ = await guarded.post("/sign-out", page)
    status, _, _ = await guarded.post("/sign-out", await guarded.get("/"))
    async with guarded.session.get("/", allow_redirects=False) as reply:
        after = reply.status

    assert (stale, status, after) == (403, 303, 401)


async def test_beyond_loopback_it_is_closed(filled: tuple[str, Path]) -> None:
    """Without identities, and without a setting that opens it, nothing is shown."""
    async with AsyncExitStack() as stack:
        site = await _site(stack, filled, open_role=None)
        async with site.session.get("/") as reply:
            text = await reply.text()

    assert reply.status == 403
    assert "CONSOLE_IDENTITIES_FILE" in text


async def test_pages_are_read_without_the_right_to_write(filled: tuple[str, Path]) -> None:
    """A role that may only SELECT suffices for every page; forms name what is missing."""
    with psycopg.connect(filled[0], autocommit=True) as connection:
        connection.execute("CREATE ROLE reader LOGIN")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    url = filled[0].replace("postgres@", "reader@")
    async with AsyncExitStack() as stack:
        site = await _site(stack, (url, filled[1]), writes=False)
        pages = [await site.get(path) for path in PAGES]
        status, text, _ = await site.post(f"{STORY}/mark", None, mark="ignored")

    assert not [button.text for page in pages for button in page.find("button", name_="mark")]
    assert status == 403
    assert json.dumps(text)


def test_the_worst_titles_are_tried() -> None:
    """One of them is ten thousand characters long."""
    assert max(map(len, HOSTILE)) > 10_000
