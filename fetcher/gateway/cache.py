"""Replies that are repeated for free: in memory, bounded in size, by role."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cachetools import TLRUCache

from fetcher.gateway.asked import Asked
from fetcher.gateway.callers import Caller
from fetcher.gateway.reel import Head

# One reply may take this share of the cache.
ENTRY_SHARE: Final = 0.25
# The Python objects of an entry.
ENTRY_BYTES: Final = 2_048


@dataclass(frozen=True, slots=True)
class CachedReply:
    """A whole reply, and when it came, on the monotonic clock."""

    head: Head
    pieces: Sequence[bytes]
    read_s: float

    @property
    def age_s(self) -> float:
        """Its age in seconds."""
        return time.monotonic() - self.read_s

    @property
    def size_bytes(self) -> int:
        """What it takes of the cache."""
        return ENTRY_BYTES + sum(map(len, self.pieces))


class Cache:
    """Replies by role and request.

    Args:
        seconds: How long replies last, by endpoint; others are not kept.
        bytes_max: Most bytes of all replies.
    """

    def __init__(self, seconds: Mapping[str, int], bytes_max: int) -> None:
        self._seconds = seconds
        self._bytes_max = bytes_max
        self._replies: TLRUCache[tuple[str, ...], CachedReply] = TLRUCache(
            bytes_max,
            ttu=lambda key, _reply, now_s: now_s + seconds[key[1]],
            timer=time.monotonic,
            getsizeof=lambda reply: reply.size_bytes,
        )

    def entry_bytes_max(self, endpoint: str) -> int:
        """Most bytes of a reply that is kept; 0 where none is."""
        return int(self._bytes_max * ENTRY_SHARE) if self._seconds.get(endpoint) else 0

    def get(self, asked: Asked, caller: Caller) -> CachedReply | None:
        """Returns the reply to *asked* for callers of the same role."""
        if asked.method != "GET" or not self._seconds.get(asked.endpoint):
            return None
        return self._replies.get((caller.role, *asked.identical))

    def put(self, asked: Asked, caller: Caller, head: Head, pieces: Sequence[bytes]) -> None:
        """Keeps a reply, if its endpoint is one that is kept and it is not too large."""
        reply = CachedReply(head, tuple(pieces), time.monotonic())
        if asked.method == "GET" and reply.size_bytes <= self.entry_bytes_max(asked.endpoint):
            self._replies[(caller.role, *asked.identical)] = reply
