"""Writes the ledger's events to the log."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

import structlog

from broker.core.bucket import CAPACITY_TICKS
from broker.core.events import Event, EventKind

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

WARNINGS: Final = {
    EventKind.EXPIRED: "lease expired: no renewal came",
    EventKind.COST_UNKNOWN: "a call's cost is unknown",
    EventKind.REFUSED: "Keepa refused a call (HTTP 429)",
}
# Holder and reason are logged once each; a caller can invent any number of holders.
IMPLAUSIBLE_MAX: Final = 1_000


class Notices:
    """Logs events; those of one step and kind share a line."""

    def __init__(self) -> None:
        self._totals: Counter[EventKind] = Counter()
        self._foreign_tokens = 0
        self._implausible: set[tuple[str, str]] = set()

    def log(self, events: Iterable[Event]) -> None:
        """Logs the events of one step."""
        noticed = set()
        for event in events:
            self._totals[event.kind] += 1
            if event.kind in WARNINGS:
                noticed.add(event.kind)
            elif event.kind is EventKind.IMPLAUSIBLE:
                self._log_implausible(event)
            elif event.kind is EventKind.FOREIGN_SPEND:
                self._foreign_tokens += event.tokens
                log.warning(
                    "other programs spend tokens of this key",
                    tokens=event.tokens,
                    total=self._foreign_tokens,
                )
            else:
                capacity = CAPACITY_TICKS * event.tokens
                log.info("Keepa's plan", refill=event.tokens, capacity=capacity)
        for kind in noticed:
            log.warning(WARNINGS[kind], total=self._totals[kind])

    def _log_implausible(self, event: Event) -> None:
        reason = "" if event.doubt is None else event.doubt.value
        key = (event.holder, reason)
        if key not in self._implausible and len(self._implausible) < IMPLAUSIBLE_MAX:
            self._implausible.add(key)
            log.warning(
                "a reported balance does not fit Keepa's count; a probe decides"
                " (logged once for each holder and reason)",
                holder=event.holder,
                reason=reason,
            )
