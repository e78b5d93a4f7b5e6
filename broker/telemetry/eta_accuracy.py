"""The accuracy of ETAs: compares a sample of them with the moments of service."""

from collections.abc import Callable, Iterable

from broker.core.allocator import Allocator

# Takes the errors, in ms, of the first ETA and of the last corrected one.
Listener = Callable[[int, int], None]


class Promises:
    """Samples the requests that wait at some moment, until the last of them is served."""

    def __init__(self, listeners: Iterable[Listener]) -> None:
        self._listeners = listeners
        # Predicted moments of the broker's clock, by lease_id.
        self._first: dict[str, int] = {}
        self._last: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._last)

    def keep_score(self, allocator: Allocator, now_ms: int) -> None:
        """Reports the requests served since the last call; due after every step."""
        if not self._last:
            return
        for lease_id in [i for i in self._last if i not in allocator.waitlist]:
            first_ms, last_ms = self._first.pop(lease_id), self._last.pop(lease_id)
            if allocator.ledger.lease(lease_id) is not None:
                for listener in self._listeners:
                    listener(abs(now_ms - first_ms), abs(now_ms - last_ms))

    def renew(self, allocator: Allocator, now_ms: int) -> None:
        """Corrects the ETAs of the sample; takes the first in line as a new one if it is empty."""
        is_new = not self._last
        for lease_id, eta_ms in allocator.etas_ms(now_ms, allocator.first_in_line()).items():
            if eta_ms is not None and (is_new or lease_id in self._last):
                self._first.setdefault(lease_id, now_ms + eta_ms)
                self._last[lease_id] = now_ms + eta_ms
