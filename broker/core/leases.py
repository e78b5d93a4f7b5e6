"""Leases: tokens held for one call; what clients ask for and report, and the answers."""

from typing import Final

from msgspec import Struct

from broker.core.bucket import Envelope
from broker.core.evidence import Doubt
from broker.core.kinds import Kind


class Priority(Kind):
    """Class of a request; the value is its order among equals."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


class LeaseState(Kind):
    """Lifecycle of a hold."""

    OPEN = "open"
    # The client fell silent, or did not see what its call cost.
    LAPSED = "lapsed"
    # The cost is known, but the current observation may not include it.
    SETTLED = "settled"


# Before Python 3.12 every look at a member through its class is a call in Python.
OPEN: Final = LeaseState.OPEN
LAPSED: Final = LeaseState.LAPSED
SETTLED: Final = LeaseState.SETTLED


class Outcome(Kind):
    """How the call of a lease ended."""

    REPLIED = "replied"
    REFUSED = "refused"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"


REPLIED: Final = Outcome.REPLIED
REFUSED: Final = Outcome.REFUSED
NOT_SENT: Final = Outcome.NOT_SENT
UNKNOWN: Final = Outcome.UNKNOWN


class LeaseRequest(Struct, frozen=True):
    """What a client asks for.

    `units` is the most that is wanted, `min_units` the least that is useful (0:
    all or nothing), `tokens_per_unit` the caller's prior. Times in ms of the
    broker's clock; no `deadline_ms` means to wait as long as it takes. Past it the
    first answer still awaits Keepa's, but not beyond `answer_by_ms`: then the
    client would not get it any more.
    """

    lease_id: str
    holder: str
    operation: str
    units: int
    min_units: int
    tokens_per_unit: float
    priority: Priority
    ttl_ms: int
    deadline_ms: int | None = None
    answer_by_ms: int | None = None

    @property
    def least(self) -> int:
        """The smallest batch that is useful."""
        return self.min_units or self.units

    def repeats(self, other: "LeaseRequest") -> bool:
        """Whether this is *other* once more; waits and TTLs may differ."""
        return (self.holder, self.operation, self.units, self.min_units, self.priority) == (
            other.holder, other.operation, other.units, other.min_units, other.priority,
        )  # fmt: skip


class Lease(Struct, eq=False):
    """Tokens held for one call; times in ms of the broker's clock.

    `tokens` is the hold as granted, `cost` what the call really cost once that
    is known; `overrun` is by how much that may plausibly exceed the hold;
    `interval_ms` is the call's processing time on Keepa's clock, and
    `sent_after_ms` the earliest moment at which it may have been sent.
    """

    lease_id: str
    holder: str
    operation: str
    units: int
    tokens: int
    epoch: int
    granted_ms: int
    expires_ms: int
    sent_after_ms: int
    # None for a lease that an earlier epoch granted.
    request: LeaseRequest | None = None
    state: LeaseState = LeaseState.OPEN
    cost: int = 0
    overrun: int = 0
    # Enough calls have shown what such a call costs.
    proven: bool = True
    settled_ms: int = 0
    # When the ledger looks next whether it has expired; not later than `expires_ms`.
    timer_ms: int | None = None
    interval_ms: tuple[int, int] | None = None

    @property
    def held(self) -> int:
        """Tokens that it reserves now."""
        return self.cost if self.state is LeaseState.SETTLED else self.tokens


class Renewal(Struct, frozen=True):
    """A heartbeat, with all that a restarted broker needs to adopt the lease."""

    lease_id: str
    epoch: int
    holder: str
    operation: str
    units: int
    tokens: int
    ttl_ms: int


class Settlement(Struct, frozen=True):
    """What became of a lease's call.

    `units` as the call really asked for; `age_ms` is the time since the reply
    came in at the client, `call_ms` how long the call took there.
    """

    lease_id: str
    epoch: int
    holder: str
    operation: str
    units: int
    tokens: int
    outcome: Outcome
    envelope: Envelope | None = None
    age_ms: int = 0
    call_ms: int = 0


class Ended(Struct, frozen=True):
    """What is remembered of a lease that holds nothing any more.

    `written_off` is None for a settled lease, else what a lost call is taken
    to have cost; a late settle may still correct that, once, if its holder sends it. No count
    of Keepa's shows the `unwitnessed` part.
    """

    late: bool
    written_off: int | None = None
    holder: str = ""
    unwitnessed: int = 0


class Settled(Struct, frozen=True):
    """Answer to a settle.

    `cost_tokens` is None if the cost is (still) unknown or was counted before; `doubt`
    is why the reported envelope was not taken for Keepa's count, if it was not.
    """

    late: bool
    lease: Lease | None = None
    cost_tokens: int | None = None
    doubt: Doubt | None = None


class BucketState(Kind):
    """Lifecycle of the bucket's owner."""

    SYNCING = "syncing"
    RECOVERING = "recovering"
    SERVING = "serving"
    PAUSED = "paused"
    # Another broker leads, or none does at present.
    STANDBY = "standby"


SERVING: Final = BucketState.SERVING


class DenialReason(Kind):
    """Why a request was denied."""

    INSUFFICIENT_TOKENS = "insufficient_tokens"
    TOO_LARGE = "too_large"
    PAUSED = "paused"
    NOT_SYNCED = "not_synced"
    BUDGET_EXHAUSTED = "budget_exhausted"


MESSAGES: Final = {
    DenialReason.INSUFFICIENT_TOKENS: "{tokens} tokens are available, {needs} are needed",
    DenialReason.PAUSED: "an operator has paused granting",
    DenialReason.NOT_SYNCED: "the broker has only just started, or Keepa has not answered yet",
}


class Granted(Struct, frozen=True):
    """The lease is open."""

    lease: Lease
    waited_ms: int


class Denied(Struct, frozen=True):
    """No lease; `retry_delay_ms` is None when it is unknown."""

    lease_id: str
    reason: DenialReason
    retry_delay_ms: int | None
    largest_units: int
    message: str
