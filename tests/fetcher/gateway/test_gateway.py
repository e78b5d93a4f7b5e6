"""The gateway between real clients, a real broker and a simulated Keepa.

One gateway serves the tests of this file; its bucket is full and does not tick.
"""

import asyncio
import gzip
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDictProxy

from broker.core.allocator import AllocatorConfig
from deploy.keepa_simulator.options import DEMO_KEY
from fetcher.gateway.asked import SHOWN_KEY
from protos.process.addresses import Listen
from protos.web.serving import serving
from tests.fix_gateway import ServedGateway, serving_gateway
from tests.fix_service import NEVER_S
from tests.fix_simulator import RunningSimulator, launch_simulator
from tests.waiting import wait_until

SELECTION = json.dumps({"domainId": 1, "priceTypes": [2], "page": 0})
DEALS = "/deal?" + urlencode({"key": "alice", "selection": SELECTION})
FINDER = json.dumps({"current_NEW_gte": 1, "perPage": 50})
# Each endpoint with a request that Keepa answers; the last is one that it does not have.
REQUESTS = {
    "deal": {"selection": SELECTION},
    "product": {"domain": "1", "asin": "B000000000,B00000000X", "stats": "90", "history": "0"},
    "query": {"domain": "1", "selection": FINDER},
    "search": {"domain": "1", "term": "collectors"},
    "category": {"domain": "1", "category": "283155", "parents": "1"},
    "bestsellers": {"domain": "1", "category": "283155"},
    "seller": {"domain": "1", "seller": "A2L77EE7U53NWQ", "storefront": "1"},
    "topseller": {"domain": "1"},
    "lightningdeal": {"domain": "1", "asin": "B000000000"},
    "tracking": {"type": "list"},
    "brandnew": {"x": "1"},
}
# Of an account of its own, so that direct calls spend none of the broker's tokens.
SECOND_KEY = "2" * 64
# Fields that differ between two calls for the same.
MOVING = {"timestamp", "tokensLeft", "refillIn", "processingTimeInMs", "dealsCached"}

Headers = CIMultiDictProxy[str]


@pytest.fixture(scope="module")
def keepa() -> RunningSimulator:
    """A Keepa of a large plan, with its next tick an hour away, and a second account."""
    return launch_simulator(
        api_key=[DEMO_KEY, SECOND_KEY], rate=1000, tick_seconds=NEVER_S, products=200, deals=50
    )


@pytest.fixture(scope="module")
async def gateway(keepa: RunningSimulator) -> AsyncIterator[ServedGateway]:
    """A gateway with many tokens."""
    try:
        async with serving_gateway(keepa, gateway_broker_wait="1s") as gateway:
            yield gateway
    finally:
        keepa.stop()


@pytest.fixture(autouse=True)
def full(keepa: RunningSimulator) -> None:
    """No faults are left from other tests."""
    keepa.clear_faults()


async def raw(
    http: aiohttp.ClientSession, url: str, *, encoding: str = "gzip"
) -> tuple[int, Headers, bytes]:
    """Status, headers and the body as it travels."""
    headers = {"Accept-Encoding": encoding}
    async with http.get(url, headers=headers, auto_decompress=False) as reply:
        return reply.status, reply.headers, await reply.read()


async def test_a_call_is_leased_and_settled(gateway: ServedGateway) -> None:
    """The reply is Keepa's, and the broker has its cost before the caller can ask."""
    status, headers, body = await gateway.get(DEALS)
    _, _, count = await gateway.get("/token?key=alice")
    bucket = gateway.broker.runtime.bucket()

    assert status == 200
    assert count["tokensLeft"] == body["tokensLeft"]
    assert body["tokensConsumed"] == 5
    assert "dr" in body["deals"]
    assert headers["X-Gateway-Source"] == "keepa"
    assert headers["Server"] == "keepa-gateway"
    assert (bucket.balance, bucket.reserved) == (body["tokensLeft"], 0)


async def test_token_status_comes_from_the_broker(gateway: ServedGateway) -> None:
    """It costs no call to Keepa and shows the broker's count."""
    before = gateway.simulator.stats()["calls_by_path"].get("/token", 0)
    status, _, body = await gateway.get("/token/?key=alice")

    assert status == 200
    assert body["tokensLeft"] == gateway.broker.runtime.bucket().balance
    assert body["refillRate"] == 1000
    assert gateway.simulator.stats()["calls_by_path"].get("/token", 0) == before


@pytest.mark.parametrize("endpoint", REQUESTS)
async def test_bodies_are_keepas(gateway: ServedGateway, endpoint: str) -> None:
    """Every endpoint: the bytes that travel are those that Keepa sent."""
    keepa = gateway.simulator
    query = urlencode(REQUESTS[endpoint])
    status, headers, body = await raw(
        gateway.http, f"{gateway.places.api}/{endpoint}/?key=alice&{query}"
    )
    direct = await raw(gateway.http, f"{keepa.base_url}/{endpoint}?key={SECOND_KEY}&{query}")
    fields, expected = (json.loads(gzip.decompress(it)) for it in (body, direct[2]))

    assert status == direct[0]
    assert headers["Content-Encoding"] == "gzip"
    assert headers["Content-Length"] == str(len(body))
    assert headers["Content-Type"] == direct[1]["Content-Type"]
    assert {name: it for name, it in fields.items() if name not in MOVING} == {
        name: it for name, it in expected.items() if name not in MOVING
    }
    # As the simulator compresses: no byte was written anew.
    assert body == gzip.compress(gzip.decompress(body), 1, mtime=0)


@pytest.mark.parametrize(("path", "selection"), [("/deal", SELECTION), ("/query/", FINDER)])
async def test_a_selection_may_travel_in_the_body(
    gateway: ServedGateway, path: str, selection: str
) -> None:
    """A POST reaches Keepa with its body, the real key and no other; the bytes are Keepa's."""
    async with gateway.http.post(
        f"{gateway.places.api}{path}?key=alice&domain=1",
        data=selection.encode(),
        auto_decompress=False,
    ) as reply:
        body = await reply.read()
    call = gateway.simulator.calls()[-1]

    assert reply.status == 200
    assert body == gzip.compress(gzip.decompress(body), 1, mtime=0)
    assert (call["method"], call["selection"]) == ("POST", selection)
    assert call["account"] == gateway.simulator.key_fingerprint


async def test_a_caller_without_gzip_gets_plain_text(gateway: ServedGateway) -> None:
    """Keepa compresses in any case; curl without an option is served all the same."""
    _, headers, body = await raw(gateway.http, gateway.places.api + DEALS, encoding="identity")

    assert "Content-Encoding" not in headers
    assert json.loads(body)["tokensConsumed"] == 5


async def test_keepas_own_key_is_refused(gateway: ServedGateway) -> None:
    """Wherever it stands, it does not travel and is not repeated; the answer has the remedy."""
    key = gateway.simulator.api_key
    before = len(gateway.simulator.calls())
    places = [
        (f"/deal?key={key}&selection=x", {}),
        ("/deal?selection=x", {"Authorization": f"Bearer {key}"}),
        (f"/deal?key=alice&note={key}", {}),
        ("/deal?key=alice", {"X-Holder": key}),
        (f"/{key}?key=alice", {}),
        ("/token?key=alice", {"X-Request-Id": key}),
    ]
    for target, headers in places:
        status, answer_headers, body = await gateway.get(target, **headers)
        shown = json.dumps(body) + str(answer_headers)

        assert (status, body["error"]["message"]) == (400, SHOWN_KEY)
        assert key not in shown
    assert len(gateway.simulator.calls()) == before
    assert key not in await gateway.metrics()


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        ("/deal/../token?key=a", {}, 404),
        ("//token?key=a", {}, 404),
        ("/token%2f?key=a", {}, 404),
        ("/?key=a", {}, 404),
        ("/deal?key=" + "x" * 600, {}, 400),
        ("/deal?key=%00", {}, 400),
        ("/deal?key=a", {"X-Priority": "urgent"}, 400),
        ("/deal?key=a", {"X-Max-Wait": "nan"}, 400),
        ("/deal?key=a", {"X-Max-Wait": "-1"}, 400),
        ("/deal?key=a", {"X-Holder": "x" * 100}, 400),
    ],
)
async def test_odd_requests_go_no_further(
    gateway: ServedGateway, target: str, headers: dict[str, str], status: int
) -> None:
    """They are answered in Keepa's form and cost nothing."""
    before = len(gateway.simulator.calls())
    host, port = gateway.places.api.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [f"GET {target} HTTP/1.1", "Host: x", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")

    assert int(head.split()[1]) == status
    assert json.loads(body)["error"]["type"] == "invalidParameter"
    assert len(gateway.simulator.calls()) == before


async def test_the_callers_key_stays_here(gateway: ServedGateway) -> None:
    """However it is spelled, Keepa sees one key, its own."""
    for name in ("key", "k%65y", "KEY"):
        status, _, _ = await gateway.get(f"/category?{name}=alice&domain=1&category=0")

        assert status == 200


async def test_callers_are_told_apart(gateway: ServedGateway) -> None:
    """By X-Holder, else by a key that reads as a name; any other key is not shown."""
    await gateway.get("/category?key=alice&domain=1&category=1")
    await gateway.get("/category?key=alice&domain=1&category=2", **{"X-Holder": "night job"})
    await gateway.get(f"/category?key={'f' * 64}&domain=1&category=3")
    bucket = gateway.broker.runtime.bucket
    await asyncio.to_thread(wait_until, lambda: not bucket().reserved, "the settles")
    metrics = gateway.broker.metrics.registry
    spent = {
        name: metrics.get_sample_value("tokenbroker_holder_spent_tokens_total", {"holder": name})
        for name in ("alice", "night job", "f" * 64)
    }

    assert spent["night job"] == 1
    assert spent["alice"]
    assert spent["f" * 64] is None
    assert 'identity="key-' in await gateway.metrics()


async def test_a_reply_of_25_megabytes(keepa: RunningSimulator) -> None:
    """It streams through, bytes equal, and its envelope at the end is found."""
    async with serving_gateway(keepa) as gateway:
        keepa.set_fault("pad:mb=25,count=1")
        before = gateway.broker.runtime.bucket().balance
        _, _, body = await raw(gateway.http, gateway.places.api + DEALS)
        runtime = gateway.broker.runtime
        # Its length is in the headers: the caller has it before the broker has its cost.
        await asyncio.to_thread(wait_until, lambda: not runtime.bucket().reserved, "its settle")
        after = runtime.bucket()
    text = gzip.decompress(body)
    fields = json.loads(text)

    assert len(text) > 25_000_000
    assert len(body) > 10_000_000
    assert len(fields["padding"]) == 25_000
    assert after.balance == before - 5


async def test_a_reply_that_is_cut(gateway: ServedGateway) -> None:
    """A small one becomes an error; of a large one the caller sees that it is cut."""
    gateway.simulator.set_fault("cut:at=0.5,count=1")
    small, _, body = await gateway.get(DEALS)
    gateway.simulator.clear_faults()
    gateway.simulator.set_fault("pad:mb=3,count=1")
    gateway.simulator.set_fault("cut:at=0.9,count=1")
    with pytest.raises(aiohttp.ClientError):
        await gateway.get(DEALS + "&x=1")
    bucket = gateway.broker.runtime.bucket()

    assert (small, body["error"]["type"]) == (502, "unavailable")
    assert bucket.open_leases == 0


async def test_keepas_errors_pass_through(gateway: ServedGateway) -> None:
    """A 5xx and a 4xx are the caller's to see; their envelopes settle the lease."""
    gateway.simulator.set_fault("error:status=503,path=/deal,count=1")
    status, _, body = await gateway.get(DEALS + "&x=2")
    bad_status, _, bad = await gateway.get("/deal?key=alice&selection=oops")
    bucket = gateway.broker.runtime.bucket()

    assert (status, body["tokensConsumed"]) == (503, 0)
    assert (bad_status, bad["error"]["type"]) == (400, "invalidParameter")
    assert bucket.balance == bad["tokensLeft"]


async def test_a_reset_is_not_sent_again(gateway: ServedGateway) -> None:
    """A connection that breaks is one call, on a reused connection as well."""
    await gateway.get(DEALS)
    before = len(gateway.simulator.calls())
    gateway.simulator.set_fault("reset:path=/deal,count=1")
    status, headers, _ = await gateway.get(DEALS + "&x=3")

    assert status == 502
    assert headers["Retry-After"] == "5"
    assert len(gateway.simulator.calls()) == before + 1


async def test_garbage_is_passed_on_and_its_cost_unknown(gateway: ServedGateway) -> None:
    """A page of a proxy has no envelope: the tokens stay reserved until Keepa has been asked."""
    gateway.simulator.set_fault("garbage:path=/deal,count=1")
    async with gateway.http.get(gateway.places.api + DEALS + "&x=4") as reply:
        text = await reply.text()

    assert "Bad gateway" in text
    assert gateway.broker.runtime.bucket().reserved >= 5


async def test_a_call_too_large_names_what_fits(keepa: RunningSimulator) -> None:
    """What can never fit is refused at once, with the largest number that does."""
    small = launch_simulator(rate=1, tick_seconds=NEVER_S, products=100, deals=10)
    try:
        async with serving_gateway(small) as gateway:
            asins = ",".join(f"B{number:09}" for number in range(100))
            status, _, body = await gateway.get(
                f"/product?key=alice&domain=1&offers=20&asin={asins}"
            )
    finally:
        small.stop()

    assert (status, body["error"]["type"]) == (400, "requestTooLarge")
    assert "at most 5 fit" in body["error"]["message"]
    assert body["refillRate"] == 1


async def test_beyond_the_wait_a_client_gets_keepas_429(keepa: RunningSimulator) -> None:
    """The bare envelope: its refillIn is the ETA, at a balance of zero."""
    empty = launch_simulator(rate=5, tick_seconds=NEVER_S, initial_tokens=-7, products=100,
                             deals=10)  # fmt: skip
    try:
        async with serving_gateway(empty) as gateway:
            status, headers, body = await gateway.get(DEALS, **{"X-Max-Wait": "0.2"})
            tick_s = empty.stats()["accounts"][0]["refill_in_ms"] / 1000
            calls = empty.stats()["calls_by_path"]
    finally:
        empty.stop()

    assert status == 429
    assert "error" not in body
    assert (body["tokensLeft"], body["refillRate"]) == (0, 5)
    # The second tick, a learned minute after the first, brings the balance above zero.
    assert tick_s + 60 < body["refillIn"] / 1000 < tick_s + 190
    assert int(headers["Retry-After"]) == pytest.approx(body["refillIn"] / 1000, abs=2)
    assert "/deal" not in calls


async def test_one_answer_for_many_askers(gateway: ServedGateway) -> None:
    """Identical GETs under way are one call, whatever the order of their parameters."""
    gateway.simulator.set_fault("latency:ms=1500,path=/category,count=1")
    before = gateway.simulator.stats()["calls"]
    answers = await asyncio.gather(
        gateway.get("/category?key=alice&domain=1&category=0"),
        gateway.get("/category/?category=0&domain=1&key=bob"),
        gateway.get("/category?domain=1&key=carol&category=0"),
    )

    assert gateway.simulator.stats()["calls"] == before + 1
    assert sorted(headers["X-Gateway-Source"] for _, headers, _ in answers) == [
        "keepa",
        "shared",
        "shared",
    ]
    assert len({body["timestamp"] for _, _, body in answers}) == 1


async def test_a_cached_reply_is_free(keepa: RunningSimulator) -> None:
    """A header marks it; errors and other endpoints are not kept."""
    async with serving_gateway(keepa, gateway_cache="category=600, /search=60") as gateway:
        target = "/category?key=alice&domain=1&category=0"
        first = await gateway.get(target)
        before = keepa.stats()["calls"]
        second = await gateway.get(target.replace("alice", "bob"))
        calls = keepa.stats()["calls"]
        for _ in range(2):
            await gateway.get("/category?key=alice&domain=77&category=0")
            await gateway.get(DEALS)

    assert calls == before
    assert second[1]["X-Gateway-Source"].startswith("cache; age=")
    assert second[2] == first[2]
    assert keepa.stats()["calls"] == before + 4


async def test_a_wait_ends_with_its_caller(keepa: RunningSimulator) -> None:
    """A caller that hangs up while it waits leaves no trace, and no call is made."""
    empty = launch_simulator(
        rate=5, tick_seconds=NEVER_S, initial_tokens=0, products=100, deals=10
    )
    try:
        async with serving_gateway(empty) as gateway:
            asking = asyncio.create_task(gateway.get(DEALS))
            runtime = gateway.broker.runtime
            await asyncio.to_thread(wait_until, lambda: runtime.bucket().waiting == 1, "a wait")
            asking.cancel()
            await asyncio.to_thread(wait_until, lambda: runtime.bucket().waiting == 0, "its end")
            bucket = runtime.bucket()
            calls = empty.stats()["calls_by_path"]
    finally:
        empty.stop()

    assert (bucket.reserved, bucket.open_leases) == (0, 0)
    assert "/deal" not in calls


async def test_a_call_is_read_to_its_end_without_its_caller(keepa: RunningSimulator) -> None:
    """Once it is sent, its cost is known even if no caller is left to take the reply."""
    async with serving_gateway(keepa) as gateway:
        keepa.set_fault("latency:ms=1500,path=/topseller,count=1")
        runtime = gateway.broker.runtime
        before = runtime.bucket().balance
        asking = asyncio.create_task(gateway.get("/topseller?key=alice&domain=1"))
        await asyncio.to_thread(wait_until, lambda: runtime.bucket().open_leases == 1, "the call")
        asking.cancel()
        await asyncio.to_thread(wait_until, lambda: runtime.bucket().open_leases == 0, "its end")
        after = runtime.bucket().balance

    assert after == before - 50


async def test_interim_replies_keep_an_impatient_client(keepa: RunningSimulator) -> None:
    """A client with a read timeout shorter than its wait goes on waiting."""
    async with serving_gateway(keepa, gateway_interim="1s") as gateway:
        keepa.set_fault("latency:ms=4000,path=/deal,count=1")
        program = "import requests, sys; print(requests.get(sys.argv[1], timeout=2.5).status_code)"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, gateway.places.api + DEALS + "&x=5",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()

    assert out.strip() == b"200"


async def test_a_hanging_keepa_is_given_up(keepa: RunningSimulator) -> None:
    """The caller gets a 504; the tokens stay reserved until Keepa has been asked."""
    config = AllocatorConfig(recovery_grace_ms=0)
    async with serving_gateway(keepa, config=config, keepa_read_timeout_s=0.5) as gateway:
        keepa.set_fault("timeout:path=/deal,count=1")
        status, _, body = await gateway.get(DEALS + "&x=6")
        reserved = gateway.broker.runtime.bucket().reserved

    assert (status, body["error"]["type"]) == (504, "unavailable")
    assert reserved == 5


async def test_keepa_away_costs_nothing(keepa: RunningSimulator) -> None:
    """Nothing was sent, so nothing stays reserved."""
    async with serving_gateway(keepa, keepa_base_url="http://127.0.0.1:1") as gateway:
        status, headers, _ = await gateway.get(DEALS)
        bucket = gateway.broker.runtime.bucket()

    assert (status, headers["Retry-After"]) == (503, "5")
    assert (bucket.reserved, bucket.open_leases) == (0, 0)


async def test_without_a_broker_nothing_is_sent(gateway: ServedGateway) -> None:
    """Callers get a 503 with Retry-After after a bounded wait."""
    settings: dict[str, Any] = {
        "gateway_broker_wait": "200ms",
        "broker_address": "127.0.0.1:1",
    }
    before = gateway.simulator.stats()["calls_by_path"].get("/deal", 0)
    async with serving_gateway(gateway.simulator, **settings) as alone:
        answers = [await alone.get(target) for target in (DEALS, "/token?key=alice")]
        async with alone.http.get(f"{alone.places.http}/readyz") as reply:
            ready = reply.status
        async with alone.http.get(f"{alone.places.http}/healthz") as reply:
            live = reply.status

    assert [status for status, _, _ in answers] == [503, 503]
    assert all("Retry-After" in headers for _, headers, _ in answers)
    assert gateway.simulator.stats()["calls_by_path"].get("/deal", 0) == before
    assert (ready, live) == (503, 200)


async def test_every_answer_has_a_request_id(gateway: ServedGateway) -> None:
    """The caller's own, or a new one."""
    _, given, _ = await gateway.get("/token?key=alice", **{"X-Request-Id": "job-7"})
    _, made, _ = await gateway.get("/nothing-of-the-kind/?key=alice")

    assert given["X-Request-Id"] == "job-7"
    assert len(made["X-Request-Id"]) == 32


@asynccontextmanager
async def quoting_keepa(shape: str) -> AsyncIterator[str]:
    """Keepa's stand-in that quotes the request, its key included; yields its address."""

    async def handle(request: web.Request) -> web.Response:
        error = {"type": "x", "message": "", "details": str(request.url)}
        body: dict[str, Any] = {"error": error, "timestamp": 1, "tokensLeft": 1}
        if shape == "large":
            body = {"padding": Random(1).randbytes(1_000_000).hex(), **body}
        text = json.dumps(body).encode()
        if shape == "plain":
            return web.Response(status=400, body=text)
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        return web.Response(status=400, body=gzip.compress(text), headers=headers)

    routes = web.Application()
    routes.router.add_route("*", "/{path:.*}", handle)
    async with serving(routes, Listen("127.0.0.1", 0), setting="TEST", name="quoting") as place:
        yield f"http://{place}"


@pytest.mark.parametrize("shape", ["plain", "gzip", "large"])
async def test_a_reply_that_quotes_the_key(
    gateway: ServedGateway, capsys: pytest.CaptureFixture[str], shape: str
) -> None:
    """The key is blanked out; of a reply that is too large for that, the rest does not come."""
    key, body = gateway.simulator.api_key, b""
    async with (
        quoting_keepa(shape) as address,
        serving_gateway(gateway.simulator, keepa_base_url=address) as quoted,
        quoted.http.get(f"{quoted.places.api}/category?key=alice&domain=1") as reply,
    ):
        with suppress(aiohttp.ClientError):
            async for piece in reply.content.iter_any():
                body += piece
        shown = str(reply.headers) + await quoted.metrics()
    captured = capsys.readouterr()

    assert reply.status in {400, 502}
    assert (shape != "large") == (b"/category?key=***&" in body)
    assert (shape != "large") == body.endswith(b"}")
    assert key not in body.decode() + shown + captured.out + captured.err
