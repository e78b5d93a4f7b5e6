"""A broker within the test process, reached over a real channel; a real simulator as its Keepa."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from pydantic import SecretStr

from broker.core.allocator import Allocator, AllocatorConfig
from broker.journal.journal import Journal
from broker.keepa_status import KeepaSync
from broker.rpc.layers import LayeredServer
from broker.rpc.pace import PacedCalls
from broker.rpc.service import TokenBrokerService
from broker.runtime import BrokerRuntime
from broker.telemetry.metrics import BrokerMetrics
from protos.channel import options
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.fix_simulator import RunningSimulator, launch_simulator

SYNC_TIMEOUT_S = 60.0
FINGERPRINT = "0123456789ab"
# A tick that comes soon, and one that no test lives to see.
SOON_S, NEVER_S = 1.0, 3600.0

Serve = Callable[[RunningSimulator, int], Awaitable["ServedBroker"]]


@dataclass(frozen=True)
class ServedBroker:
    """A broker within the test: its parts, and a stub that reaches it by network."""

    stub: Any
    address: str
    runtime: BrokerRuntime
    metrics: BrokerMetrics


@asynccontextmanager
async def running(
    simulator: RunningSimulator,
    *,
    key: str = "",
    config: AllocatorConfig | None = None,
    fingerprint: str = FINGERPRINT,
    journal: Journal | None = None,
) -> AsyncIterator[ServedBroker]:
    """Serves the account of *simulator*, or of *key* there, until the context ends."""
    config = config or AllocatorConfig(recovery_grace_ms=0)
    allocator = Allocator(config, epoch=7, started_ms=BrokerRuntime.now_ms())
    keepa = KeepaSync(simulator.base_url, SecretStr(key or simulator.api_key))
    runtime = BrokerRuntime(allocator, keepa, journal=journal)
    metrics = BrokerMetrics(runtime)
    layers = [PacedCalls(metrics.held_back)]
    server = LayeredServer(grpc.aio.server(options=options.SERVER), layers)
    service = TokenBrokerService(runtime, metrics, key_fingerprint=fingerprint)
    pb_grpc.add_TokenBrokerServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    runtime.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            stub = pb_grpc.TokenBrokerServiceStub(channel)
            yield ServedBroker(stub, f"127.0.0.1:{port}", runtime, metrics)
        finally:
            runtime.stop()
            await server.stop(0)
            keepa.close()


@asynccontextmanager
async def serving() -> AsyncIterator[Serve]:
    """Starts brokers, each synced with the balance it is given; all stop with the context."""
    async with AsyncExitStack() as stack:

        async def serve(simulator: RunningSimulator, balance: int) -> ServedBroker:
            simulator.clear_faults()
            simulator.change_account(balance=balance)
            broker = await stack.enter_async_context(running(simulator))
            await asyncio.wait_for(broker.runtime.synced.wait(), SYNC_TIMEOUT_S)
            return broker

        yield serve


def launch_keepa(tick_seconds: float) -> RunningSimulator:
    """A small Keepa that brings five tokens a tick."""
    return launch_simulator(rate=5, tick_seconds=tick_seconds, products=100, deals=10)


@pytest.fixture(scope="module")
def slow_keepa() -> Iterator[RunningSimulator]:
    """A Keepa with its next tick an hour away: only calls change the balance."""
    simulator = launch_keepa(NEVER_S)
    yield simulator
    simulator.stop()


@pytest.fixture(scope="module")
def quick_keepa() -> Iterator[RunningSimulator]:
    """A Keepa that ticks every second."""
    simulator = launch_keepa(SOON_S)
    yield simulator
    simulator.stop()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts brokers: a simulator and its balance make a synced broker."""
    async with serving() as serve:
        yield serve
