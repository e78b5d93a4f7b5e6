"""When to ask Keepa for its count, and how long to be patient with it.

One probe at a time. A probe that is not answered in time, or fails, delays
nobody that the projection can serve.
"""

from typing import Final

PATIENCE_MS: Final = 2_000
RETRY_MS_MIN: Final = 1_000
RETRY_MS_MAX: Final = 30_000


class Probing:
    """State of the one probe; times in ms of the broker's clock."""

    def __init__(self) -> None:
        # Set while a decision rests on an answer.
        self.wanted = False
        self.probes = 0
        self.failures = 0
        self._since_ms: int | None = None
        self._retry_ms: int | None = None
        self._failures_in_a_row = 0

    @property
    def in_flight(self) -> bool:
        """Whether an answer is awaited."""
        return self._since_ms is not None

    def may_start(self, now_ms: int) -> bool:
        """Whether Keepa may be asked now."""
        return self._since_ms is None and (self._retry_ms is None or now_ms >= self._retry_ms)

    def is_worth_waiting_for(self, now_ms: int) -> bool:
        """Whether a decision should wait for the answer."""
        if self._since_ms is None:
            return self.may_start(now_ms)
        return now_ms - self._since_ms < PATIENCE_MS

    def retry_delay_ms(self, now_ms: int) -> int:
        """When to come back for a decision that awaited an answer in vain."""
        ends_ms = self._retry_ms
        if self._since_ms is not None:
            ends_ms = self._since_ms + PATIENCE_MS
        # Later than that, who comes back too soon only asks once more.
        return max(RETRY_MS_MIN, (ends_ms or 0) - now_ms)

    def started(self, now_ms: int) -> None:
        """A probe is on its way."""
        assert self._since_ms is None
        self._since_ms, self.wanted = now_ms, False
        self.probes += 1

    def answered(self) -> None:
        """Keepa's count has arrived."""
        self._since_ms = self._retry_ms = None
        self._failures_in_a_row = 0

    def failed(self, now_ms: int) -> None:
        """No count came; try again later, ever more rarely."""
        self._since_ms = None
        self.failures += 1
        backoff_ms = RETRY_MS_MIN << min(self._failures_in_a_row, 10)
        self._failures_in_a_row += 1
        self._retry_ms = now_ms + min(backoff_ms, RETRY_MS_MAX)

    def next_wake_ms(self, now_ms: int) -> int | None:
        """When patience ends, or when Keepa may be asked again."""
        due_ms = self._retry_ms
        if self._since_ms is not None:
            due_ms = self._since_ms + PATIENCE_MS
        return due_ms if due_ms is not None and due_ms > now_ms else None
