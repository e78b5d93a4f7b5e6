"""Live pages: server-sent events with the parts that may have changed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

# A proxy closes connections that are silent for long.
HEARTBEAT_S: Final = 15.0
# More open streams than these are refused, so that no visitor uses up the process.
STREAMS_MAX: Final = 100


class LiveParts:
    """Streams of one page; all end when the server stops."""

    def __init__(self, render: Callable[[web.Request], Awaitable[str]]) -> None:
        self._render = render
        self._open: set[asyncio.Task[object]] = set()

    async def serve(
        self, request: web.Request, wait: Callable[[], Awaitable[object]]
    ) -> web.StreamResponse:
        """Sends the parts now and after each *wait*, if they differ from the last ones sent."""
        if len(self._open) >= STREAMS_MAX:
            raise web.HTTPServiceUnavailable(text="too many live pages are open\n")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            shown = ""
            while True:
                parts = await self._render(request)
                # A comment keeps the connection open.
                await response.write(b":\n\n" if parts == shown else event(parts))
                shown = parts
                await wait()
        except ConnectionResetError:
            return response
        finally:
            self._open.discard(task)

    async def close(self, _application: web.Application) -> None:
        """Ends all streams."""
        for task in list(self._open):
            task.cancel()


def event(parts: str) -> bytes:
    """Returns the event with the HTML *parts*; each of its lines is a line of data."""
    lines = "".join(f"data: {line}\n" for line in parts.splitlines() if line)
    return f"event: parts\n{lines}\n".encode()
