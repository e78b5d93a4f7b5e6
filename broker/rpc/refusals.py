"""Trailing metadata of a refusal: tells the broker's own word from a lost connection."""

from enum import StrEnum
from typing import Final

# Present on every error that the broker itself raised; the value is a short slug.
REASON_KEY: Final = "tokenbroker-reason"


class Refusal(StrEnum):
    """Why a caller was not let in."""

    NO_CREDENTIALS = "no_credentials"
    UNKNOWN_TOKEN = "unknown_token"  # noqa: S105 - a reason, no token
    UNKNOWN_CERTIFICATE = "unknown_certificate"
    WRONG_ROLE = "wrong_role"
    FOREIGN_LEASE = "foreign_lease"
