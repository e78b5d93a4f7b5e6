"""The HTTP interface: replies, prices, refusals and the call log."""

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

from deploy.keepa_simulator.catalogue import Catalogue
from tests.fix_simulator import RunningSimulator, StartSimulator, launch_simulator
from tests.waiting import wait_until

BOOKS = {
    "page": 0,
    "domainId": "1",
    "priceTypes": [2],
    "dateRange": "3",
    "deltaPercentRange": [50, 2147483647],
    "isFilterEnabled": True,
    "isRangeEnabled": True,
    "includeCategories": [283155],
    "currentRange": [500, 30100],
    "sortType": 1,
}
ENVELOPE = {
    "processingTimeInMs",
    "refillIn",
    "refillRate",
    "timestamp",
    "tokenFlowReduction",
    "tokensConsumed",
    "tokensLeft",
}


@pytest.fixture(scope="module")
def simulator() -> Iterator[RunningSimulator]:
    """A simulator with a full bucket; neither ticks nor deals come during a test."""
    running = launch_simulator(rate=200, tick_seconds=3600, deal_speed=0.001)
    yield running
    running.stop()


def get(simulator: RunningSimulator, path: str, **parameters: Any) -> requests.Response:
    """Calls *path* with the key."""
    parameters = {"key": simulator.api_key} | parameters
    return requests.get(simulator.base_url + path, parameters, timeout=30)


def deal(simulator: RunningSimulator, **fields: Any) -> dict[str, Any]:
    """The reply to the books selection, changed by *fields*."""
    reply = get(simulator, "/deal", selection=json.dumps(BOOKS | fields))
    assert reply.status_code == 200
    return dict(reply.json())


def test_token_is_free_and_bare(simulator: RunningSimulator) -> None:
    """/token returns the envelope and nothing else, for no tokens."""
    replies = [get(simulator, path).json() for path in ("/token", "/token/", "/token/?")]

    assert all(reply.keys() == ENVELOPE for reply in replies)
    assert len({reply["tokensLeft"] for reply in replies}) == 1


def test_everything_is_compressed(simulator: RunningSimulator) -> None:
    """Every reply is gzipped without a request for it, errors too."""
    ok = requests.get(
        f"{simulator.base_url}/token?key={simulator.api_key}",
        headers={"Accept-Encoding": "identity"},
        timeout=30,
    )
    bad = get(simulator, "/deal", selection="{")

    assert ok.headers["Content-Encoding"] == bad.headers["Content-Encoding"] == "gzip"
    assert bad.status_code == 400


def test_invalid_key_gets_the_recorded_body(simulator: RunningSimulator) -> None:
    """All token fields are zero, refillRate included."""
    reply = get(simulator, "/token", key="no such key").json()

    assert reply["error"]["type"] == "invalidParameter"
    assert {name: reply[name] for name in ENVELOPE - {"timestamp", "processingTimeInMs"}} == {
        "refillIn": 0,
        "refillRate": 0,
        "tokenFlowReduction": 0.0,
        "tokensConsumed": 0,
        "tokensLeft": 0,
    }


def test_error_carries_the_envelope_and_costs_nothing(simulator: RunningSimulator) -> None:
    """A refused selection has an error object beside the true balance."""
    before = get(simulator, "/token").json()["tokensLeft"]
    reply = get(simulator, "/deal", selection='{"domainId": 1}').json()

    assert reply.keys() == ENVELOPE | {"error"}
    assert reply["error"].keys() == {"type", "message", "details"}
    assert reply["tokensLeft"] == before


def test_first_page_is_there_at_once(simulator: RunningSimulator) -> None:
    """A full page of fresh deals, the newest first, for five tokens."""
    reply = deal(simulator)
    rows = reply["deals"]["dr"]
    created = [row["creationDate"] for row in rows]
    newest_ms = (created[0] + 21_564_000) * 60_000

    assert reply["tokensConsumed"] == 5
    assert len(rows) == 150
    assert created == sorted(created, reverse=True)
    assert abs(newest_ms - reply["timestamp"]) < 20 * 60_000


def test_get_and_post_are_the_same(simulator: RunningSimulator) -> None:
    """The selection may be posted; the key stays in the address."""
    posted = requests.post(
        f"{simulator.base_url}/deal/?key={simulator.api_key}", json=BOOKS, timeout=30
    ).json()

    assert posted["deals"] == deal(simulator)["deals"]


def test_same_selection_is_cached_and_costs_the_same(simulator: RunningSimulator) -> None:
    """A page is served again for 120 s, marked as cached, and paid for again."""
    first, second = deal(simulator, titleSearch="a"), deal(simulator, titleSearch="a")

    assert (first["dealsCached"], second["dealsCached"]) == (False, True)
    assert first["deals"] == second["deals"]
    assert second["tokensConsumed"] == 5


def test_empty_page_past_the_end_costs_five(simulator: RunningSimulator) -> None:
    """The page after the last is empty, keeps the counts, and is not free."""
    reply = deal(simulator, page=50)

    assert reply["deals"]["dr"] == []
    assert sum(reply["deals"]["categoryCount"]) > 0
    assert reply["tokensConsumed"] == 5


def test_pages_do_not_repeat_and_add_up_to_the_count(simulator: RunningSimulator) -> None:
    """Page by page, each row comes once; their number is the category's count."""
    pages = [deal(simulator, page=page)["deals"] for page in range(8)]
    asins = [row["asin"] for page in pages for row in page["dr"]]
    books = pages[0]["categoryCount"][pages[0]["categoryIds"].index(283155)]

    assert len(set(asins)) == len(asins)
    assert abs(len(asins) - books) <= 3


@pytest.mark.parametrize(
    ("parameters", "cost"),
    [
        ({}, 1),
        ({"stats": 90, "history": 0, "days": 30}, 1),
        ({"buybox": 1}, 3),
        ({"update": 0}, 2),
        ({"update": 1000}, 1),
    ],
)
def test_product_price(simulator: RunningSimulator, parameters: dict[str, int], cost: int) -> None:
    """Statistics are free; buy box and a forced update are not."""
    rows = deal(simulator)["deals"]["dr"]
    # Updated an hour ago or earlier, so update=0 has an effect.
    asin = rows[-1 - cost]["asin"]
    reply = get(simulator, "/product", domain=1, asin=asin, **parameters).json()

    assert reply["tokensConsumed"] == cost
    assert [product["asin"] for product in reply["products"]] == [asin]


def test_offers_replace_the_base_price(simulator: RunningSimulator) -> None:
    """Six tokens per page of ten offers found, five at least."""
    asins = [row["asin"] for row in deal(simulator)["deals"]["dr"][:100]]
    reply = get(simulator, "/product", domain=1, asin=",".join(asins), offers=20, stock=1).json()
    pages = [-(-len(product["offers"]) // 10) for product in reply["products"]]

    assert reply["tokensConsumed"] == sum(max(5, 6 * count) + 2 for count in pages)
    assert set(pages) <= {0, 1, 2}
    assert len(set(pages)) > 1


def test_product_agrees_with_its_deal(simulator: RunningSimulator) -> None:
    """The history of a product ends with the values of its deal."""
    row = deal(simulator)["deals"]["dr"][3]
    parameters = {"asin": row["asin"], "domain": 1, "stats": 90, "offers": 20}
    product = get(simulator, "/product", **parameters).json()["products"][0]

    for price_type in (0, 1, 2, 3, 4):
        history = product["csv"][price_type] or [-1, -1]
        assert history[-1] == row["current"][price_type]
        assert history[-2] == row["currentSince"][price_type]
    assert product["lastUpdate"] == row["lastUpdate"]
    assert product["stats"]["current"][:34] == row["current"]
    assert product["productType"] == 0


def test_unknown_asin_has_product_type_4(simulator: RunningSimulator) -> None:
    """The reply marks an ASIN without a product, and it costs tokens."""
    reply = get(simulator, "/product", domain=1, asin="B0ZZZZZZZZ").json()

    assert reply["products"][0]["productType"] == 4
    assert reply["tokensConsumed"] == 1


def test_product_is_found_by_its_code(simulator: RunningSimulator) -> None:
    """The EAN of a product leads back to it."""
    asin = deal(simulator)["deals"]["dr"][0]["asin"]
    product = get(simulator, "/product", domain=1, asin=asin).json()["products"][0]
    found = get(simulator, "/product", domain=1, code=product["eanList"][0]).json()

    assert [it["asin"] for it in found["products"]] == [asin]


@pytest.mark.parametrize(
    ("path", "parameters", "cost"),
    [
        ("/query", {"selection": '{"current_NEW_gte": 1000, "perPage": 250}'}, 13),
        ("/category", {"category": 283155}, 1),
        ("/search", {"type": "category", "term": "book"}, 10),
        ("/search", {"term": "lamp"}, 10),
        ("/bestsellers", {"category": 283155}, 50),
    ],
)
def test_other_prices(
    simulator: RunningSimulator, path: str, parameters: dict[str, Any], cost: int
) -> None:
    """The remaining requests have Keepa's prices."""
    reply = get(simulator, path, domain=1, **parameters)

    assert reply.status_code == 200
    assert reply.json()["tokensConsumed"] == cost


def test_finder_filters_and_sorts(simulator: RunningSimulator) -> None:
    """Found products fulfil the selection and have its order."""
    selection = {
        "current_USED_gte": 1000,
        "current_USED_lte": 4000,
        "rootCategory": ["283155"],
        "sort": [["current_USED", "desc"]],
        "perPage": 60,
    }
    found = get(simulator, "/query", domain=1, selection=json.dumps(selection)).json()
    asins = ",".join(found["asinList"])
    products = get(simulator, "/product", domain=1, asin=asins).json()["products"]
    prices = [product["csv"][2][-1] for product in products]

    assert len(prices) == 60 < found["totalResults"]
    assert all(1000 <= price <= 4000 for price in prices)
    assert prices == sorted(prices, reverse=True)
    assert {product["rootCategory"] for product in products} == {283155}


def test_finder_refuses_what_it_can_not_do(simulator: RunningSimulator) -> None:
    """The error names a filter that is not simulated."""
    reply = get(simulator, "/query", domain=1, selection='{"returnRate": 1}')

    assert reply.status_code == 400
    assert "returnRate" in reply.json()["error"]["details"]


def test_refusal_is_the_bare_envelope(start_simulator: StartSimulator) -> None:
    """Without tokens a call gets 429 without an error object, and costs nothing."""
    broke = start_simulator(initial_tokens=-249, tick_seconds=3600)
    reply = get(broke, "/deal", selection=json.dumps(BOOKS))
    tokens = get(broke, "/token")

    assert reply.status_code == 429
    assert "Retry-After" not in reply.headers
    assert reply.json().keys() == ENVELOPE
    assert reply.json()["tokensLeft"] == -249
    assert (tokens.status_code, tokens.json()["tokensLeft"]) == (200, -249)
    assert json.loads(broke.calls()[0]["selection"]) == BOOKS
    assert broke.stats()["throttled"] == broke.stats()["accounts"][0]["refused_calls"] == 1


def test_envelopes_name_the_next_tick(start_simulator: StartSimulator) -> None:
    """Timestamp + processingTimeInMs + refillIn is one of equally spaced ticks."""
    fast = start_simulator(tick_seconds=0.25, rate=3, initial_tokens=1, latency="0-60")
    balances: dict[int, int] = {}

    def has_five_ticks() -> bool:
        reply = get(fast, "/token").json()
        tick_ms = reply["timestamp"] + reply["processingTimeInMs"] + reply["refillIn"]
        balances[tick_ms] = reply["tokensLeft"]
        return len(balances) >= 5

    wait_until(has_five_ticks, "five ticks")
    distinct = sorted(balances)

    assert all((tick - distinct[0]) % 250 == 0 for tick in distinct)
    for before, after in pairwise(distinct):
        assert balances[after] - balances[before] == 3 * (after - before) // 250


def test_log_accounts_for_every_token(start_simulator: StartSimulator) -> None:
    """Calls carry the balances before and after, and add up to the statistics."""
    simulator = start_simulator(rate=100, tick_seconds=3600)
    rows = deal(simulator)["deals"]["dr"]
    get(simulator, "/product", domain=1, asin=f"{rows[0]['asin']},{rows[1]['asin']}")
    calls = simulator.calls()
    stats = simulator.stats()

    assert [(call["path"], call["consumed"]) for call in calls] == [("/deal", 5), ("/product", 2)]
    assert [call["before"] - call["after"] for call in calls] == [5, 2]
    assert calls[1]["asins"] == [rows[0]["asin"], rows[1]["asin"]]
    assert calls[0]["rows"] == [
        [1, row["asin"], row["lastUpdate"], row["creationDate"]] for row in rows
    ]
    assert json.loads(calls[0]["selection"]) == BOOKS
    assert stats["spent"] == 7
    assert stats["balance"] == stats["opening"] - 7
    assert simulator.calls(since=1) == calls[1:]
    assert simulator.api_key not in json.dumps([calls, stats])


def test_deals_keep_coming_at_speed(start_simulator: StartSimulator) -> None:
    """At sixty times the speed, new deals appear within seconds."""
    fast = start_simulator(deal_speed=60, cache_seconds=0, rate=1000)
    first = {row["asin"]: row["lastUpdate"] for row in deal(fast)["deals"]["dr"]}

    def has_new_deals() -> bool:
        new = {row["asin"] for row in deal(fast)["deals"]["dr"]} - first.keys()
        return len(new) >= 3

    wait_until(has_new_deals, "three new deals")


def test_each_key_has_its_own_account(start_simulator: StartSimulator) -> None:
    """Spending of one key leaves the other's balance; their ticks differ."""
    simulator = start_simulator(api_key=["alpha" * 13, "omega" * 13], tick_seconds=3600)
    get(simulator, "/category", key="alpha" * 13, domain=1, category=283155)
    first, second = simulator.stats()["accounts"]

    assert (first["spent"], second["spent"]) == (1, 0)
    assert first["refill_in_ms"] != second["refill_in_ms"]


def test_plan_can_change(start_simulator: StartSimulator) -> None:
    """One request changes rate, flow reduction, foreign spending or balance."""
    simulator = start_simulator(rate=5, tick_seconds=3600)
    simulator.change_account(rate=60, token_flow_reduction=1.5, spend=40)
    reply = get(simulator, "/token").json()
    simulator.change_account(balance=-10)
    stats = simulator.stats()

    assert (reply["refillRate"], reply["tokenFlowReduction"]) == (60, 1.5)
    assert reply["tokensLeft"] == 300 - 40
    assert (stats["balance"], stats["foreign"], stats["spent"]) == (-10, 310, 0)


def test_a_killed_simulator_goes_on_from_its_files(
    start_simulator: StartSimulator, tmp_path: Path
) -> None:
    """An outage of Keepa keeps the bucket, the charges and the deals that there were."""
    files = {"state": tmp_path / "state.json", "journal": tmp_path / "calls.jsonl"}
    simulator = start_simulator(
        rate=20, tick_seconds=3600, deal_speed=0.001, products=100, deals=10, **files
    )
    page = {"key": simulator.api_key, "selection": json.dumps({**BOOKS, "priceTypes": [1]})}
    first = requests.get(f"{simulator.base_url}/deal", params=page, timeout=60).json()
    simulator.change_account(spend=7)
    before, calls = simulator.stats(), simulator.calls()
    simulator.process.kill()
    simulator.process.wait()
    # Its last line was cut off.
    with files["journal"].open("a") as journal:
        journal.write('{"seq": ')
    simulator.start_again()
    after = simulator.stats()

    assert simulator.calls() == calls
    counted = ("spent", "foreign", "balance", "refilled", "calls", "start_ms")
    assert {name: after[name] for name in counted} == {name: before[name] for name in counted}
    assert (after["spent"], after["foreign"]) == (first["tokensConsumed"], 7)
    again = requests.get(f"{simulator.base_url}/deal", params=page, timeout=60).json()
    assert again["deals"] == first["deals"]
    assert [call["seq"] for call in simulator.calls()] == [1, 2]


def test_a_simulator_that_goes_on_is_ready_once_it_has_caught_up(
    start_simulator: StartSimulator, tmp_path: Path
) -> None:
    """The first call would wait for all events since the start, and the others behind it."""
    began_ms = int(time.time() * 1000)
    start_ms = began_ms - 20 * 3_600_000
    state = tmp_path / "state.json"
    state.write_text(json.dumps({"start_ms": start_ms, "accounts": {}}))
    stats = start_simulator(products=1_000, deals=400, seed=1, state=state).stats()
    went_on = Catalogue(seed=1, domain=1, products=1_000, deals=400, speed=1.0, start_ms=start_ms)
    counts = set()
    for now_ms in range(began_ms, stats["time_ms"] + 20, 20):
        went_on.advance(now_ms)
        counts.add(len(went_on.deals))

    assert stats["start_ms"] == start_ms
    assert stats["deals"]["1"] in counts
    # The number at the start.
    assert 400 not in counts
