"""Callers with identities: the broker judges each by its own token."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
import requests

from fetcher.gateway.callers import NO_KEY, NOT_HERE
from fetcher.gateway.server import Places, running
from tests.fix_broker import RunningBroker, launch_broker
from tests.fix_certificates import Company, table
from tests.fix_gateway import gateway_settings, serving_gateway
from tests.fix_service import NEVER_S
from tests.fix_simulator import RunningSimulator, launch_simulator
from tests.waiting import DEADLINE_S, wait_until

CATEGORY = "/category?domain=1&category=0"


@dataclass(frozen=True)
class Office:
    """A gateway in TLS, its broker with identities, and the tokens of its callers."""

    keepa: RunningSimulator
    broker: RunningBroker
    places: Places
    tokens: dict[str, str]
    tls: ssl.SSLContext

    async def get(
        self, target: str, token: str = "", **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and text of a GET."""
        if token:
            headers["Authorization"] = f"Bearer {token}"
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.tls)) as http,
            http.get(self.places.api + target, headers=headers) as reply,
        ):
            return reply.status, dict(reply.headers), await reply.text()


@pytest.fixture(scope="module")
def keepa() -> Iterator[RunningSimulator]:
    """A Keepa that does not tick."""
    keepa = launch_simulator(rate=20, tick_seconds=NEVER_S, products=100, deals=10)
    yield keepa
    keepa.stop()


@pytest.fixture(scope="module")
async def office(
    keepa: RunningSimulator, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Office]:
    """The broker asks for certificates; the gateway's own has the role viewer."""
    folder: Path = tmp_path_factory.mktemp("office")
    company = Company(folder / "company")
    server, own = company.issue("broker", "127.0.0.1"), company.issue("gateway", "gateway.example")
    names = {"shop": "fetcher", "night": "fetcher", "anna": "viewer"}
    tokens = {name: company.token(name).read_text().strip() for name in names}
    tables = [table("gateway", "viewer", certificates=["gateway.example"])]
    tables += [table(name, role, token=tokens[name]) for name, role in names.items()]
    broker = launch_broker(
        keepa.base_url,
        keepa.api_key,
        folder=folder,
        name="broker",
        access=company.access(own),
        broker_tls_cert_file=server.cert,
        broker_tls_key_file=server.key,
        broker_tls_client_ca_file=company.ca,
        broker_identities_file=company.identities(tables),
        metrics_open=True,
    )
    tls = ssl.create_default_context(cafile=company.ca)
    settings = gateway_settings(
        keepa,
        broker_address=broker.address,
        broker_tls_ca_file=company.ca,
        broker_tls_client_cert_file=own.cert,
        broker_tls_client_key_file=own.key,
        gateway_tls_cert_file=server.cert,
        gateway_tls_key_file=server.key,
        gateway_cache="category=600",
    )
    try:
        async with running(settings) as places:
            yield Office(keepa, broker, places, tokens, tls)
    finally:
        broker.program.stop()


async def test_the_broker_counts_to_the_callers_identity(office: Office) -> None:
    """The identity is signed into the holder; key= and a bearer token are the same."""
    first, _, _ = await office.get(f"{CATEGORY}&key={office.tokens['shop']}&x=1")
    second, _, _ = await office.get(
        f"{CATEGORY}&x=2", office.tokens["shop"], **{"X-Holder": "a/b"}
    )
    holders = ('holder="shop/gateway"', 'holder="shop/a/b"')

    def are_counted() -> bool:
        metrics = requests.get(f"{office.broker.http_url}/metrics", timeout=DEADLINE_S).text
        return all(holder in metrics for holder in holders)

    assert (first, second) == (200, 200)
    # A reply may arrive before its settle has been taken.
    await asyncio.to_thread(wait_until, are_counted, "both holders")


async def test_only_fetchers_spend(office: Office) -> None:
    """No key, a stranger's and a viewer's: each is refused, and nothing goes to Keepa."""
    before = office.keepa.stats()["calls_by_path"].get("/category", 0)
    none = await office.get(f"{CATEGORY}&x=3")
    stranger = await office.get(f"{CATEGORY}&x=3", "a stranger's")
    viewer = await office.get(f"{CATEGORY}&x=3", office.tokens["anna"])
    status = await office.get("/token", office.tokens["anna"])

    assert (none[0], stranger[0], viewer[0], status[0]) == (400, 400, 402, 200)
    assert NO_KEY in none[2]
    assert "no identity's" in stranger[2]
    assert "anna has the role viewer" in viewer[2]
    assert office.keepa.stats()["calls_by_path"].get("/category", 0) == before


async def test_roles_do_not_share_cached_replies(office: Office) -> None:
    """A caller of the same role reads what another has paid for; one of another role does not."""
    paid = await office.get(f"{CATEGORY}&x=4", office.tokens["shop"])
    free = await office.get(f"{CATEGORY}&x=4", office.tokens["night"])
    viewer = await office.get(f"{CATEGORY}&x=4", office.tokens["anna"])
    stranger = await office.get(f"{CATEGORY}&x=4")

    assert paid[1]["X-Gateway-Source"] == "keepa"
    assert free[1]["X-Gateway-Source"].startswith("cache")
    assert free[2] == paid[2]
    assert (viewer[0], stranger[0]) == (402, 400)
    assert "categories" not in viewer[2] + stranger[2]


async def test_no_secret_shows(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither Keepa's key nor a caller's token is in a log line, a metric or an answer."""
    answers = [
        await office.get(f"{CATEGORY}&key={office.tokens['shop']}&x=5"),
        await office.get(f"/deal?key={office.keepa.api_key}"),
        await office.get("/deal?selection=x", office.tokens["anna"]),
    ]
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{office.places.http}/metrics") as reply,
    ):
        shown = await reply.text()
    captured = capsys.readouterr()
    shown += captured.out + captured.err + str(answers)

    assert 'identity="shop"' in shown
    assert "refused" in captured.out
    assert all(secret not in shown for secret in (office.keepa.api_key, *office.tokens.values()))


@pytest.mark.parametrize(("anyone", "expected"), [(False, 400), (True, 200)])
async def test_without_identities_other_machines_are_refused(
    *, keepa: RunningSimulator, anyone: bool, expected: int
) -> None:
    """Unless the operator allows it."""
    async with serving_gateway(
        keepa,
        gateway_listen="0.0.0.0:0",
        gateway_allow_plaintext=True,
        gateway_allow_anyone=anyone,
    ) as gateway:
        gateway.places = replace(
            gateway.places, api=gateway.places.api.replace("0.0.0.0", "127.0.0.1")
        )
        status, _, body = await gateway.get(f"{CATEGORY}&key=alice&x=6")

    assert status == expected
    assert (NOT_HERE in str(body)) != anyone
