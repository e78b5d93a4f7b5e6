"""The HTTP port and visitors that speak no HTTP."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from aiohttp import web

from protos.process.addresses import Listen
from protos.web.serving import serving

SECRET = "s3cret-of-a-lost-client"


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A server with one route and a broken one."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="fine")

    async def fail(_request: web.Request) -> web.Response:
        raise ValueError("a bug")

    routes = web.Application()
    routes.router.add_get("/", answer)
    routes.router.add_get("/bug", fail)
    async with serving(
        routes, Listen("127.0.0.1", 0), setting="TEST_LISTEN", name="test"
    ) as listen:
        yield listen.port


async def say(port: int, text: bytes) -> bytes:
    """Everything that comes back on a connection that sends *text*."""

    def talk() -> bytes:
        received = b""
        with socket.create_connection(("127.0.0.1", port), 3) as connection:
            connection.sendall(text)
            # A request that is never complete gets no answer.
            with suppress(TimeoutError, ConnectionResetError):
                while chunk := connection.recv(4096):
                    received += chunk
        return received

    return await asyncio.to_thread(talk)


@pytest.mark.parametrize(
    "garbage",
    [
        f"{SECRET}\r\n\r\n",
        f"POST / HTTP/1.1\r\nContent-Length: {SECRET}\r\n\r\n",
        f"GET / HTTP/9.9\r\nAuthorization {SECRET}\r\n\r\n",
        f"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{SECRET}\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\nX: {'y' * 70_000}{SECRET}\r\n\r\n",
        f"\x16\x03\x01{SECRET}",
    ],
)
async def test_garbage_leaves_no_trace(
    port: int, garbage: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither the log nor the answer quotes it, and no traceback is written."""
    with caplog.at_level(logging.INFO):
        answer = await say(port, garbage.encode("latin-1"))
    written = caplog.text + "".join(capfd.readouterr())

    assert SECRET not in written
    assert "Traceback" not in written
    assert SECRET.encode() not in answer


@pytest.mark.parametrize("line", ["GET / HTTP/1.1", "GET /no HTTP/1.1", "GET /bug HTTP/1.1", "x"])
async def test_no_answer_names_a_version(port: int, line: str) -> None:
    """A version would show which published faults to try."""
    answer = (await say(port, f"{line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())).lower()

    assert answer.startswith(b"http/1.")
    assert b"python" not in answer
    assert b"aiohttp" not in answer
