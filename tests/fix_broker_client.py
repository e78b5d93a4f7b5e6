"""The fixture `stage`: brokers and clients for one test, and ways to make them misbehave."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from typing import Any

import grpc
import pytest

from fetcher.broker_client import (
    BrokerClient,
    Envelope,
)
from protos.channel.reasons import REASON_KEY
from tests.fetcher.async_face import ClientFace, Loop
from tests.fetcher.scripted_broker import RunningBroker, ScriptedBroker

ENVELOPE = Envelope(
    server_time_ms=1_758_325_044_347,
    processing_ms=2,
    tokens_left=28,
    tokens_consumed=5,
    refill_in_ms=38_816,
    refill_rate=5,
    token_flow_reduction=0.0,
)


DONE = object()


class Stage:
    """What a test needs: brokers and clients that are cleared away at its end."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make
        self._brokers: list[RunningBroker] = []
        self._clients: list[BrokerClient] = []

    def broker(self, servicer: ScriptedBroker | None = None, *, port: int = 0) -> RunningBroker:
        """Starts a broker."""
        broker = RunningBroker(servicer or ScriptedBroker(), port=port)
        self._brokers.append(broker)
        return broker

    def client(self, broker: RunningBroker, *, key_fingerprint: str = "") -> BrokerClient:
        """Connects a client to *broker*."""
        return self.client_at(broker.address, key_fingerprint=key_fingerprint)

    def client_at(self, address: str, **named: Any) -> BrokerClient:
        """Connects a client to *address*."""
        client: BrokerClient = self._make(address, **named)
        self._clients.append(client)
        return client

    def clear(self) -> None:
        """Stops everything."""
        for client in self._clients:
            client.close(timeout_s=0.1)
        for broker in self._brokers:
            broker.stop()


@pytest.fixture(scope="session")
def face_loop() -> Loop:
    """Where asyncio clients run."""
    return Loop()


@pytest.fixture(params=["blocking", "asyncio"])
def stage(request: pytest.FixtureRequest, face_loop: Loop) -> Iterator[Stage]:
    """Brokers and clients for one test, which runs against both kinds of client."""
    stage = Stage(BrokerClient if request.param == "blocking" else partial(ClientFace, face_loop))
    yield stage
    stage.clear()


def abort(
    code: grpc.StatusCode, reason: str = "", *, times: int | None = None
) -> Callable[[object, grpc.ServicerContext], None]:
    """A hook that fails every request, or the first *times*, with *code* and *reason*."""
    failures = repeat(None) if times is None else repeat(None, times)

    def hook(_request: object, context: grpc.ServicerContext) -> None:
        if next(failures, DONE) is DONE:
            return
        if reason:
            context.set_trailing_metadata(((REASON_KEY, reason),))
        context.abort(code, "as told")

    return hook


def in_background(task: Callable[[], object]) -> tuple[threading.Thread, list[Exception]]:
    """Runs *task* in a thread; its error ends up in the list."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            task()
        except Exception as exc:  # noqa: BLE001 - the test looks at whatever it was
            errors.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def hold(client: BrokerClient, *, max_wait_s: float | None = None) -> None:
    """Takes a lease and gives it back."""
    with client.lease("deal", tokens_per_unit=5, max_wait_s=max_wait_s):
        pass
