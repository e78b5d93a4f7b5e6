"""The network between two parts: slow, reset, half-open or parted, and whole again."""

import asyncio

from tests.fix_proxy import CHUNK_BYTES, Proxy

POLL_S = 0.05


class Link(Proxy):
    """A proxy that counts what its faults have done to the traffic, as proof of each.

    Beside the faults of `Proxy`: `latency_s` delays every chunk, and while `parted` is
    true nothing passes; what was under way arrives afterwards, as with TCP.
    """

    def __init__(self, target: str) -> None:
        self.latency_s = 0.0
        self.parted = False
        # Chunks that a fault has delayed or swallowed, and connections that it has cut.
        self.delayed = 0
        self.held = 0
        self.swallowed = 0
        self.cuts = 0
        super().__init__(target)

    def heal(self) -> None:
        """Ends all faults."""
        self.latency_s, self.parted, self.silent = 0.0, False, False

    def reset(self) -> None:
        """Breaks every connection."""
        self.cuts += len(self._writers) // 2
        self.cut()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if self.latency_s:
                self.delayed += 1
                await asyncio.sleep(self.latency_s)
            self.held += self.parted
            while self.parted:  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(POLL_S)
            if number <= self._swallowed:
                self.swallowed += 1
                continue
            writer.write(chunk)
            await writer.drain()
        writer.transport.abort()
