"""What a restarted broker takes over from the journal; times on its own clock."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from broker.core.drift import Cause
from broker.core.leases import Ended
from broker.core.ledger import Ledger
from broker.core.records import (
    Carried,
    Observed,
    Record,
    Unrecorded,
    WrittenOff,
)
from broker.core.replay import Replay


@dataclass(frozen=True, slots=True)
class PastCost:
    """A settled call, for the learned costs."""

    holder: str
    operation: str
    units: int
    tokens: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class PastCharge:
    """Tokens charged to the budgets at a time; a sum over calls."""

    holder: str
    operation: str
    tokens: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """The journal's end: open and lapsed leases, those that ended lately, costs, charges."""

    leases: tuple[Carried, ...] = ()
    ended: tuple[tuple[str, Ended], ...] = ()
    # Oldest first.
    costs: tuple[PastCost, ...] = ()
    charges: tuple[PastCharge, ...] = ()
    paused: bool = False
    # The last records, replayed; None if they hold no count of Keepa's.
    books: Replay | None = None


# A client repeats an unanswered settle for minutes.
REPEATED_MS_MAX: Final = 600_000


class Opening:
    """Compares Keepa's first count of an epoch with the books of the one before.

    The new ledger starts without a balance, so it can't see what went in between: calls
    that left no record, because their leader was lost with it, or charges of lost calls
    that the first count includes already. The replay of the old records can. It goes on with
    the new ones until that count has come; then:

    * what no record explains becomes one, `Unrecorded`, so that the books add up;
    * calls that this includes may still be settled: each then takes its part back;
    * the new ledger learns what the count shows of calls in flight, and since when counts
      show every call, so that it can write off those that are lost at what they have cost.

    Args:
        books: The replay of the epoch before.
        ledger: That of the new epoch.
    """

    def __init__(self, books: Replay, ledger: Ledger) -> None:
        self._books, self._ledger = books, ledger
        ledger.shows_since_ms = books.ledger.shows_since_ms
        self._foreign = books.ledger.drift.foreign_tokens
        # When the first count came.
        self._counted_ms: int | None = None
        self._left = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to find out."""
        return self._counted_ms is not None and self._left == 0

    def follow(self, made: Iterable[Record]) -> Iterator[Record]:
        """Yields *made*, the new epoch's records in order, and what follows from them."""
        for record in made:
            tokens = self._take(record)
            yield record
            if tokens:
                yield Unrecorded(record.at_ms, tokens)

    def _take(self, record: Record) -> int:
        if self._counted_ms is not None:
            return self._take_back(record, self._counted_ms)
        self._books.take(record)
        if isinstance(record, Observed) and record.taken:
            self._counted_ms = record.at_ms
            self._left = self._compare()
            self._ledger.note_unrecorded(self._left)
            # The next epoch's books may begin with this record.
            record.in_flight = self._ledger.drift.shown_in_flight
            record.shows_since_ms = self._ledger.shows_since_ms
            return self._left
        return 0

    def _compare(self) -> int:
        """Lets the new ledger learn what the count shows; returns what no record explains."""
        books, drift = self._books.ledger, self._books.ledger.drift
        self._ledger.drift.by_cause[Cause.IN_FLIGHT] = -drift.shown_in_flight
        self._ledger.shows_since_ms = books.shows_since_ms
        return max(0, drift.foreign_tokens - self._foreign)

    def _take_back(self, record: Record, counted_ms: int) -> int:
        """The part of what was not recorded that *record* explains, as a negative number."""
        if isinstance(record, WrittenOff) and record.at_ms == counted_ms:
            # In the same step, before the new ledger had learned anything.
            self._ledger.amend(record)
            return 0
        if record.at_ms > counted_ms + REPEATED_MS_MAX:
            self._left = self._ledger.unrecorded_tokens = 0
        part = self._left - self._ledger.unrecorded_tokens
        self._left -= part
        return -part
