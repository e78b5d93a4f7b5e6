"""The fields that every reply of Keepa carries, refusals and errors included."""

from typing import Any

from deploy.keepa_simulator.account import Account


def envelope(
    account: Account, *, started_ms: int, ended_ms: int, consumed: int, skew_ms: int = 0
) -> dict[str, Any]:
    """The envelope of a reply.

    ``timestamp`` is when the call began, and the next tick is at ``timestamp`` +
    ``processingTimeInMs`` + ``refillIn``.

    Args:
        account: Whose tokens are told.
        started_ms: When the call came in, on the server's clock.
        ended_ms: When the reply is written, on the server's clock.
        consumed: Tokens that the call cost.
        skew_ms: By how much the server's clock is wrong as seen from outside.
    """
    refill_in = account.refill_in_ms(ended_ms)
    return {
        "processingTimeInMs": ended_ms - started_ms,
        "refillIn": refill_in,
        "refillRate": account.rate,
        "timestamp": started_ms + skew_ms,
        "tokenFlowReduction": account.flow_reduction,
        "tokensConsumed": consumed,
        "tokensLeft": account.balance,
    }


def empty_envelope(*, started_ms: int, ended_ms: int) -> dict[str, Any]:
    """The envelope for a key that has no account: all token fields are zero, as recorded."""
    return {
        "processingTimeInMs": ended_ms - started_ms,
        "refillIn": 0,
        "refillRate": 0,
        "timestamp": started_ms,
        "tokenFlowReduction": 0.0,
        "tokensConsumed": 0,
        "tokensLeft": 0,
    }
