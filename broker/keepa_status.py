"""Reads the token count from Keepa: `GET /token`, which costs nothing.

The allocator decides when to ask. This module makes one call and reads the envelope
fields. The key is part of the query string, so `protos.process.http_call` passes on
no URL and no exception of the HTTP library.

Facts: keepa-api.md, sections 1 and 2.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final

from pydantic import SecretStr

from broker.core.bucket import Envelope
from broker.daemon_thread import in_daemon_thread
from protos.process.http_call import Answer, Failure, HttpCaller, Trouble

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 10.0
# The body has a few hundred bytes: a slower one will not arrive at all.
CALL_TIMEOUT_S: Final = 20.0
# The real body has about 170 bytes.
BODY_BYTES_MAX: Final = 64 * 1024
# Larger values are noise and must not become a plan or a tick. The limits are the year
# 2201, more tokens than any account holds, and a day.
LATEST_MS: Final = 7_293_840_000_000
TOKENS_MAX: Final = 1_000_000_000
DURATION_MS_MAX: Final = 86_400_000


class ProbeFailure(StrEnum):
    """Why Keepa's count could not be read; a label of metrics and logs."""

    KEY_INVALID = "key_invalid"
    KEY_UNPAID = "key_unpaid"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    SERVER_ERROR = "server_error"
    BAD_REPLY = "bad_reply"

    @property
    def is_permanent(self) -> bool:
        """Whether only a person can mend it."""
        return self in {ProbeFailure.KEY_INVALID, ProbeFailure.KEY_UNPAID}


class KeepaSyncError(Exception):
    """Keepa's count could not be read; the readable message never holds the key."""

    def __init__(self, failure: ProbeFailure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


class KeepaSync:
    """A keep-alive connection to Keepa's `/token`; for one thread at a time."""

    def __init__(self, base_url: str, key: SecretStr) -> None:
        self.base_url = base_url
        self._key = key
        self._caller = HttpCaller(
            base_url,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            read_timeout_s=READ_TIMEOUT_S,
            call_timeout_s=CALL_TIMEOUT_S,
            body_bytes_max=BODY_BYTES_MAX,
        )

    def ask(self) -> Envelope:
        """Reads the bucket's state; blocks for at most `CALL_TIMEOUT_S` seconds.

        Raises:
            KeepaSyncError: Keepa does not answer, or its reply holds no balance.
        """
        match self._caller.call("GET", "/token", {"key": self._key.get_secret_value()}):
            case Answer(status=status, body=body):
                return read_reply(status, body)
            case Failure(trouble=Trouble.TIMEOUT, message=message):
                failure, problem = ProbeFailure.TIMEOUT, f" does not answer in time: {message}"
            case Failure(trouble=Trouble.BAD_BODY, message=message):
                failure, problem = ProbeFailure.BAD_REPLY, f": {message}"
            case Failure(message=message):
                failure, problem = ProbeFailure.UNREACHABLE, f" can't be reached: {message}"
        raise KeepaSyncError(failure, self.base_url + problem)

    async def read(self) -> Envelope:
        """Reads the bucket's state as `ask` does, while the event loop goes on."""
        return await in_daemon_thread(self.ask, name="keepa-sync")

    def close(self) -> None:
        """Closes the connection."""
        self._caller.close()


def read_reply(status: int, body: bytes | None) -> Envelope:
    """Returns the envelope of a reply; that of a 429 counts as well.

    *body* is None where it was larger than any real one.

    Raises:
        KeepaSyncError: the reply holds no balance.
    """
    if status == HTTPStatus.PAYMENT_REQUIRED:
        raise KeepaSyncError(
            ProbeFailure.KEY_UNPAID,
            "Keepa refuses this key for want of a paid subscription (HTTP 402):"
            " check the plan at keepa.com, or KEEPA_API_KEY",
        )
    try:
        reply = json.loads(body or b"")
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict):
        reply = {}
    if (envelope := _envelope(reply)) is not None:
        return envelope
    error = reply.get("error")
    kind = error.get("type") if isinstance(error, dict) else None
    # The key is the only parameter that /token has.
    if kind == "invalidParameter" or status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        raise KeepaSyncError(
            ProbeFailure.KEY_INVALID, "Keepa rejects this key: check KEEPA_API_KEY"
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise KeepaSyncError(ProbeFailure.SERVER_ERROR, f"Keepa answers HTTP {status}")
    raise KeepaSyncError(
        ProbeFailure.BAD_REPLY,
        f"the reply (HTTP {status}) has no balance: is KEEPA_BASE_URL right?",
    )


def _envelope(reply: Mapping[str, Any]) -> Envelope | None:
    """The envelope if all its fields are sound, else None.

    The fetchers' `fetcher.replies.envelope` accepts the same bodies.
    """
    # Value, minimum and maximum by field; /token may omit the fields with a default.
    bounds = {
        "server_time_ms": (reply.get("timestamp"), 1, LATEST_MS),
        "processing_ms": (reply.get("processingTimeInMs", 0), 0, DURATION_MS_MAX),
        "tokens_left": (reply.get("tokensLeft"), -TOKENS_MAX, TOKENS_MAX),
        "tokens_consumed": (reply.get("tokensConsumed", 0), 0, TOKENS_MAX),
        "refill_in_ms": (reply.get("refillIn"), 0, DURATION_MS_MAX),
        "refill_rate": (reply.get("refillRate"), 1, TOKENS_MAX),
    }
    reduction = reply.get("tokenFlowReduction", 0.0)
    # Python counts a bool as an int; Keepa does not.
    if any(
        type(value) is not int or not least <= value <= most
        for value, least, most in bounds.values()
    ):
        return None
    if type(reduction) not in {int, float} or not 0 <= reduction <= TOKENS_MAX:
        return None
    integers = {field: value for field, (value, _, _) in bounds.items()}
    return Envelope(**integers, token_flow_reduction=float(reduction))
