"""The reply to one call, handed to all that asked for it: one writer, any number of readers.

Rule 1: the writer never holds more than `READER_BYTES_MAX` for a reader, and waits for the
slowest one; a reader that takes nothing for `STALL_S` is dropped.
Rule 2: what came first is kept up to a limit, so that a caller may join late.
Rule 3: without a reader the writer does not wait.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

READER_BYTES_MAX: Final = 256 * 1024
STALL_S: Final = 60.0


class BrokenReplyError(Exception):
    """The reply has broken off; what was read so far is not the whole."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of a reply; *encoding* is its Content-Encoding."""

    status: int
    headers: Mapping[str, str]
    encoding: str


class Reader:
    """One caller's place in a reply."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = deque(pieces)
        self._pending = sum(map(len, pieces))
        self._ended = False
        self._broken = False
        self._change = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether the writer has to wait."""
        return self._pending >= READER_BYTES_MAX

    def add(self, piece: bytes) -> None:
        """Takes a piece from the writer."""
        self._pieces.append(piece)
        self._pending += len(piece)
        self._change.set()

    def end(self, *, broken: bool) -> None:
        """Takes the end of the reply, or of this reader's share in it."""
        self._ended, self._broken = True, self._broken or broken
        self._change.set()

    async def pieces(self, taken: asyncio.Event) -> AsyncIterator[bytes]:
        """Yields the pieces as they come; sets *taken* at each.

        Raises:
            BrokenReplyError: The reply has broken off.
        """
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._pending -= len(piece)
                taken.set()
                yield piece
            if self._ended:
                break
            self._change.clear()
            await self._change.wait()
        if self._broken:
            raise BrokenReplyError


class Reel:
    """A reply on its way; *kept_bytes_max* is how much of it late readers can still get."""

    def __init__(self, kept_bytes_max: int) -> None:
        self._kept_bytes_max = kept_bytes_max
        self._kept_bytes = 0
        self._readers: set[Reader] = set()
        self._taken = asyncio.Event()
        self._ended = False
        # None once the reply has outgrown the limit.
        self.kept: list[bytes] | None = []

    @property
    def taken(self) -> asyncio.Event:
        """Set whenever a reader takes a piece."""
        return self._taken

    @property
    def is_joinable(self) -> bool:
        """Whether a new reader would get the whole reply, which has not ended yet.

        One that has ended is a cache's to repeat, if there is one.
        """
        return self.kept is not None and not self._ended

    def join(self) -> Reader:
        """Returns a new reader, from the reply's first byte on."""
        assert self.kept is not None
        reader = Reader(self.kept)
        self._readers.add(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        """Forgets a reader."""
        self._readers.discard(reader)
        self._taken.set()

    async def write(self, piece: bytes) -> None:
        """Hands *piece* to every reader, as soon as they have room."""
        if self.kept is not None:
            self._kept_bytes += len(piece)
            if self._kept_bytes > self._kept_bytes_max:
                self.kept = None
            else:
                self.kept.append(piece)
        for reader in self._readers:
            reader.add(piece)
        await self._room()

    def end(self, *, broken: bool = False) -> None:
        """Ends the reply for all readers."""
        self._ended = True
        for reader in self._readers:
            reader.end(broken=broken)

    async def _room(self) -> None:
        while any(reader.is_full for reader in self._readers):
            self._taken.clear()
            try:
                async with asyncio.timeout(STALL_S):
                    await self._taken.wait()
            except TimeoutError:
                for reader in [reader for reader in self._readers if reader.is_full]:
                    reader.end(broken=True)
                    self.leave(reader)
