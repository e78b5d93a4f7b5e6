"""Which of several brokers leads: one row in a database, and no clock but one's own.

Rule 1: no I/O and no clock. The edge runs an `Attempt` on the row, one at a time, and
        reports what the row is afterwards, or that the attempt failed.
Rule 2: a leader trusts itself for `ttl_ms` from the start of the attempt that took or
        renewed the row. A failed or late renewal concedes at once.
Rule 3: a standby looks `LOOKS_PER_TTL` times in a TTL. It takes another broker's row only
        after it has stood unchanged for one interval more than a TTL has, and only if it
        is unchanged still (compare and swap). A clock that jumps forward, as after a
        suspension, can fake one interval; the others last as long as any leader trusts
        itself.
Rule 4: every take raises the epoch, also that of the broker's own row.

No two clocks are compared: neither those of two brokers nor a broker's and the database's.
The method is that of Kubernetes' client-go (tools/leaderelection): a candidate times with
its own clock how long the record has not changed.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

RENEWALS_PER_TTL: Final = 3
# How soon a standby sees that a leader has handed over; also the pause after a failure.
LOOKS_PER_TTL: Final = 8
# The holder of a row that its leader has handed over.
FREE: Final = ""


@dataclass(frozen=True, slots=True)
class Row:
    """The row of one account.

    `holder` is unique per process start, or `FREE`; `renewals` differs after every
    renewal within an epoch; `address` is where clients reach the leader, if it is known.
    """

    epoch: int
    holder: str
    renewals: int
    address: str = ""


class Action(Enum):
    """What an attempt does to the row."""

    # Reads it.
    LOOK = "look"
    # Takes it if it is still as seen.
    TAKE = "take"
    # Prolongs it if it is still this broker's.
    RENEW = "renew"
    # Gives it up if it is still this broker's.
    RELEASE = "release"


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """One statement to run on the row; each is a different one, whatever it holds.

    `seen` is the row that TAKE replaces, None if there was none; `epoch` is the new
    epoch for TAKE, at least, and the present one for RENEW and RELEASE. The edge gives
    up after `timeout_ms`.
    """

    action: Action
    started_ms: int
    timeout_ms: int
    seen: Row | None = None
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Term:
    """A time as leader; `continues` if this broker led the epoch before it, too."""

    epoch: int
    continues: bool


class Elector:
    """One broker's part in the election.

    Args:
        holder: Unique per process start.
        ttl_ms: How long a leader trusts itself after an attempt began.
        epoch_min: The least epoch, larger than all that brokers without a database used.
        looks: How often a standby looks in a TTL.
        sole: There is no other broker: take the row at once, and keep leading while the
            database is away. Once another broker has taken it, elect as usual.
    """

    def __init__(
        self,
        holder: str,
        *,
        ttl_ms: int,
        epoch_min: int = 1,
        looks: int = LOOKS_PER_TTL,
        sole: bool = False,
    ) -> None:
        assert holder != FREE
        assert ttl_ms >= max(looks, RENEWALS_PER_TTL)
        self.holder = holder
        self.term: Term | None = None
        # The row as last read; None if there was none, or none has been read.
        self.row: Row | None = None
        self.sole = sole
        self._ttl_ms = ttl_ms
        self._renew_ms = ttl_ms // RENEWALS_PER_TTL
        # Rounded up, so that all of them together are no shorter than the TTL.
        self._look_ms = -(-ttl_ms // looks)
        self._looks = looks
        self._epoch_min = epoch_min
        self._attempt: Attempt | None = None
        self._trusted_until_ms = 0
        self._due_ms = 0
        # Intervals through which another broker's row has stood unchanged.
        self._quiet = 0
        # The row is this broker's, handed over or missing: no broker leads by it.
        self._is_open = False
        self._last_epoch: int | None = None
        self._leaving = False

    # --- what is so ----------------------------------------------------------

    def leading(self, now_ms: int) -> int | None:
        """The epoch in which this broker leads now; None if it does not."""
        if self.term is None or (now_ms >= self._trusted_until_ms and not self.sole):
            return None
        return self.term.epoch

    @property
    def leader_address(self) -> str:
        """Where the leader is reached, as last read; empty if that is not known."""
        if self.row is None or self.row.holder in {FREE, self.holder}:
            return ""
        return self.row.address

    def next_ms(self) -> int | None:
        """When to call `begin`, or to look at `leading` again; None: after the attempt."""
        times = [] if self._attempt is not None or self._leaving else [self._due_ms]
        if self.term is not None and not self.sole:
            times.append(self._trusted_until_ms)
        return min(times, default=None)

    # --- attempts ------------------------------------------------------------

    def begin(self, now_ms: int) -> Attempt | None:
        """The attempt to run now; None if one is under way or none is due."""
        self._concede_if_late(now_ms)
        if self._attempt is not None or self._leaving or now_ms < self._due_ms:
            return None
        # A renewal's answer is of no use once the trust has ended.
        timeout_ms = self._ttl_ms - self._renew_ms
        if self.term is not None:
            self._attempt = Attempt(Action.RENEW, now_ms, timeout_ms, epoch=self.term.epoch)
        elif self._may_take:
            epoch = max(self._epoch_min, 0 if self.row is None else self.row.epoch + 1)
            self._attempt = Attempt(Action.TAKE, now_ms, timeout_ms, self.row, epoch)
        else:
            self._attempt = Attempt(Action.LOOK, now_ms, self._renew_ms)
        return self._attempt

    def answered(self, attempt: Attempt, row: Row | None, now_ms: int, *, done: bool) -> None:
        """*attempt* has run, and *row* is the row as it is since, None if there is none.

        *done* is whether it was this very attempt that wrote *row*: an earlier one, given
        up as failed, may have been carried out since, at an unknown moment.
        """
        if attempt is not self._attempt:
            return
        self._attempt = None
        self._concede_if_late(now_ms)
        renewing = attempt.action is Action.RENEW and self.term is not None
        if row is not None and done and (renewing or attempt.action is Action.TAKE):
            self._trust(attempt, row, now_ms)
            return
        if renewing:
            self.term = None
            # Another broker has taken the row of the only one: it is not alone.
            self.sole = False
        self._note(row, now_ms)

    def failed(self, attempt: Attempt, now_ms: int) -> None:
        """*attempt* gave no answer in time; whether it ran, or will yet, is not known."""
        if attempt is not self._attempt:
            return
        self._attempt = None
        if not self.sole:
            self.term = None
        self._is_open = False
        self._due_ms = now_ms + self._look_ms

    def leave(self, now_ms: int) -> Attempt | None:
        """Concedes for good; returns the attempt that hands the row over, if it is held."""
        epoch = self.leading(now_ms)
        self._leaving = True
        self.term = self._attempt = None
        if epoch is None:
            return None
        self._attempt = Attempt(Action.RELEASE, now_ms, self._renew_ms, epoch=epoch)
        return self._attempt

    # --- steps ---------------------------------------------------------------

    @property
    def _may_take(self) -> bool:
        return self._is_open or self._quiet > self._looks

    def _trust(self, attempt: Attempt, row: Row, now_ms: int) -> None:
        self.row = row
        self._is_open, self._quiet = False, 0
        self._trusted_until_ms = attempt.started_ms + self._ttl_ms
        if attempt.action is Action.TAKE:
            # The row that was replaced was the one by which this broker led last.
            continues = attempt.seen is not None and attempt.seen.epoch == self._last_epoch
            self.term = Term(row.epoch, continues)
            self._last_epoch = row.epoch
        self._due_ms = attempt.started_ms + self._renew_ms
        self._concede_if_late(now_ms)

    def _note(self, row: Row | None, now_ms: int) -> None:
        """Takes *row* as the present one; it is not held by this broker's term."""
        unchanged = row is not None and row == self.row
        self._quiet = self._quiet + 1 if unchanged else 0
        self.row = row
        self._is_open = row is None or row.holder in {FREE, self.holder} or self.sole
        self._due_ms = now_ms + self._look_ms
        if self._may_take:
            self._due_ms = now_ms

    def _concede_if_late(self, now_ms: int) -> None:
        if self.term is not None and self.leading(now_ms) is None:
            self.term = None
            self._due_ms = now_ms
