"""When the bucket runs dry or full, if spending goes on as it did lately."""

from collections import deque
from dataclasses import dataclass
from typing import Final

# Long enough to level out single batches, short enough to follow a change of load.
WINDOW_MS: Final = 15 * 60_000
# Less time than this shows no pace.
WINDOW_MS_MIN: Final = 60_000
# One sample for each such time; 61 of them span the window.
SAMPLE_MS: Final = 15_000
HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Outlook:
    """The future of the bucket at the pace of the last *window_ms*.

    Paces in tokens per hour, delays in ms from now. `dry_ms` is the time until nothing is
    available, `full_ms` until refills are lost; None: that will not happen.
    """

    window_ms: int
    spent_per_hour: float
    refilled_per_hour: float
    dry_ms: int | None
    full_ms: int | None


class Pace:
    """Samples of all that has been spent so far."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int]] = deque()
        # When the next sample is due; None: at once.
        self.due_ms: int | None = None

    def note(self, spent_tokens: int, now_ms: int) -> None:
        """Takes in that *spent_tokens* have been spent since the start.

        Between two calls nothing may have been spent that the second one shows.
        """
        if self.due_ms is not None and now_ms < self.due_ms:
            return
        self.due_ms = now_ms + SAMPLE_MS
        samples = self._samples
        samples.append((now_ms, spent_tokens))
        # The newest of the samples before the window shows what was spent up to its start.
        while len(samples) > 1 and samples[1][0] <= now_ms - WINDOW_MS:
            samples.popleft()

    def outlook(
        self,
        spent_tokens: int,
        now_ms: int,
        *,
        balance: int,
        available: int,
        capacity: int,
        refill_per_ms: float,
    ) -> Outlook | None:
        """What becomes of the bucket; None until a minute has been counted.

        Args:
            spent_tokens: All that has been spent since the start.
            now_ms: The broker's clock.
            balance: Tokens in the bucket.
            available: Tokens of them that could be granted.
            capacity: Most tokens that refills can reach.
            refill_per_ms: Tokens that refills bring on average.
        """
        before = [sample for sample in self._samples if sample[0] <= now_ms - WINDOW_MS]
        if before:
            from_ms, from_tokens = now_ms - WINDOW_MS, before[-1][1]
        elif self._samples:
            from_ms, from_tokens = self._samples[0]
        else:
            return None
        window_ms = now_ms - from_ms
        if window_ms < WINDOW_MS_MIN:
            return None
        # What was taken for others' spending may turn out to be a call's own.
        spent_per_ms = max(0, spent_tokens - from_tokens) / window_ms
        gain_per_ms = refill_per_ms - spent_per_ms
        dry_ms = full_ms = None
        if available <= 0:
            dry_ms = 0
        elif gain_per_ms < 0:
            dry_ms = round(available / -gain_per_ms)
        if balance >= capacity:
            full_ms = 0
        elif gain_per_ms > 0:
            full_ms = round((capacity - balance) / gain_per_ms)
        return Outlook(window_ms, spent_per_ms * HOUR_MS, refill_per_ms * HOUR_MS, dry_ms, full_ms)
