"""Broker and fetcher read the same envelope out of the same reply."""

import json
from typing import Any

import pytest

from broker.core.bucket import Envelope as BrokerEnvelope
from broker.keepa_status import KeepaSyncError, read_reply
from fetcher.replies.envelope import Envelope as FetcherEnvelope

SOUND: dict[str, Any] = {
    "timestamp": 1_758_325_044_347,
    "processingTimeInMs": 12,
    "tokensLeft": 42,
    "tokensConsumed": 5,
    "refillIn": 31_000,
    "refillRate": 20,
    "tokenFlowReduction": 1.5,
}
MISSING = object()
ODD: dict[str, Any] = {
    "missing": MISSING,
    "null": None,
    "zero": 0,
    "negative": -1,
    "very negative": -(10**12),
    "large": 10**9,
    "huge": 10**12,
    "beyond 64 bits": 10**30,
    "text": "7",
    "empty text": "",
    "float": 7.0,
    "fraction": 0.5,
    "infinite": float("inf"),
    "not a number": float("nan"),
    "true": True,
    "false": False,
    "list": [7],
    "object": {"value": 7},
}
FIELDS = (
    *("server_time_ms", "processing_ms", "tokens_left", "tokens_consumed"),
    *("refill_in_ms", "refill_rate", "token_flow_reduction"),
)


def broker_reads(body: dict[str, Any]) -> BrokerEnvelope | None:
    """What the broker's own probe reads from *body*; None if that holds no balance."""
    try:
        return read_reply(200, json.dumps(body).encode())
    except KeepaSyncError:
        return None


def fetcher_reads(body: dict[str, Any]) -> FetcherEnvelope | None:
    """What a fetcher makes of it, likewise."""
    envelope = FetcherEnvelope.from_body(json.loads(json.dumps(body)))
    return envelope if envelope is not None and envelope.is_observation else None


def values(envelope: BrokerEnvelope | FetcherEnvelope | None) -> list[float] | None:
    """The fields, by the names that both share."""
    return None if envelope is None else [getattr(envelope, field) for field in FIELDS]


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("field", SOUND)
def test_both_readers_agree_on_every_odd_field(field: str, kind: str) -> None:
    """What the broker refuses from its own probe it is not offered by a settle."""
    body = {**SOUND, field: ODD[kind]}
    if ODD[kind] is MISSING:
        del body[field]

    assert values(broker_reads(body)) == values(fetcher_reads(body))


def test_both_readers_take_a_sound_reply_alike() -> None:
    """And the server's time is the beginning of processing to both."""
    expected = [1_758_325_044_347, 12, 42, 5, 31_000, 20, 1.5]

    assert values(broker_reads(SOUND)) == values(fetcher_reads(SOUND)) == expected


@pytest.mark.parametrize("field", ["refillIn", "refillRate", "tokenFlowReduction"])
def test_what_a_call_cost_is_read_from_a_garbled_envelope(field: str) -> None:
    """It holds no balance, but its cost was paid."""
    envelope = FetcherEnvelope.from_body({**SOUND, field: "odd"})

    assert envelope is not None
    assert not envelope.is_observation
    assert envelope.tokens_consumed == 5
