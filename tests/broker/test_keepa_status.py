"""Asking Keepa: what counts as an observation, and what goes wrong."""

import json
import socket
import traceback
from pathlib import Path

import pytest
from pydantic import SecretStr

from broker.core.bucket import Envelope
from broker.keepa_status import KeepaSync, KeepaSyncError, ProbeFailure, read_reply
from tests.fix_simulator import RunningSimulator

RECORDINGS = Path(__file__).parents[3] / "shared" / "keepa-recordings"
KEY = "thisisasecretkey0123456789"
BODY: dict[str, object] = {
    "timestamp": 1_758_325_044_347,
    "tokensLeft": 33,
    "refillIn": 38_816,
    "refillRate": 5,
    "tokenFlowReduction": 0.5,
    "tokensConsumed": 0,
    "processingTimeInMs": 2,
}
INVALID_KEY: dict[str, object] = {
    **dict.fromkeys(BODY, 0),
    "timestamp": 1_790_277_678_673,
    "error": {"type": "invalidParameter", "message": "…", "details": ""},
}


def body(**changes: object) -> bytes:
    """A reply with some fields changed; None takes a field away."""
    changed = {**BODY, **changes}
    return json.dumps({key: v for key, v in changed.items() if v is not None}).encode()


def failure(status: int, reply: bytes) -> ProbeFailure:
    """The error for this reply."""
    with pytest.raises(KeepaSyncError) as caught:
        read_reply(status, reply)
    return caught.value.failure


def test_a_reply_is_read_field_by_field() -> None:
    """Everything that the bucket's model needs, and nothing more."""
    assert read_reply(200, body()) == Envelope(
        server_time_ms=1_758_325_044_347,
        processing_ms=2,
        tokens_left=33,
        tokens_consumed=0,
        refill_in_ms=38_816,
        refill_rate=5,
        token_flow_reduction=0.5,
    )


@pytest.mark.parametrize("status", [200, 429, 500])
def test_an_envelope_counts_whatever_the_status(status: int) -> None:
    """A refused call counts too: its reply holds the balance."""
    assert read_reply(status, body(tokensLeft=-249)).tokens_left == -249


@pytest.mark.parametrize(
    "changes",
    [
        {"refillRate": 0},
        {"refillRate": "5"},
        {"timestamp": None},
        {"timestamp": 0},
        {"tokensLeft": None},
        {"tokensLeft": True},
        {"tokensLeft": 33.5},
        {"refillIn": -1},
        {"refillIn": None},
        {"tokenFlowReduction": "none"},
    ],
)
def test_what_is_not_sound_is_no_observation(changes: dict[str, object]) -> None:
    """A wrong balance is worse than none."""
    assert failure(200, body(**changes)) is ProbeFailure.BAD_REPLY


@pytest.mark.parametrize(
    ("status", "reply", "expected"),
    [
        (400, json.dumps(INVALID_KEY).encode(), ProbeFailure.KEY_INVALID),
        (200, json.dumps(INVALID_KEY).encode(), ProbeFailure.KEY_INVALID),
        (402, body(), ProbeFailure.KEY_UNPAID),
        (503, b"<html>", ProbeFailure.SERVER_ERROR),
        (200, b"", ProbeFailure.BAD_REPLY),
        (200, b"[1]", ProbeFailure.BAD_REPLY),
        (404, b"not found", ProbeFailure.BAD_REPLY),
        (302, b"", ProbeFailure.BAD_REPLY),
    ],
)
def test_failures_are_told_apart(status: int, reply: bytes, expected: ProbeFailure) -> None:
    """A person must act on some of them; the others pass."""
    assert failure(status, reply) is expected


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no recorded replies here")
def test_recorded_replies_are_understood() -> None:
    """Real bodies of a status call, a refusal and an unknown key."""
    status = read_reply(200, (RECORDINGS / "token-status-2025-09-19.json").read_bytes())
    refusal = read_reply(429, (RECORDINGS / "http-429-body-2025-09-16.json").read_bytes())
    invalid = failure(400, (RECORDINGS / "error-invalid-key-body.json").read_bytes())

    assert (status.tokens_left, refusal.tokens_left) == (33, -249)
    assert invalid is ProbeFailure.KEY_INVALID


@pytest.fixture
def keepa(simulator: RunningSimulator) -> RunningSimulator:
    """A Keepa without faults."""
    simulator.clear_faults()
    return simulator


def test_keepa_tells_its_balance(keepa: RunningSimulator) -> None:
    """Over HTTP, compressed, and for nothing."""
    keepa.change_account(balance=100)

    envelope = KeepaSync(keepa.base_url, SecretStr(keepa.api_key)).ask()

    assert (envelope.tokens_left, envelope.refill_rate) == (100, 20)
    assert keepa.stats()["spent"] == 0


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("error:status=402", ProbeFailure.KEY_UNPAID),
        ("reset", ProbeFailure.UNREACHABLE),
        ("garbage", ProbeFailure.BAD_REPLY),
    ],
)
def test_a_fault_at_keepa_has_a_name(
    keepa: RunningSimulator, fault: str, expected: ProbeFailure
) -> None:
    """Whatever happens, there is one error with one line for people."""
    keepa.set_fault(fault)

    with pytest.raises(KeepaSyncError) as caught:
        KeepaSync(keepa.base_url, SecretStr(keepa.api_key)).ask()

    assert caught.value.failure is expected
    assert "\n" not in str(caught.value)


def test_an_unknown_key_is_told(keepa: RunningSimulator) -> None:
    """It stays so until a person does something."""
    with pytest.raises(KeepaSyncError, match="check KEEPA_API_KEY") as caught:
        KeepaSync(keepa.base_url, SecretStr("another")).ask()

    assert caught.value.failure.is_permanent


def test_the_key_is_in_no_error() -> None:
    """Not in the message, not in the traceback, not in what it was raised from."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"

    with pytest.raises(KeepaSyncError) as caught:
        KeepaSync(url, SecretStr(KEY)).ask()

    error = caught.value
    assert error.failure is ProbeFailure.UNREACHABLE
    assert KEY not in "".join(traceback.format_exception(error)) + repr(error)
    assert error.__context__ is None
