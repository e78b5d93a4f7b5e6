"""Gateways within the test process: real broker, real simulator, real channels and sockets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from pydantic import SecretStr

from broker.core.allocator import AllocatorConfig
from fetcher.gateway.server import Places, running
from fetcher.gateway.settings import GatewaySettings
from tests.fix_service import ServedBroker
from tests.fix_service import running as running_broker
from tests.fix_simulator import RunningSimulator


def gateway_settings(simulator: RunningSimulator, **settings: Any) -> GatewaySettings:
    """Settings of a gateway on free ports of this machine; nothing comes from elsewhere."""
    given = {
        "gateway_listen": "127.0.0.1:0",
        "gateway_http_listen": "127.0.0.1:0",
        "keepa_base_url": simulator.base_url,
        "keepa_api_key": SecretStr(simulator.api_key),
        **settings,
    }
    return GatewaySettings(_env_file=None, **given)


@dataclass
class ServedGateway:
    """A gateway within the test, its broker and Keepa, and a client for it."""

    simulator: RunningSimulator
    broker: ServedBroker
    places: Places
    http: aiohttp.ClientSession
    headers: dict[str, str] = field(default_factory=dict)

    async def get(self, target: str, **headers: str) -> tuple[int, Any, Any]:
        """Status, headers and decoded body of a GET."""
        async with self.http.get(f"{self.places.api}{target}", headers=headers) as reply:
            return reply.status, reply.headers, await reply.json()

    async def metrics(self) -> str:
        """The present metrics as text."""
        async with self.http.get(f"{self.places.http}/metrics") as reply:
            return await reply.text()


@asynccontextmanager
async def serving_gateway(
    simulator: RunningSimulator,
    *,
    balance: int | None = None,
    config: AllocatorConfig | None = None,
    **settings: Any,
) -> AsyncIterator[ServedGateway]:
    """Serves a gateway over a broker of its own until the context ends."""
    simulator.clear_faults()
    if balance is not None:
        simulator.change_account(balance=balance)
    async with running_broker(
        simulator, config=config, fingerprint=simulator.key_fingerprint
    ) as broker:
        await broker.runtime.synced.wait()
        given = gateway_settings(simulator, **{"broker_address": broker.address, **settings})
        async with running(given) as places, aiohttp.ClientSession() as http:
            yield ServedGateway(simulator, broker, places, http)
