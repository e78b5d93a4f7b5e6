"""Log lines for what a person should know of, taken from changes in the ledger's sums."""

import structlog

from broker.core.ledger import Ledger

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Notices:
    """Compares the ledger with what it was, after every step."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._expiries = self._unknown = self._refusals = 0
        self._foreign_tokens = self._refill_rate = 0

    def look(self) -> None:
        """Log what has changed since the last look."""
        totals = self._ledger.totals
        if totals.expiries > self._expiries:
            log.warning("lease expired: its client fell silent", total=totals.expiries)
        if totals.unknown_outcomes > self._unknown:
            log.warning("a call's cost is unknown", total=totals.unknown_outcomes)
        if totals.refusals > self._refusals:
            log.warning("Keepa refused a call (HTTP 429)", total=totals.refusals)
        self._expiries, self._unknown = totals.expiries, totals.unknown_outcomes
        self._refusals = totals.refusals
        self._look_at_keepa()

    def _look_at_keepa(self) -> None:
        foreign_tokens = self._ledger.drift.foreign_tokens
        if foreign_tokens > self._foreign_tokens:
            spent = foreign_tokens - self._foreign_tokens
            log.warning("somebody else spends with this key", tokens=spent, total=foreign_tokens)
        self._foreign_tokens = foreign_tokens
        seen = self._ledger.bucket.observation
        if seen is not None and seen.envelope.refill_rate != self._refill_rate:
            self._refill_rate = seen.envelope.refill_rate
            log.info("Keepa's plan", refill=self._refill_rate, capacity=seen.envelope.capacity)
