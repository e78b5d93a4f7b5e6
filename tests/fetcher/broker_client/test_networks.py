"""The client on networks that are slow, silent or torn."""

import logging
import threading
import time
from typing import Any

import grpc
import pytest
from grpc import _channel

from fetcher.broker_client import BrokerAwayError, BrokerClient
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from tests.fetcher.scripted_broker import ScriptedBroker, until
from tests.fix_broker_client import Stage, hold, in_background
from tests.fix_proxy import StartProxy

WAIT_S = 90.0


def test_a_lease_is_taken_over_a_slow_connection(stage: Stage, start_proxy: StartProxy) -> None:
    """Setting it up may take longer than the pauses between tries."""
    broker = stage.broker()
    proxy = start_proxy(broker.address, delay_s=1.5)
    hold(stage.client_at(proxy.address), max_wait_s=WAIT_S)
    until(lambda: len(broker.servicer.settles) == 1)

    assert proxy.connections == 1


def test_the_log_names_the_cause_of_an_absence(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """And so does the error."""
    broker = stage.broker()
    broker.stop()
    client = stage.client(broker)
    with (
        caplog.at_level(logging.WARNING, "fetcher.broker_client"),
        pytest.raises(BrokerAwayError, match="Connection refused"),
    ):
        hold(client, max_wait_s=4.0)
    lines = [line for line in caplog.messages if "waiting for it" in line]

    assert len(lines) == len(set(lines)) > 0
    assert f"no broker answers at {broker.address}: " in lines[0]


def test_a_cut_wait_comes_back_under_its_id(
    stage: Stage, start_proxy: StartProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker keeps its place for it; the log blames the connection, not the broker."""
    tries: list[pb.AcquireLeaseRequest] = []

    def wait_once(request: pb.AcquireLeaseRequest, context: grpc.ServicerContext) -> None:
        tries.append(request)
        while len(tries) == 1 and context.is_active():
            time.sleep(0.01)

    broker = stage.broker(ScriptedBroker(on_acquire=wait_once))
    proxy = start_proxy(broker.address)
    client = stage.client_at(proxy.address)
    with caplog.at_level(logging.WARNING, "fetcher.broker_client"):
        thread, errors = in_background(lambda: hold(client))
        until(lambda: len(tries) == 1)
        proxy.cut()
        thread.join(WAIT_S)

    assert errors == []
    assert len({request.lease_id for request in tries}) == 1
    assert any("connection to the broker" in line and "broke" in line for line in caplog.messages)


@pytest.mark.slow
def test_a_black_hole_is_noticed_within_half_a_minute(
    stage: Stage, start_proxy: StartProxy
) -> None:
    """With the options as they are: a wait is begun anew on a new connection."""
    tries: list[float] = []

    def wait_once(_request: object, context: grpc.ServicerContext) -> None:
        tries.append(time.monotonic())
        while len(tries) == 1 and context.is_active():
            time.sleep(0.01)

    broker = stage.broker(ScriptedBroker(on_acquire=wait_once))
    proxy = start_proxy(broker.address)
    client = stage.client_at(proxy.address)
    thread, errors = in_background(lambda: hold(client))
    until(lambda: len(tries) == 1)
    silent_s = time.monotonic()
    proxy.swallow()
    thread.join(120)

    assert errors == []
    # Promised is half a minute; a busy machine may be late.
    assert tries[1] - silent_s < 45


def test_a_client_closes_only_once_grpc_watches_its_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine gRPC's thread begins late; on a closed channel it would fail."""
    watch, ended = _channel._poll_connectivity, threading.Event()
    failures: list[threading.ExceptHookArgs] = []

    def watch_late(*arguments: Any) -> None:
        time.sleep(0.3)
        try:
            watch(*arguments)
        finally:
            ended.set()

    monkeypatch.setattr(_channel, "_poll_connectivity", watch_late)
    monkeypatch.setattr(threading, "excepthook", failures.append)
    BrokerClient("127.0.0.1:1").close()

    assert ended.wait(WAIT_S)
    assert failures == []
