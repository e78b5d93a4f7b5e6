"""The MCP server's tools, by the official client, over a real gateway."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from pydantic import SecretStr

from deploy.local.ports import free_port
from deploy.local.program import Program
from fetcher.gateway.mcp_server import Tools, server
from tests.fix_broker import environment
from tests.fix_gateway import ServedGateway, serving_gateway
from tests.fix_simulator import RunningSimulator
from tests.waiting import wait_until

TOOLS = {"find_deals", "product", "search", "best_sellers", "token_status", "explain_deal"}
LIMIT = 10


@pytest.fixture(scope="module")
async def gateway(simulator: RunningSimulator) -> AsyncIterator[ServedGateway]:
    """A gateway with a full bucket."""
    async with serving_gateway(simulator, balance=1200) as gateway:
        yield gateway


@pytest.fixture
async def tools(gateway: ServedGateway) -> Tools:
    """Tools with a limit of ten tokens."""
    return Tools(gateway.places.api, SecretStr("mcp"), LIMIT)


async def called(tools: Tools, name: str, **arguments: Any) -> dict[str, Any]:
    """The structured answer of a tool, by way of the protocol."""
    async with Client(server(tools), raise_exceptions=True) as client:
        result = await client.call_tool(name, arguments)
    answer: dict[str, Any] | None = result.structured_content
    assert answer is not None
    return answer


async def test_cheap_tools_spend_at_once(tools: Tools) -> None:
    """Deals and products come with what a model needs of them."""
    deals = await called(tools, "find_deals", price_type=2, drop_percent_min=10)
    products = await called(tools, "product", asins=["B000000000"])

    assert deals["tokensConsumed"] == 5
    assert isinstance(deals["deals"], list)
    assert products["tokensConsumed"] == 1
    assert "csv" not in products["products"][0]


async def test_dear_tools_name_their_cost_first(tools: Tools, gateway: ServedGateway) -> None:
    """Nothing is spent until the model repeats the cost."""
    before = gateway.broker.runtime.bucket().balance
    asked = await called(tools, "best_sellers", category=283155)
    unspent = gateway.broker.runtime.bucket().balance
    told = await called(
        tools, "best_sellers", category=283155, confirm_tokens=asked["cost_tokens"]
    )

    assert (asked["needs_confirmation"], asked["cost_tokens"], unspent) == (True, 50, before)
    assert told["tokensConsumed"] == 50


@pytest.mark.parametrize(
    ("name", "arguments", "cost"),
    [
        ("find_deals", {}, 5),
        ("product", {"asins": ["B000000000", "B00000000X"]}, 2),
        ("product", {"asins": ["B000000000"], "offers": 20}, 12),
        ("search", {"term": "collectors"}, 10),
        ("best_sellers", {"category": 283155}, 50),
    ],
)
async def test_each_tool_names_its_cost_above_the_limit(
    gateway: ServedGateway, name: str, arguments: dict[str, Any], cost: int
) -> None:
    """One token less than the cost spends nothing, neither as the limit nor as confirmed."""
    tools = Tools(gateway.places.api, SecretStr("mcp"), cost - 1)
    before = len(gateway.simulator.calls())
    asked = await called(tools, name, **arguments)
    again = await called(tools, name, **arguments, confirm_tokens=cost - 1)

    assert asked == again
    assert (asked["cost_tokens"], asked["spent_tokens"]) == (cost, 0)
    assert f"confirm_tokens={cost}" in asked["message"]
    assert len(gateway.simulator.calls()) == before


async def test_the_status_is_the_brokers(tools: Tools, gateway: ServedGateway) -> None:
    """It is free."""
    status = await called(tools, "token_status")

    assert status["tokensLeft"] == gateway.broker.runtime.bucket().balance


async def test_a_gateway_that_is_away_is_named() -> None:
    """The model gets a sentence, and no traceback."""
    answer = await called(Tools("http://127.0.0.1:1", SecretStr("mcp"), LIMIT), "token_status")

    assert "no answer from the gateway at http://127.0.0.1:1" in answer["error"]


async def test_the_command_speaks_over_stdio(gateway: ServedGateway) -> None:
    """A client starts it, lists the tools and calls one; without a database that is named."""
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "fetcher.gateway", "mcp"],
        env=environment(mcp_gateway_url=gateway.places.api),
    )
    async with Client(parameters) as client:
        listed = await client.list_tools()
        status = await client.call_tool("token_status", {})
        story = await client.call_tool("explain_deal", {"asin": "B000000000"})

    assert {tool.name for tool in listed.tools} == TOOLS
    assert status.structured_content is not None
    assert status.structured_content["refillRate"] == 20
    assert "DATABASE_URL" in str(story.structured_content)


async def test_the_command_speaks_over_http(gateway: ServedGateway, tmp_path: Path) -> None:
    """The official client lists the tools, gets a cost instead of a call, and spends it."""
    listen = f"127.0.0.1:{free_port()}"
    program = Program(
        "mcp",
        [sys.executable, "-m", "fetcher.gateway", "mcp", "--http"],
        environment=environment(mcp_gateway_url=gateway.places.api, mcp_listen=listen),
        log_path=tmp_path / "mcp.log",
        folder=tmp_path,
    ).start()
    try:
        await asyncio.to_thread(wait_until, lambda: is_listening(listen), "the server")
        async with Client(f"http://{listen}/mcp") as client:
            listed = await client.list_tools()
            asked = await client.call_tool("best_sellers", {"category": 283155})
            confirmed = {"category": 283155, "confirm_tokens": 50}
            sold = await client.call_tool("best_sellers", confirmed)
    finally:
        program.stop()

    assert {tool.name for tool in listed.tools} == TOOLS
    assert asked.structured_content is not None
    assert asked.structured_content["needs_confirmation"]
    assert sold.structured_content is not None
    assert sold.structured_content["tokensConsumed"] == 50


def is_listening(address: str) -> bool:
    """Whether something accepts connections at *address*."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:
        return False
