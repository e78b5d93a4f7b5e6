"""The envelope: the state of Keepa's token bucket in every reply.

Pure: the broker client uses it without the rest of the fetcher.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, TypeGuard

# The year 2201: a later server time is noise.
LATEST_MS = 7_293_840_000_000
# More than any account holds, or any tick or call takes: beyond it is noise. The broker's
# own bounds are not below these.
TOKENS_MAX = 1_000_000_000
DURATION_MS_MAX = 86_400_000


@dataclass(frozen=True, slots=True)
class Envelope:
    """One reply's token fields, in Keepa's units (keepa-api.md, section 1).

    Times are milliseconds. *server_time_ms* is Keepa's Unix clock when it began
    processing, *refill_in_ms* counts from the end of processing. *refill_rate* is the
    number of tokens per tick; 0 if the reply holds no balance.
    """

    server_time_ms: int
    processing_ms: int
    tokens_left: int
    tokens_consumed: int
    refill_in_ms: int
    refill_rate: int
    token_flow_reduction: float

    @classmethod
    def from_body(cls, body: object) -> Self | None:
        """Reads the envelope of a decoded reply; returns None if it has none.

        Without a balance and a server time there is no envelope. If another field is odd,
        the envelope holds no balance, as for the broker's own probe; the cost of the call
        is read all the same.
        """
        if not isinstance(body, Mapping):
            return None
        tokens_left, server_time_ms = body.get("tokensLeft"), body.get("timestamp")
        if not (_is_whole(tokens_left, -TOKENS_MAX, TOKENS_MAX)):
            return None
        if not _is_whole(server_time_ms, 1, LATEST_MS):
            return None
        processing_ms = _whole(body.get("processingTimeInMs", 0), DURATION_MS_MAX)
        tokens_consumed = _whole(body.get("tokensConsumed", 0), TOKENS_MAX)
        refill_in_ms = _whole(body.get("refillIn"), DURATION_MS_MAX)
        refill_rate = _whole(body.get("refillRate"), TOKENS_MAX)
        reduction = body.get("tokenFlowReduction", 0.0)
        is_number = isinstance(reduction, int | float) and not isinstance(reduction, bool)
        if not is_number or not 0 <= reduction <= TOKENS_MAX:
            reduction = None
        others = (processing_ms, tokens_consumed, refill_in_ms, refill_rate, reduction)
        return cls(
            server_time_ms=server_time_ms,
            processing_ms=processing_ms or 0,
            tokens_left=tokens_left,
            tokens_consumed=tokens_consumed or 0,
            refill_in_ms=refill_in_ms or 0,
            refill_rate=0 if None in others else refill_rate or 0,
            token_flow_reduction=float(reduction or 0.0),
        )

    @property
    def is_observation(self) -> bool:
        """Whether the balance is real: the reply to an unknown key has zeros only."""
        return self.refill_rate > 0


def _is_whole(value: object, least: int, most: int) -> TypeGuard[int]:
    # bool is an int to Python, but not to Keepa.
    return type(value) is int and least <= value <= most


def _whole(value: object, most: int) -> int | None:
    return value if _is_whole(value, 0, most) else None
