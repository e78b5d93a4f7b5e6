"""Both consoles in headless Chromium: loading, live updates, filters, stories, marks, looks.

Needs a Chromium or Chrome of the machine; without one, these tests are skipped. What needs no
browser is tested in tests/fetcher/console, tests/broker/console and tests/protos/web.
"""

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import psycopg
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright, expect

from broker.console.page import TokensPage
from broker.telemetry import http
from deploy.local.ports import free_port
from deploy.local.postgres import PostgresServer
from protos.process.addresses import Listen
from protos.process.identities import Role
from protos.web.door import Door
from protos.web.serving import serving
from tests.fetcher.console.world import asin, console_over, fill
from tests.fix_service import Serve, ServedBroker
from tests.fix_simulator import RunningSimulator

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
EXECUTABLE = next((path for name in BROWSERS if (path := shutil.which(name))), None)
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DEADLINE_MS = 30_000
PAGES = ("/?state=", f"/deal/1/{asin(9)}", "/marks", "/rejections?since=", "/queries", "/fleet",
         "/dead")  # fmt: skip
AA = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]

pytestmark = [
    pytest.mark.skipif(
        EXECUTABLE is None, reason="needs Chromium or Chrome: apt-get install chromium"
    ),
    pytest.mark.slow,
]


@dataclass
class Site:
    """A console and a browser."""

    browser: Browser
    address: str
    database_url: str = ""
    problems: list[str] = field(default_factory=list)

    async def open(
        self, path: str = "/", *, scheme: str = "light", width: int = 1200, scripts: bool = True
    ) -> Page:
        """A page in a fresh window; whatever the browser complains about is a problem."""
        context = await self.browser.new_context(
            color_scheme="dark" if scheme == "dark" else "light",
            viewport={"width": width, "height": 800},
            java_script_enabled=scripts,
        )
        context.set_default_timeout(DEADLINE_MS)
        page = await context.new_page()
        page.on(
            "console",
            lambda line: self.problems.append(line.text) if line.type == "error" else None,
        )
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        await page.goto(f"{self.address}{path}")
        return page


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for all tests."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=EXECUTABLE, args=OPTIONS)
        yield browser
        await browser.close()


@pytest.fixture(scope="module")
async def deals(
    browser: Browser,
    postgres_server: PostgresServer,
    migrated_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Site]:
    """The console of deals, open."""
    queries = tmp_path_factory.mktemp("queries")
    url = postgres_server.create_database("browser", template=migrated_template)
    fill(url, queries)
    async with AsyncExitStack() as stack:
        routes = stack.enter_context(console_over(url, queries))
        listen = await stack.enter_async_context(
            serving(routes, Listen("127.0.0.1", 0), setting="TEST", name="dealfetcher")
        )
        yield Site(browser, f"http://{listen}", url)


@pytest.fixture(autouse=True)
def no_problems(request: pytest.FixtureRequest) -> None:
    """Each test begins with a clean console of the browser."""
    if "deals" in request.fixturenames:
        request.getfixturevalue("deals").problems.clear()


async def violations(page: Page) -> list[str]:
    """What axe finds on a page, at level AA."""
    results = await Axe().run(page, options={"runOnly": {"type": "tag", "values": AA}})
    return [
        f"{found['id']}: {node['html'][:200]}"
        for found in results.response["violations"]
        for node in found["nodes"]
    ]


@pytest.mark.parametrize("path", PAGES)
async def test_pages_are_accessible_and_fit(deals: Site, path: str) -> None:
    """No violation at level AA in light and dark, and nothing wider than a phone."""
    found: list[str] = []
    for scheme in ("light", "dark"):
        page = await deals.open(path, scheme=scheme, width=360)
        await page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        found += await violations(page)
        width = await page.evaluate("document.documentElement.scrollWidth")
        await page.context.close()

    assert found == []
    assert width <= 360
    assert deals.problems == []


async def test_dark_mode_follows_the_system(deals: Site) -> None:
    """The same page in other colours."""
    colours = set()
    for scheme in ("light", "dark"):
        page = await deals.open("/", scheme=scheme)
        colours.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
        await page.context.close()

    assert colours == {"rgb(255, 255, 255)", "rgb(20, 24, 29)"}


async def test_filter_sort_and_page_without_a_reload(deals: Site) -> None:
    """Changes of the form replace the results and the address; the way back works."""
    page = await deals.open("/?state=")
    await page.evaluate("window.stayed = true")
    await page.get_by_label("Search in titles").fill("number 11")
    await expect(page.get_by_role("status")).to_contain_text("deals")
    await expect(page.locator(".deals h3").first).to_contain_text("number 11")
    await expect(page.locator(".deals > li")).to_have_count(11)
    filtered = page.url
    await page.get_by_label("Search in titles").fill("")
    await page.get_by_label("Order").select_option("price")
    await expect(page.locator(".deals h3").nth(5)).to_have_text("Book number 5")
    await page.get_by_role("link", name="Next page").click()
    await expect(page.locator(".deals h3").first).to_have_text("Book number 48")
    stayed = await page.evaluate("window.stayed")
    await page.go_back()
    await expect(page.locator(".deals h3").nth(5)).to_have_text("Book number 5")
    await page.context.close()

    assert "title=number+11" in filtered
    assert stayed
    assert deals.problems == []


async def test_a_slider_and_its_number_are_one_filter(deals: Site) -> None:
    """Moved by the keyboard, the slider fills in the number; its end means any."""
    page = await deals.open("/?state=")
    await page.get_by_text("More filters").click()
    slider = page.get_by_label("Price at least, in cents, slider")
    await slider.focus()
    await slider.press("ArrowRight")
    number = await page.locator("#price_min").input_value()
    await page.wait_for_url("**price_min=500**")
    await slider.press("ArrowLeft")
    any_price = await page.locator("#price_min").input_value()
    await page.context.close()

    assert (number, any_price) == ("500", "")


async def test_it_works_without_scripts(deals: Site) -> None:
    """Form and links are enough."""
    page = await deals.open("/?state=", scripts=False)
    await page.get_by_label("Search in titles").fill("number 119")
    await page.get_by_role("button", name="Show").click()
    await page.get_by_role("link", name="Book number 119").click()
    heading = await page.locator("h1").text_content()
    await page.context.close()

    assert heading == "Book number 119"


async def test_a_mark_by_keyboard_leaves_the_grid(deals: Site) -> None:
    """The button is reached by Tab, and pressed by Enter; the list of marks takes it back."""
    page = await deals.open("/?state=&title=number+77")
    for _ in range(60):
        await page.keyboard.press("Tab")
        focused = await page.evaluate("document.activeElement.getAttribute('aria-label')")
        if focused == f"Ignore {asin(77)}":
            break
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status")).to_contain_text("0 deals")
    await page.goto(f"{deals.address}/marks")
    await page.get_by_role("button", name=f"Take the mark off {asin(77)}").click()
    await expect(page.get_by_text("No product is marked")).to_be_visible()
    await page.context.close()

    assert focused == f"Ignore {asin(77)}"
    assert deals.problems == []


async def test_hostile_titles_do_nothing(deals: Site) -> None:
    """They stay text, run nothing, load nothing, and do not break the page."""
    page = await deals.open("/?state=&sort=price", width=360)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    await page.reload()
    title = await page.title()
    shown = await page.locator(".deals h3").first.text_content()
    for number in range(4):
        await page.goto(f"{deals.address}/deal/1/{asin(number)}")
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
    await page.context.close()

    assert title == "Deals · Keepa deals"
    assert shown == "document.title='owned'"
    assert all(url.startswith(deals.address) for url in requests)
    assert deals.problems == []


async def test_the_fleet_is_live(deals: Site) -> None:
    """A report of a fetcher appears by itself."""
    page = await deals.open("/fleet")
    with psycopg.connect(deals.database_url) as connection:
        connection.execute("UPDATE workers SET doing = 'reading page 4', seen_at = now()")
    await expect(page.get_by_text("reading page 4")).to_be_visible(timeout=DEADLINE_MS)
    await page.context.close()


async def test_the_tokens_page_survives_a_restart(
    browser: Browser, slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """It is live, fits and is accessible; after a restart of the broker it goes on by itself."""
    listen = Listen("127.0.0.1", free_port())
    site = Site(browser, f"http://{listen}")
    first = await serve(slow_keepa, 41)
    async with _tokens(first, listen):
        page = await site.open("/", width=360)
        await expect(page.locator("#bucket")).to_contain_text("41")
        await expect(page.locator("#live-state")).to_have_text("live")
        found = await violations(page)
        width = await page.evaluate("document.documentElement.scrollWidth")
        await page.get_by_role("button", name="Pause granting").click()
        await expect(page.locator("#bucket")).to_contain_text("paused")
        assert site.problems == []
    second = await serve(slow_keepa, 42)
    async with _tokens(second, listen):
        await expect(page.locator("#bucket")).to_contain_text("42", timeout=DEADLINE_MS)
        await page.context.close()

    assert found == []
    assert width <= 360


@asynccontextmanager
async def _tokens(broker: ServedBroker, listen: Listen) -> AsyncIterator[None]:
    """Serves the page of *broker* while the context lasts."""
    door = Door("tokenbroker", identities=None, setting="X", open_role=Role.OPERATOR, secret=b"t")
    routes = http.application(
        broker.runtime,
        broker.metrics.registry,
        dict,
        reading=door.viewing,
        keepa_url="http://keepa",
        key_fingerprint="0",
    )
    TokensPage(broker.runtime, broker.metrics, door).add_to(routes)
    async with serving(routes, listen, setting="X", name=http.SERVER):
        yield
