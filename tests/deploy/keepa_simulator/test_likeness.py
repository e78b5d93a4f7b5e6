"""The public Python client works with the simulator, and replies match recorded ones."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import keepa
import pytest
import requests

from tests.fix_simulator import RunningSimulator, StartSimulator, launch_simulator

KEEPA_URL: Final = "https://api.keepa.com"
RECORDINGS: Final = Path(__file__).parents[4] / "shared" / "keepa-recordings"
RECORDED_DEALS: Final = RECORDINGS / "deal-page0-2025-09-14.trimmed-to-2-deals.json"
RECORDED_PRODUCT: Final = RECORDINGS / "product-B0D8W1YVBX-2026-05-10.trimmed.json"
BOOKS: Final = {
    "page": 0,
    "domainId": 1,
    "priceTypes": [2],
    "dateRange": 3,
    "includeCategories": [283155],
    "sortType": 4,
}


# Its methods return unions that depend on an argument; the tests narrow them.
Client = Any


@pytest.fixture(scope="module")
def simulator() -> Iterator[RunningSimulator]:
    """A simulator with enough tokens for all tests."""
    running = launch_simulator(rate=1000, tick_seconds=3600)
    yield running
    running.stop()


def point_client_at(monkeypatch: pytest.MonkeyPatch, base_url: str) -> None:
    """Sends the client's calls to *base_url*; its own code stays unchanged."""
    get, async_get = requests.get, aiohttp.ClientSession.get

    def redirected(url: str, *args: Any, **kwargs: Any) -> requests.Response:
        return get(url.replace(KEEPA_URL, base_url), *args, **kwargs)

    def async_redirected(session: aiohttp.ClientSession, url: str, **kwargs: Any) -> Any:
        # The client passes seconds, but this version of aiohttp expects a ClientTimeout.
        kwargs["timeout"] = aiohttp.ClientTimeout(kwargs["timeout"])
        return async_get(session, url.replace(KEEPA_URL, base_url), **kwargs)

    monkeypatch.setattr(requests, "get", redirected)
    monkeypatch.setattr(aiohttp.ClientSession, "get", async_redirected)


@pytest.fixture
def client(simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> keepa.Keepa:
    """The public client, talking to the simulator."""
    point_client_at(monkeypatch, simulator.base_url)
    return keepa.Keepa(simulator.api_key)


@pytest.fixture
async def async_client(
    simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch
) -> keepa.AsyncKeepa:
    """The public asynchronous client, talking to the simulator."""
    point_client_at(monkeypatch, simulator.base_url)
    return await keepa.AsyncKeepa.create(simulator.api_key)


def test_client_reads_the_tokens(client: Client) -> None:
    """The client's status is the envelope of /token."""
    client.update_status()

    assert client.tokens_left > 0
    assert client.status.refillRate == 1000


def test_client_reads_deals(client: Client) -> None:
    """Deals arrive, untyped and in the models made from the official Java client."""
    deals = client.deals(BOOKS)
    typed = client.deals(BOOKS, typed=True)

    assert len(deals["dr"]) == len(typed.dr) == 150
    assert typed.dr[0].current[2] == deals["dr"][0]["current"][2]
    assert "Books" in deals["categoryNames"]


def test_client_reads_products(client: Client) -> None:
    """The client parses histories, statistics and offers of a batch."""
    asins = [row["asin"] for row in client.deals(BOOKS)["dr"][:12]]
    products = client.query(asins, stats=90, offers=20, buybox=True, rating=True, stock=True)
    typed = client.query(asins[:2], stats=90, typed=True)

    assert sorted(product["asin"] for product in products) == sorted(asins)
    assert all(len(it["data"]["USED"]) == len(it["data"]["USED_time"]) for it in products)
    assert all("avg90" in product["stats_parsed"] for product in products)
    assert all(isinstance(product["offers"], list) for product in products)
    assert {product.asin for product in typed} == set(asins[:2])


def test_client_finds_products(client: Client) -> None:
    """The finder's parameters pass through the client's own checks."""
    found = client.product_finder({"current_NEW_gte": 2000, "sort": [["current_SALES", "asc"]]})

    assert len(found) == 50


def test_client_looks_up_categories(client: Client) -> None:
    """Lookup and search of categories, untyped and typed."""
    books = client.category_lookup(283155, include_parents=True)
    roots = client.category_lookup(0)
    found = client.search_for_categories("collectors", typed=True)

    assert books["283155"]["name"] == "Books"
    assert len(roots) > 20
    assert all("Collectors" in str(category.name) for category in found.values())


def test_client_lists_best_sellers(client: Client) -> None:
    """Best sellers of a category come as ASINs."""
    assert len(client.best_sellers_query("283155")) > 1_000


def test_client_refuses_a_bad_key(client: Client) -> None:
    """A key without an account is rejected as the client expects."""
    client.accesskey = "0" * 64
    with pytest.raises(RuntimeError, match="REQUEST_REJECTED"):
        client.update_status()


async def test_async_client_does_the_same(async_client: Client) -> None:
    """Tokens, deals, products, finder, categories and search without blocking."""
    await async_client.update_status()
    deals = await async_client.deals(BOOKS)
    products = await async_client.query(deals["dr"][0]["asin"], stats=30)
    found = await async_client.product_finder({"rootCategory": "283155"})
    category = await async_client.category_lookup(283155)
    searched = await async_client.search_for_categories("books")

    assert async_client.tokens_left > 0
    assert products[0]["asin"] == deals["dr"][0]["asin"]
    assert len(found) == 50
    assert category.keys() == searched.keys() == {"283155"}


def test_client_waits_for_the_refill(
    start_simulator: StartSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a 429, the client waits as long as the envelope states, and succeeds."""
    dry = start_simulator(rate=5, initial_tokens=0, tick_seconds=1)
    point_client_at(monkeypatch, dry.base_url)
    client: Client = keepa.Keepa(dry.api_key)
    deals = client.deals(BOOKS)
    statuses = [call["status"] for call in dry.calls()]

    assert len(deals["dr"]) == 150
    assert statuses[-1] == 200
    assert set(statuses[:-1]) <= {429}


async def test_async_client_waits_for_the_refill(
    start_simulator: StartSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The asynchronous client waits before its call."""
    dry = start_simulator(rate=5, initial_tokens=0, tick_seconds=1)
    point_client_at(monkeypatch, dry.base_url)
    client: Client = await keepa.AsyncKeepa.create(dry.api_key)
    await client.wait_for_tokens()
    deals = await client.deals(BOOKS)

    assert len(deals["dr"]) == 150
    assert dry.stats()["throttled"] == 0


def differences(recorded: Any, ours: Any, at: str = "") -> Iterator[str]:
    """The fields of *recorded* that *ours* lacks, or has in another type."""
    if recorded is None or ours is None:
        # Either value may be null; the check above covers the key.
        return
    if isinstance(recorded, dict) and isinstance(ours, dict):
        for name in recorded:
            if name not in ours:
                yield f"{at}.{name} is missing"
            else:
                yield from differences(recorded[name], ours[name], f"{at}.{name}")
    elif isinstance(recorded, list) and isinstance(ours, list):
        for theirs, our in zip(recorded, ours, strict=False):
            yield from differences(theirs, our, f"{at}[]")
    elif type_name(recorded) != type_name(ours):
        yield f"{at} is {type_name(ours)}, recorded {type_name(recorded)}"


def type_name(value: Any) -> str:
    """The JSON type of a value; whole and other numbers are one."""
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__


def ask(simulator: RunningSimulator, path: str, **parameters: Any) -> Any:
    """The reply to a call with the key."""
    parameters = {"key": simulator.api_key} | parameters
    return requests.get(simulator.base_url + path, parameters, timeout=30).json()


# From the description of the fields, for machines without recordings.
OWN_DEAL: Final[dict[str, Any]] = {
    "asin": "0123456789",
    "avg": [[1] * 34] * 4,
    "backInStock": [False] * 34,
    "categories": [1],
    "creationDate": 2,
    "current": [1] * 34,
    "currentSince": [2] * 34,
    "delta": [[1] * 34] * 4,
    "deltaLast": [1] * 34,
    "deltaPercent": [[1] * 34] * 4,
    "image": [53],
    "lastUpdate": 2,
    "lightningEnd": 0,
    "lightningStart": 0,
    "rootCat": 1,
    "title": "",
    "warehouseCondition": 0,
}
OWN_ENVELOPE: Final[dict[str, Any]] = {
    "processingTimeInMs": 1,
    "refillIn": 1,
    "refillRate": 5,
    "timestamp": 1,
    "tokenFlowReduction": 0.0,
    "tokensConsumed": 5,
    "tokensLeft": 1,
}
OWN_REPLY: Final[dict[str, Any]] = {
    "deals": {
        "categoryCount": [1],
        "categoryIds": [1],
        "categoryNames": [""],
        "dr": [OWN_DEAL],
        "drDateIndex": [],
    },
    "dealsCached": False,
    **OWN_ENVELOPE,
}
OWN_STATS: Final[dict[str, Any]] = {
    **{
        name: [1] * 36
        for name in ("current", "avg", "avg30", "avg90", "avg180", "avg365", "atIntervalStart")
    },
    "min": [[2, 1]],
    "max": [[2, 1]],
    "salesRankDrops30": 1,
    "outOfStockPercentage90": [1] * 36,
    "buyBoxPrice": 1,
    "buyBoxShipping": 1,
    "totalOfferCount": 1,
    "offerCountFBA": -2,
}


def test_deal_reply_has_the_described_fields(simulator: RunningSimulator) -> None:
    """A /deal reply has every described field, and types agree."""
    reply = ask(simulator, "/deal", selection=json.dumps(BOOKS))
    row = reply["deals"]["dr"][0]
    found = list(differences(OWN_REPLY, reply))

    assert found == []
    assert [len(row["avg"]), len(row["avg"][0]), len(row["currentSince"])] == [4, 34, 34]


def test_product_reply_has_the_described_statistics(simulator: RunningSimulator) -> None:
    """Statistics have the documented arrays, by price type."""
    asin = ask(simulator, "/deal", selection=json.dumps(BOOKS))["deals"]["dr"][0]["asin"]
    reply = ask(simulator, "/product", domain=1, asin=asin, stats=90)
    found = list(differences(OWN_STATS, reply["products"][0]["stats"]))

    assert found == []
    assert len(reply["products"][0]["csv"]) == 36


@pytest.mark.skipif(not RECORDED_DEALS.exists(), reason="recordings are not on this machine")
def test_deal_reply_is_a_superset_of_the_recording(simulator: RunningSimulator) -> None:
    """The reply has every key of a recorded /deal reply in the same type."""
    recorded = json.loads(RECORDED_DEALS.read_text())
    selection = json.loads((RECORDINGS / "deal-selection-2025-09-14.json").read_text())
    reply = ask(simulator, "/deal", selection=json.dumps(selection | {"currentRange": [100, -1]}))
    found = {
        line
        for row in reply["deals"]["dr"]
        for line in differences(recorded["deals"]["dr"][0], row)
    }

    assert list(differences(recorded, reply)) == []
    assert found == set()
    assert reply["deals"]["dr"]


@pytest.mark.skipif(not RECORDED_PRODUCT.exists(), reason="recordings are not on this machine")
def test_product_reply_is_a_superset_of_the_recording(simulator: RunningSimulator) -> None:
    """The reply has every key of a recorded /product reply in the same type."""
    recorded = json.loads(RECORDED_PRODUCT.read_text())
    selling = '{"current_SALES_lte": 2000, "current_SALES_gte": 1, "current_RATING_gte": 1}'
    asin = ask(simulator, "/query", domain=1, selection=selling)["asinList"][0]
    wanted = {"stats": 90, "buybox": 1, "rating": 1, "offers": 20}
    reply = ask(simulator, "/product", domain=1, asin=asin, **wanted)
    # The keys of these are categories and sellers, not names of fields.
    del recorded["products"][0]["salesRanks"]
    del recorded["products"][0]["stats"]["buyBoxStats"]

    assert list(differences(recorded, reply)) == []


@pytest.mark.skipif(not RECORDINGS.exists(), reason="recordings are not on this machine")
def test_refusals_have_exactly_the_recorded_keys(start_simulator: StartSimulator) -> None:
    """A 429, an invalid key and /token have the keys of the recordings and no others."""
    broke = start_simulator(initial_tokens=-1, tick_seconds=3600)
    replies = {
        "http-429-body-2025-09-16.json": ask(broke, "/deal", selection=json.dumps(BOOKS)),
        "error-invalid-key-body.json": ask(broke, "/token", key="wrong"),
        "token-status-2025-09-19.json": ask(broke, "/token"),
    }
    for name, reply in replies.items():
        recorded = json.loads((RECORDINGS / name).read_text())

        assert reply.keys() == recorded.keys()
        assert list(differences(recorded, reply)) == []
