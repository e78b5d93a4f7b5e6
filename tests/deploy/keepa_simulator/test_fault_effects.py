"""The effects of faults on a client."""

import json
import threading
import time
from collections.abc import Iterator

import pytest
import requests

from tests.fix_simulator import RunningSimulator, StartSimulator, launch_simulator
from tests.waiting import wait_until

SELECTION = json.dumps({"domainId": 1, "priceTypes": [1], "dateRange": 3, "sortType": 4})


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[RunningSimulator]:
    """One simulator for all faults of calls."""
    running = launch_simulator(rate=1000, tick_seconds=3600, cache_seconds=0)
    yield running
    running.stop()


@pytest.fixture
def simulator(shared_simulator: RunningSimulator) -> Iterator[RunningSimulator]:
    """The shared simulator; the end of a test clears its faults."""
    yield shared_simulator
    shared_simulator.clear_faults()


def deal(simulator: RunningSimulator, timeout_s: float = 30) -> requests.Response:
    """Requests a page of deals."""
    return requests.get(
        f"{simulator.base_url}/deal",
        {"key": simulator.api_key, "selection": SELECTION},
        timeout=timeout_s,
    )


def spent_by(simulator: RunningSimulator, fault: str) -> int:
    """Sets *fault*, makes a call that may fail, and returns its cost."""
    before = int(simulator.stats()["spent"])
    simulator.set_fault(fault)
    with pytest.raises(requests.RequestException):
        deal(simulator, timeout_s=3)
    return int(simulator.stats()["spent"]) - before


def test_server_error_is_free_and_has_the_envelope(simulator: RunningSimulator) -> None:
    """A 503 carries error and envelope; the next call succeeds."""
    simulator.set_fault("error:status=503,count=1")
    before = simulator.stats()["spent"]
    bad, good = deal(simulator), deal(simulator)

    assert (bad.status_code, good.status_code) == (503, 200)
    assert bad.json()["error"]["type"] == "internalServerError"
    assert bad.json()["tokensConsumed"] == 0
    assert simulator.stats()["spent"] - before == 5


def test_error_may_come_with_status_200(simulator: RunningSimulator) -> None:
    """A body can hold an error object although the status is 200."""
    simulator.set_fault("error:status=200")
    reply = deal(simulator)

    assert reply.status_code == 200
    assert "error" in reply.json()


def test_throttle_storm_costs_nothing(simulator: RunningSimulator) -> None:
    """A 429 despite available tokens is the bare envelope."""
    simulator.set_fault("throttle:count=1")
    reply = deal(simulator)

    assert reply.status_code == 429
    assert reply.json()["tokensLeft"] > 0
    assert "error" not in reply.json()


@pytest.mark.parametrize("fault", ["reset", "timeout", "cut:at=0.4"])
def test_lost_reply_was_paid_for(simulator: RunningSimulator, fault: str) -> None:
    """A reset, a hang and a cut body cost the tokens and bring no reply."""
    assert spent_by(simulator, fault) == 5
    # A hanging call ends once the server has noticed the disconnect.
    wait_until(lambda: not simulator.calls()[-1]["delivered"], "the call's end")


def test_garbage_is_no_json(simulator: RunningSimulator) -> None:
    """The status is 200, the body is a web page."""
    simulator.set_fault("garbage")
    reply = deal(simulator)

    assert reply.status_code == 200
    with pytest.raises(requests.JSONDecodeError):
        reply.json()


def test_delay_and_drip_take_their_time(simulator: RunningSimulator) -> None:
    """A late reply and a slow one arrive completely."""
    simulator.set_fault("latency:ms=150")
    simulator.set_fault("drip:ms=200")
    started = time.monotonic()
    reply = deal(simulator).json()
    elapsed_s = time.monotonic() - started

    assert elapsed_s > 0.3
    assert reply["processingTimeInMs"] >= 150
    assert len(reply["deals"]["dr"]) == 150


def test_skew_moves_the_timestamp_alone(simulator: RunningSimulator) -> None:
    """A skewed clock shifts every timestamp, but refillIn stays right."""
    simulator.set_fault("skew:ms=-3600000")
    reply = deal(simulator).json()

    assert abs(reply["timestamp"] + 3_600_000 - time.time() * 1000) < 60_000


def test_order_can_be_ignored(simulator: RunningSimulator) -> None:
    """With the fault, rows have no order, as for an unknown sortType."""

    def drops() -> list[int]:
        return [row["deltaPercent"][3][1] for row in deal(simulator).json()["deals"]["dr"]]

    sorted_drops = drops()
    simulator.set_fault("unsorted")
    others = drops()

    assert sorted_drops == sorted(sorted_drops, reverse=True)
    assert others != sorted(others, reverse=True)


def test_another_client_uses_the_key(start_simulator: StartSimulator) -> None:
    """Foreign spending follows its schedule and has a count of its own."""
    simulator = start_simulator(
        rate=100,
        tick_seconds=3600,
        fault=["foreign:tokens=9,every=0.05,count=4", "jump:tokens=50"],
    )
    wait_until(lambda: simulator.stats()["foreign"] == 4 * 9 - 50, "all foreign spending")
    stats = simulator.stats()

    assert stats["balance"] == 6_000 - stats["foreign"]


@pytest.mark.parametrize("charge_at", ["start", "end"])
def test_two_clients_share_a_key(start_simulator: StartSimulator, charge_at: str) -> None:
    """64 calls at once: admitted while the balance is above zero, then refused; no token lost."""
    simulator = start_simulator(
        rate=1, initial_tokens=42, tick_seconds=3600, latency="300", charge_at=charge_at
    )
    replies: list[requests.Response] = []
    gate = threading.Barrier(64)

    def client() -> None:
        gate.wait()
        replies.append(deal(simulator))

    threads = [threading.Thread(target=client) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ran = [reply.json() for reply in replies if reply.status_code == 200]
    refused = [reply.json() for reply in replies if reply.status_code == 429]
    late = deal(simulator)
    stats = simulator.stats()
    # Charged at the start, 8 calls leave 2 tokens, which admit the 9th. Charged at the end,
    # calls run until one has ended, so their number depends on timing.
    admitted = range(9, 10) if charge_at == "start" else range(9, 65)

    assert len(ran) + len(refused) == 64
    assert len(ran) in admitted
    assert all(reply["tokensLeft"] <= 0 < len(reply) == 7 for reply in refused)
    assert all(reply["tokensConsumed"] == 0 for reply in refused)
    assert late.status_code == 429
    assert stats["balance"] == 42 - 5 * len(ran) == late.json()["tokensLeft"] < 0
    assert stats["throttled"] == len(refused) + 1
