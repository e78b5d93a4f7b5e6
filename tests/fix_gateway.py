"""Gateways within the test process: real broker, real simulator, real channels and sockets."""

import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from broker.core.allocator import AllocatorConfig
from deploy.local.ports import free_port
from deploy.local.program import Program
from fetcher.gateway.server import Places, running
from fetcher.gateway.settings import GatewaySettings
from tests.fix_broker import READY_TIMEOUT_S, environment
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


class GatewayProcess:
    """A gateway process that a test can reach.

    Args:
        program: The process.
        url: Where it serves Keepa's API.
        http_url: Where it serves metrics and health.
    """

    def __init__(self, program: Program, url: str, http_url: str) -> None:
        self.program = program
        self.url = url
        self.http_url = http_url

    def metrics(self) -> str:
        """The present metrics as text."""
        with urlopen(f"{self.http_url}/metrics", timeout=60) as reply:
            return str(reply.read().decode())

    def tokens(self) -> Counter[str]:
        """Tokens spent by identity, over all endpoints."""
        found: Counter[str] = Counter()
        for family in text_string_to_metric_families(self.metrics()):
            if family.name == "keepagateway_spent_tokens":
                for sample in family.samples:
                    if sample.name.endswith("_total"):
                        found[sample.labels["identity"]] += round(sample.value)
        return found

    def is_ready(self) -> bool:
        """Whether it serves, and reaches the broker."""
        try:
            with urlopen(f"{self.http_url}/readyz", timeout=60) as reply:
                return bool(reply.status == HTTPStatus.OK)
        except OSError:
            return False


@contextmanager
def launch_gateway(
    simulator: RunningSimulator, broker_address: str, *, folder: Path, **settings: object
) -> Iterator[GatewayProcess]:
    """Runs a gateway process on free ports until the context ends."""
    api, http = (f"127.0.0.1:{free_port()}" for _ in range(2))
    given = {
        "gateway_listen": api,
        "gateway_http_listen": http,
        "broker_address": broker_address,
        "keepa_base_url": simulator.base_url,
        "keepa_api_key": simulator.api_key,
        **settings,
    }
    program = Program(
        "gateway",
        [sys.executable, "-m", "fetcher.gateway", "serve"],
        environment=environment(**given),
        log_path=folder / f"gateway-{api.rpartition(':')[2]}.log",
        folder=folder,
    )
    gateway = GatewayProcess(program.start(), f"http://{api}", f"http://{http}")
    try:
        program.await_ready(gateway.is_ready, READY_TIMEOUT_S)
        yield gateway
    finally:
        program.stop()
