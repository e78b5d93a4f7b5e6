"""The fields of every Keepa reply, refusals and errors included."""

from typing import Any

from deploy.keepa_simulator.account import Account


def envelope(
    account: Account, *, started_ms: int, ended_ms: int, consumed: int, skew_ms: int = 0
) -> dict[str, Any]:
    """The envelope of a reply.

    ``timestamp`` is when the call began, and the next tick is at ``timestamp`` +
    ``processingTimeInMs`` + ``refillIn``.

    Args:
        account: The account of the caller's key.
        started_ms: Arrival of the call, on the server's clock.
        ended_ms: Time of writing the reply, on the server's clock.
        consumed: Cost of the call, in tokens.
        skew_ms: Error of the server's clock as clients see it.
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
