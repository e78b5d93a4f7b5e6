"""The last hours of the bucket, in memory: what the chart of the broker's page shows.

Bounded in number, so that it costs the same after a year. After a restart, Keepa's counts of
the last hours come from the journal, if there is one.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
from markupsafe import Markup

from broker.core.snapshot import BucketView
from broker.runtime import BrokerRuntime
from protos.postgres.errors import DatabaseError
from protos.web.charts import Mark, Point, Series, step_chart

if TYPE_CHECKING:
    from broker.journal.journal import Journal

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Six hours at a sample each ten seconds, an hour where something changes every second.
SAMPLES_MAX: Final = 4_000
MARKS_MAX: Final = 2_000
SAMPLE_EVERY_S: Final = 10.0
SAMPLE_S_MIN: Final = 1.0
RECALLED_MS: Final = 6 * 3_600_000
RECALLED_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Sample:
    """The bucket at a moment, in Unix seconds and tokens."""

    time_s: float
    balance: int
    reserved: int


class TokenSeries:
    """Samples of one runtime, and what happened between them."""

    def __init__(self, runtime: BrokerRuntime) -> None:
        self._runtime = runtime
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)
        self._marks: deque[Mark] = deque(maxlen=MARKS_MAX)
        self._last: BucketView | None = None
        self.recalled = asyncio.Event()

    async def follow(self) -> None:
        """Takes samples until cancelled: at changes, but not more often than each second."""
        if self._runtime.journal is not None:
            await self._recall(self._runtime.journal)
        self.recalled.set()
        while True:
            self.take(self._runtime.bucket(), time.time())
            with self._runtime.watching() as changed:
                await asyncio.sleep(SAMPLE_S_MIN)
                try:
                    await asyncio.wait_for(changed.wait(), SAMPLE_EVERY_S - SAMPLE_S_MIN)
                except TimeoutError:
                    continue

    async def _recall(self, journal: "Journal") -> None:
        try:
            counts = await journal.ask(
                lambda reader: reader.counts(since_ms=RECALLED_MS, most=RECALLED_MAX)
            )
        except DatabaseError as exc:
            log.info("the chart begins anew: the journal can't be read", reason=str(exc))
            return
        for time_ms, left in counts:
            self._samples.append(Sample(time_ms / 1000, left, 0))
            self._marks.append(Mark(time_ms / 1000, left, "seen", f"Keepa counts {left}"))

    def take(self, view: BucketView, now_s: float) -> None:
        """Takes one sample at *now_s*, in Unix seconds."""
        before, self._last = self._last, view
        if view.observation is None:
            return
        self._samples.append(Sample(now_s, view.balance, view.reserved))
        if before is None or before.observation is not view.observation:
            seen_s = now_s - (view.observation_age_ms or 0) / 1000
            left = view.observation.envelope.tokens_left
            foreign = 0 if before is None else view.foreign_tokens - before.foreign_tokens
            if foreign > 0:
                words = f"{foreign} tokens spent by others; Keepa counts {left}"
                self._marks.append(Mark(seen_s, left, "foreign", words))
            else:
                self._marks.append(Mark(seen_s, left, "seen", f"Keepa counts {left}"))
        if before is not None and _has_ticked(before, view):
            since_ms = max(0.0, view.refill_period_ms - (view.next_refill_ms or 0))
            landed_s = now_s - since_ms / 1000
            words = f"refill of {view.refill_rate} tokens"
            self._marks.append(Mark(landed_s, None, "refill", words))

    def chart(self, now_s: float) -> Markup:
        """Draws the last hours up to *now_s*."""
        samples = list(self._samples)
        if not samples:
            return step_chart([], title="Tokens", until_s=now_s)
        first_s = samples[0].time_s
        lines = [
            Series("projected balance", [Point(each.time_s, each.balance) for each in samples]),
            Series("reserved", [Point(each.time_s, each.reserved) for each in samples]),
        ]
        marks = [mark for mark in self._marks if mark.time_s >= first_s]
        balances = [each.balance for each in samples]
        foreign = sum(mark.kind == "foreign" for mark in marks)
        return step_chart(
            lines,
            title="Tokens over the last hours",
            until_s=now_s,
            marks=marks,
            words=[
                f"Balance {min(balances)} to {max(balances)}, now {balances[-1]}.",
                f"{sum(mark.kind == 'refill' for mark in marks)} refills,",
                f"{sum(mark.kind != 'refill' for mark in marks)} counts by Keepa,",
                f"{foreign} of them with spending by others.",
            ],
        )


def _has_ticked(before: BucketView, view: BucketView) -> bool:
    """Whether the countdown has begun anew; small corrections of it are no tick."""
    if before.next_refill_ms is None or view.next_refill_ms is None:
        return False
    return view.next_refill_ms - before.next_refill_ms > view.refill_period_ms / 4
