"""The answers to a client: a grant, or a denial with its reason."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from broker.core.leases import Lease


class BucketState(Enum):
    """Lifecycle of the bucket's owner."""

    SYNCING = "syncing"
    RECOVERING = "recovering"
    SERVING = "serving"
    PAUSED = "paused"


class DenialReason(Enum):
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
    DenialReason.BUDGET_EXHAUSTED: "the budget for this holder or operation is used up",
}


@dataclass(frozen=True, slots=True)
class Granted:
    """The lease is open."""

    lease: Lease
    waited_ms: int


@dataclass(frozen=True, slots=True)
class Denied:
    """No lease; `retry_delay_ms` is None when it is unknown."""

    lease_id: str
    reason: DenialReason
    retry_delay_ms: int | None
    largest_units: int
    message: str
