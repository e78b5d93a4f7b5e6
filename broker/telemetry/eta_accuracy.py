"""How good ETAs are: a sample of them, held against the moments of service."""

from collections.abc import Callable

from broker.core.allocator import Allocator

# Takes the errors, in ms: of the ETA as told at first, and as corrected last.
Listener = Callable[[int, int], None]


class Promises:
    """Watches everybody who waits at some moment until the last of them is served."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        # Moments of the broker's clock, by lease_id.
        self._first: dict[str, int] = {}
        self._last: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._last)

    def keep_score(self, allocator: Allocator, now_ms: int) -> None:
        """Tell of those who have been served since the last look; due after every step."""
        for lease_id in [i for i in self._last if i not in allocator.waitlist]:
            first_ms, last_ms = self._first.pop(lease_id), self._last.pop(lease_id)
            if allocator.ledger.lease(lease_id) is not None:
                self._listener(abs(now_ms - first_ms), abs(now_ms - last_ms))

    def renew(self, allocator: Allocator, now_ms: int) -> None:
        """Correct the ETAs of those watched; watch the first in line if none is."""
        anybody = not self._last
        for lease_id, eta_ms in allocator.etas_ms(now_ms, allocator.first_in_line()).items():
            if eta_ms is not None and (anybody or lease_id in self._last):
                self._first.setdefault(lease_id, now_ms + eta_ms)
                self._last[lease_id] = now_ms + eta_ms
