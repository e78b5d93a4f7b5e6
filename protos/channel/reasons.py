"""Why the broker refused a call: the trailing metadata of its errors, part of the contract.

A status alone does not show whether the broker, a proxy or the library gave the answer;
the key does. Clients decide by the reason and show the message.
"""

from enum import StrEnum
from typing import Final

import grpc

# On every error that the broker itself raised. The value is one of `Reason`, or, for
# SyncBucket, the kind of Keepa's failure.
REASON_KEY: Final = "tokenbroker-reason"
# Beside the reason `not_leader`: where the leader is reached, for people and their tools.
LEADER_KEY: Final = "tokenbroker-leader"


class Reason(StrEnum):
    """The broker's own reasons; the .proto lists them with their statuses."""

    INVALID_ARGUMENT = "invalid_argument"
    LEASE_NOT_FOUND = "lease_not_found"
    LEASE_CONFLICT = "lease_conflict"
    LEASE_ENDED = "lease_ended"
    LEASE_TOO_OLD = "lease_too_old"
    LIMIT_REACHED = "limit_reached"
    OTHER_KEY = "other_key"
    STOPPING = "stopping"
    NOT_LEADER = "not_leader"
    NO_CREDENTIALS = "no_credentials"
    UNKNOWN_TOKEN = "unknown_token"  # noqa: S105 - a reason, no token
    UNKNOWN_CERTIFICATE = "unknown_certificate"
    WRONG_ROLE = "wrong_role"
    FOREIGN_LEASE = "foreign_lease"
    NO_JOURNAL = "no_journal"
    JOURNAL_AWAY = "journal_away"


def reason_of(exc: grpc.RpcError) -> str:
    """Returns the broker's reason for *exc*; empty if the error is not the broker's own."""
    # The errors of both kinds of channel have it; their base class in gRPC has not.
    trailing = getattr(exc, "trailing_metadata", None)
    metadata = () if trailing is None else trailing() or ()
    return next((str(value) for key, value in metadata if key == REASON_KEY), "")
