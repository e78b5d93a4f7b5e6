"""The journal's vocabulary: what the core has decided and learned, one record each.

Rule 1: every change of the books has its record, in the order of the changes; what is
        put back in that order leads to the same books (replay.py).
Rule 2: a record costs one small object: it refers to the request or settlement as it came.
Rule 3: times are ms of the broker's clock; the edge translates them.
"""

from typing import Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from broker.core.bucket import Envelope
from broker.core.budgets import Budget
from broker.core.leases import LeaseRequest, Settlement


class Started(Struct):
    """An epoch begins; the holds that it takes over follow.

    It `continues` if the same process led the epoch before: then its books go on.
    """

    at_ms: int
    epoch: int
    lease_age_ms_max: int
    continues: bool = False


class Carried(Struct):
    """A hold of an earlier epoch that the journal remembers."""

    at_ms: int
    lease_id: str
    holder: str
    operation: str
    units: int
    tokens: int
    overrun: int
    granted_ms: int
    expires_ms: int
    lapsed: bool
    request: LeaseRequest | None
    proven: bool = True


class Waited(Struct):
    """A request could not be served at once; `reason` is what a denial would have given.

    `needs` is the price of the least that is useful, `asking` whether Keepa's count was
    being asked for.
    """

    at_ms: int
    request: LeaseRequest
    needs: int
    available: int
    reason: str
    asking: bool


class Granted(Struct):
    """A lease was granted, `waited_ms` after its request came."""

    at_ms: int
    request: LeaseRequest
    units: int
    tokens: int
    overrun: int
    expires_ms: int
    waited_ms: int
    proven: bool = True


class Denied(Struct):
    """A request was denied after `waited_ms`."""

    at_ms: int
    request: LeaseRequest
    reason: str
    retry_delay_ms: int | None
    waited_ms: int
    available: int


class Revoked(Struct):
    """A grant never reached its client: its tokens are free again."""

    at_ms: int
    lease_id: str
    holder: str
    operation: str
    units: int
    tokens: int
    granted_ms: int


class Renewed(Struct):
    """A heartbeat moved the end of a lease, or opened a lapsed one again."""

    at_ms: int
    lease_id: str
    holder: str
    expires_ms: int


class Adopted(Struct):
    """A lease that only its client remembers was taken over, from a heartbeat."""

    at_ms: int
    lease_id: str
    holder: str
    operation: str
    units: int
    tokens: int
    expires_ms: int


class Expired(Struct):
    """A lease's client fell silent; the hold stays."""

    at_ms: int
    lease_id: str
    holder: str


class Settled(Struct):
    """A lease was settled; the envelope in the settlement is what Keepa replied.

    `cost` is None while it is unknown, `doubt` why the envelope was not taken for Keepa's
    count. `charged` is what its hold was charged at `granted_ms`; None without a hold.
    """

    at_ms: int
    settlement: Settlement
    late: bool
    cost: int | None
    doubt: str | None
    granted_ms: int
    charged: int | None


class Abandoned(Struct):
    """A request was given up before its grant, or its grant never reached the client."""

    at_ms: int
    lease_id: str
    holder: str
    operation: str


class Observed(Struct):
    """A probe's answer; `taken` unless something later was known.

    `drift` is observed less predicted, `unexplained` what no cause explains of it, and
    `foreign` all spending of others so far in this epoch. `in_flight` is what the counts
    so far show as spent by calls that are held for; they show every charge of calls granted
    since `shows_since_ms`. With these a replay can begin here.
    """

    at_ms: int
    requested_ms: int
    envelope: Envelope
    taken: bool
    drift: int = 0
    unexplained: int = 0
    foreign: int = 0
    in_flight: int = 0
    shows_since_ms: int | None = None


class WrittenOff(Struct):
    """A lost call was given up; `cost` is what Keepa's count shows of it.

    If the bucket was full meanwhile, no count shows all of it: `unwitnessed` tokens of `cost`
    are the rest of its hold, an estimate.
    """

    at_ms: int
    lease_id: str
    holder: str
    operation: str
    units: int
    tokens: int
    cost: int
    granted_ms: int
    unwitnessed: int = 0


class Corrected(Struct):
    """A late settle replaces a write-off: `tokens` (negative) undo what was written off."""

    at_ms: int
    lease_id: str
    holder: str
    operation: str
    tokens: int


class Unrecorded(Struct):
    """Keepa's first count of an epoch shows *tokens* spent that no record explains.

    They went between the last record of the epoch before and that count. Negative once
    one of those calls is settled after all.
    """

    at_ms: int
    tokens: int


class Paused(Struct):
    """An operator stopped granting."""

    at_ms: int
    by: str = ""


class Resumed(Struct):
    """An operator resumed granting."""

    at_ms: int
    by: str = ""


class BudgetsChanged(Struct):
    """New limits apply."""

    at_ms: int
    budgets: tuple[Budget, ...]


class Led(Struct):
    """This process leads from now on, in the epoch given."""

    at_ms: int
    epoch: int
    holder: str


class Conceded(Struct):
    """This process leads no more."""

    at_ms: int
    epoch: int
    reason: str


class Lost(Struct):
    """So many records could not be kept, those between the two times."""

    at_ms: int
    number: int
    first_ms: int
    last_ms: int


Record: TypeAlias = (
    Started
    | Carried
    | Waited
    | Granted
    | Denied
    | Revoked
    | Renewed
    | Adopted
    | Expired
    | Settled
    | Abandoned
    | Observed
    | WrittenOff
    | Corrected
    | Unrecorded
    | Paused
    | Resumed
    | BudgetsChanged
    | Led
    | Conceded
    | Lost
)

MOMENTS: Final = (
    "at_ms",
    "granted_ms",
    "expires_ms",
    "requested_ms",
    "first_ms",
    "last_ms",
    "shows_since_ms",
)


def shifted(record: Record, by_ms: int) -> Record:
    """*record* with its moments on another clock, *by_ms* ahead; requests keep their own."""
    moments = {
        name: value + by_ms
        for name in MOMENTS
        if (value := getattr(record, name, None)) is not None
    }
    return replace(record, **moments)
