"""A TCP proxy on loopback with the faults of real networks: slowness, silence, cuts."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

CHUNK_BYTES = 65_536
START_TIMEOUT_S = 60.0


class Proxy:
    """Passes connections on to *target*, host:port; its faults may change at any time.

    Args:
        target: Where connections lead.
        delay_s: Time before the first byte of a connection is passed on.
    """

    def __init__(self, target: str, *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        # Bytes of both directions vanish; connections stay open.
        self.silent = False
        self._swallowed = 0
        self.connections = 0
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def swallow(self) -> None:
        """Lets the bytes of the connections made so far vanish; later ones work."""
        self._swallowed = self.connections

    def cut(self) -> None:
        """Break every connection; new ones are taken."""
        self._run(self._cut())

    def close(self) -> None:
        """Break every connection and take no more."""
        self._loop.call_soon_threadsafe(self._server.close)
        self.cut()
        self._run(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_TIMEOUT_S)
        self._loop.close()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_TIMEOUT_S)

    async def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _cancel_all(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        with suppress(OSError):
            await asyncio.sleep(self.delay_s)
            onward, backward = await asyncio.open_connection(*self._target)
            self._writers |= {writer, backward}
            try:
                await asyncio.gather(
                    self._pass(reader, backward, number), self._pass(onward, writer, number)
                )
            finally:
                self._writers -= {writer, backward}
                backward.transport.abort()
        writer.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if not self.silent and number > self._swallowed:
                writer.write(chunk)
                await writer.drain()
        writer.transport.abort()


StartProxy = Callable[..., Proxy]


@pytest.fixture
def start_proxy() -> Iterator[StartProxy]:
    """A factory: ``start_proxy("127.0.0.1:50051", delay_s=1.3)``; all close with the test."""
    proxies: list[Proxy] = []

    def start(target: str, *, delay_s: float = 0.0) -> Proxy:
        proxies.append(Proxy(target, delay_s=delay_s))
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()
