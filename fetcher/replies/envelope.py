"""The envelope: what Keepa says of its token bucket in every reply.

Pure, so that the broker client can be used without the rest of the fetcher.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeGuard

# The year 2201: a later server time is noise.
LATEST_MS = 7_293_840_000_000


@dataclass(frozen=True, slots=True)
class Envelope:
    """One reply's token fields, in Keepa's units (keepa-api.md, section 1).

    Times are milliseconds; *refill_rate* is the tokens that one tick brings;
    *refill_in_ms* counts from the end of processing.
    """

    timestamp_ms: int
    processing_ms: int
    tokens_left: int
    tokens_consumed: int
    refill_in_ms: int
    refill_rate: int
    token_flow_reduction: float

    @classmethod
    def from_body(cls, body: object) -> Self | None:
        """Read the envelope of a decoded reply; None when it has none.

        Without a balance and a server time there is no envelope; other fields
        may be missing and count as zero.
        """
        if not isinstance(body, Mapping):
            return None
        tokens_left, timestamp_ms = body.get("tokensLeft"), body.get("timestamp")
        if not (_is_integer(tokens_left) and _is_integer(timestamp_ms)):
            return None
        if not 0 < timestamp_ms <= LATEST_MS:
            return None
        return cls(
            timestamp_ms=timestamp_ms,
            processing_ms=max(0, _integer(body, "processingTimeInMs")),
            tokens_left=tokens_left,
            tokens_consumed=max(0, _integer(body, "tokensConsumed")),
            refill_in_ms=max(0, _integer(body, "refillIn")),
            refill_rate=max(0, _integer(body, "refillRate")),
            token_flow_reduction=_number(body, "tokenFlowReduction"),
        )

    @property
    def is_observation(self) -> bool:
        """Whether the balance may be believed: an unknown key answers all zeros."""
        return self.refill_rate > 0

    @property
    def server_time_ms(self) -> int:
        """Keepa's clock at the end of processing, in Unix milliseconds."""
        return self.timestamp_ms + self.processing_ms


# A 64-bit field on the wire to the broker; anything beyond is garbage.
_LARGEST = 2**53


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _integer(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    return value if _is_integer(value) else 0


def _number(body: Mapping[str, Any], name: str) -> float:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 <= value <= _LARGEST else 0.0
