"""What a client does after an error, by the broker's reason, else by the status.

Both clients use it. No I/O.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

import grpc

from protos.channel.reasons import Reason, reason_of

Code = grpc.StatusCode


class Verdict(Enum):
    """What to do after a call has failed."""

    # The broker is away, restarting or busy: repeat the request until the deadline.
    AGAIN = "again"
    # Something is broken on the way or in the broker: repeat it a few times only.
    FEW_TIMES = "few_times"
    # The id has ended: repeat the request under a new one.
    NEW_ID = "new_id"
    # The broker counts for another key.
    OTHER_KEY = "other_key"
    # A person must act.
    REFUSED = "refused"


# Further tries of a call that fails with INTERNAL or UNKNOWN: a bug repeats itself.
BROKEN_TRIES_MAX: Final = 5

BY_REASON: Final[Mapping[str, Verdict]] = {
    Reason.STOPPING: Verdict.AGAIN,
    Reason.NOT_LEADER: Verdict.AGAIN,
    Reason.LEASE_ENDED: Verdict.NEW_ID,
    Reason.LEASE_TOO_OLD: Verdict.REFUSED,
    # The caller's other leases end in time.
    Reason.LIMIT_REACHED: Verdict.AGAIN,
    Reason.OTHER_KEY: Verdict.OTHER_KEY,
    Reason.LEASE_NOT_FOUND: Verdict.REFUSED,
    Reason.LEASE_CONFLICT: Verdict.REFUSED,
    Reason.INVALID_ARGUMENT: Verdict.REFUSED,
    Reason.NO_CREDENTIALS: Verdict.REFUSED,
    Reason.UNKNOWN_TOKEN: Verdict.REFUSED,
    Reason.UNKNOWN_CERTIFICATE: Verdict.REFUSED,
    Reason.WRONG_ROLE: Verdict.REFUSED,
    Reason.FOREIGN_LEASE: Verdict.REFUSED,
    Reason.NO_JOURNAL: Verdict.REFUSED,
    Reason.JOURNAL_AWAY: Verdict.AGAIN,
}
# For errors that the broker did not raise, or that a newer broker did.
BY_STATUS: Final[Mapping[grpc.StatusCode, Verdict]] = {
    Code.UNAVAILABLE: Verdict.AGAIN,
    Code.DEADLINE_EXCEEDED: Verdict.AGAIN,
    Code.CANCELLED: Verdict.AGAIN,
    Code.ABORTED: Verdict.AGAIN,
    Code.RESOURCE_EXHAUSTED: Verdict.AGAIN,
    Code.INTERNAL: Verdict.FEW_TIMES,
    Code.UNKNOWN: Verdict.FEW_TIMES,
}


def verdict(exc: grpc.RpcError) -> Verdict:
    """Returns what to do about *exc*."""
    return BY_REASON.get(reason_of(exc)) or BY_STATUS.get(exc.code(), Verdict.REFUSED)


def is_elsewhere(exc: grpc.RpcError, *, several: bool) -> bool:
    """Returns whether another broker may serve what failed with *exc*.

    With *several* addresses, also a broker that does not answer may have a successor at
    the next one. A connection to a single address is made anew by gRPC itself.
    """
    reason = reason_of(exc)
    if reason:
        return reason in {Reason.NOT_LEADER, Reason.STOPPING}
    return several and exc.code() in {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}


def is_worth_repeating(exc: grpc.RpcError, failures: int) -> bool:
    """Returns whether a renewal or settle that has failed *failures* times is sent again.

    UNAUTHENTICATED is repeated: the client's token may just be being replaced.
    """
    match verdict(exc):
        case Verdict.AGAIN:
            return True
        case Verdict.FEW_TIMES:
            return failures <= BROKEN_TRIES_MAX
        case _:
            return exc.code() is Code.UNAUTHENTICATED
