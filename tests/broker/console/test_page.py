"""The broker's page over a real runtime and a real Keepa of the simulator."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
import pytest
from google.protobuf.duration_pb2 import Duration

from broker.console.page import TokensPage
from broker.telemetry import http
from protos.process.addresses import Listen
from protos.process.identities import Role
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.web.door import Door
from protos.web.serving import serving
from tests.fetcher.console.html import Element, parse
from tests.fix_service import Serve, ServedBroker
from tests.fix_simulator import RunningSimulator

HOSTILE = "w1<script>alert(1)</script>"


@dataclass
class Visit:
    """A broker with its page, and a visitor."""

    broker: ServedBroker
    page: TokensPage
    session: aiohttp.ClientSession

    async def get(self) -> Element:
        """The page as of now."""
        async with self.session.get("/") as reply:
            assert reply.status == 200
            return parse(await reply.text())

    async def act(self, what: str) -> int:
        """Presses a button."""
        token = (await self.get()).find("input", name_="form_token")[0].attributes["value"]
        async with self.session.post(
            "/act", data={"what": what, "form_token": token}, allow_redirects=False
        ) as reply:
            return reply.status


@pytest.fixture
async def visit(slow_keepa: RunningSimulator, serve: Serve) -> AsyncIterator[Visit]:
    """A broker with 10 tokens, and its page."""
    broker = await serve(slow_keepa, 10)
    door = Door(
        "tokenbroker", identities=None, setting="X", open_role=Role.OPERATOR, secret=b"test"
    )
    routes = http.application(
        broker.runtime,
        broker.metrics.registry,
        dict,
        reading=door.viewing,
        keepa_url="http://keepa",
        key_fingerprint="0",
    )
    page = TokensPage(broker.runtime, broker.metrics, door)
    page.add_to(routes)
    async with AsyncExitStack() as stack:
        listen = await stack.enter_async_context(
            serving(routes, Listen("127.0.0.1", 0), setting="X", name=http.SERVER)
        )
        session = await stack.enter_async_context(aiohttp.ClientSession(f"http://{listen}"))
        yield Visit(broker, page, session)


async def acquire(visit: Visit, number: int, *, units: int = 1) -> pb.AcquireLeaseResponse:
    """Asks for a lease of a few products at ten tokens each."""
    answer: pb.AcquireLeaseResponse = await visit.broker.stub.AcquireLease(
        pb.AcquireLeaseRequest(
            lease_id=f"00000000-0000-4000-8000-{number:012}",
            holder=HOSTILE,
            operation="product",
            units=units,
            tokens_per_unit=8,
            priority=pb.PRIORITY_NORMAL,
            max_wait=Duration(seconds=30),
        )
    )
    return answer


async def test_it_shows_counts_leases_and_waits(visit: Visit) -> None:
    """Keepa's count beside ours, what holds tokens, what waits, for how long and why."""
    granted = await acquire(visit, 1)
    waiting = asyncio.create_task(acquire(visit, 2))
    with visit.broker.runtime.watching() as changed:
        while not visit.broker.runtime.waiting():
            await asyncio.wait_for(changed.wait(), 30)
            changed.clear()
    page = await visit.get()
    visit.broker.runtime.stop()
    await asyncio.gather(waiting, return_exceptions=True)
    figures = page.one("dl", class_="figures").text

    assert granted.HasField("grant")
    assert " count 10 " in figures
    assert "8 reserved" in figures
    assert HOSTILE in page.one("section", id="leases").text
    assert "not enough tokens yet" in page.one("section", id="waits").text
    assert "product, normal" in page.one("section", id="waits").text
    assert len(page.all("script")) == 1


async def test_the_structure_is_accessible(visit: Visit) -> None:
    """Every section has a heading, every table headers, every chart a title."""
    visit.page.series.take(visit.broker.runtime.bucket(), 1_790_000_000.0)
    page = await visit.get()
    ids = {each.attributes["id"] for each in page.all() if "id" in each.attributes}

    assert all(each.attributes["aria-labelledby"] in ids for each in page.all("section"))
    assert all(th.attributes.get("scope") for th in page.all("th"))
    assert page.one("svg", role="img").one("desc").text.startswith("Balance 10 to 10, now 10.")
    assert all("style" not in each.attributes for each in page.all())


async def test_operators_sync_pause_and_resume(visit: Visit) -> None:
    """Each button acts, and comes back to the page; anything else is refused."""
    probes = visit.broker.runtime.bucket().probes
    synced = await visit.act("sync")
    asked = visit.broker.runtime.bucket().probes - probes
    paused = await visit.act("pause")
    state = (await visit.get()).one("dl", class_="figures").text
    resumed = await visit.act("resume")
    wrong = await visit.act("explode")

    assert (synced, paused, resumed, wrong) == (303, 303, 303, 400)
    assert asked == 1
    assert "paused" in state
    assert visit.broker.runtime.bucket().state.value == "serving"


async def test_changes_come_as_events(visit: Visit) -> None:
    """A grant is on the page before the countdown has moved."""
    async with visit.session.get("/live") as reply:
        first = await reply.content.readuntil(b"\n\n")
        await acquire(visit, 3)
        second = b""
        while b"8 reserved" not in second:
            second = await asyncio.wait_for(reply.content.readuntil(b"\n\n"), 30)

    assert b'data: <section id="bucket"' in first


async def test_a_form_of_another_site_is_refused(visit: Visit) -> None:
    """Nothing is paused without the token of the page."""
    async with visit.session.post("/act", data={"what": "pause"}) as reply:
        status = reply.status

    assert status == 403
    assert visit.broker.runtime.bucket().state.value == "serving"


async def test_the_series_is_bounded_and_marks_what_happened(visit: Visit) -> None:
    """Observations, refills and foreign spending are marks; old samples go."""
    view = visit.broker.runtime.bucket()
    for number in range(5_000):
        visit.page.series.take(view, 1_790_000_000.0 + number)
    chart = str(visit.page.series.chart(1_790_005_000.0))

    assert len(visit.page.series._samples) == 4_000
    assert "1 counts by Keepa" in chart or "0 counts by Keepa" in chart
    assert len(chart) < 200_000
