"""Asks Keepa for its own count: `GET /token`, which costs nothing.

When to ask is the allocator's decision; this module makes one call and reads the
few envelope fields. The key travels in the query string, so nothing of a URL and
no exception of the HTTP library ever leaves `protos.process.http_call`.

Facts: keepa-api.md, sections 1 and 2.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final

from pydantic import SecretStr

from broker.core.bucket import Envelope
from protos.process.http_call import Answer, Failure, HttpCaller, Trouble

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 10.0
# A body of a few hundred bytes that isn't here by then isn't coming.
CALL_TIMEOUT_S: Final = 20.0
# The real body has about 170 bytes.
BODY_BYTES_MAX: Final = 64 * 1024
# Beyond them is noise, which must not become a plan or a tick: the year 2201, more
# tokens than any account holds, a day.
LATEST_MS: Final = 7_293_840_000_000
TOKENS_MAX: Final = 1_000_000_000
DURATION_MS_MAX: Final = 86_400_000


class ProbeFailure(StrEnum):
    """Why Keepa told nothing; a label of metrics and logs."""

    KEY_INVALID = "key_invalid"
    KEY_UNPAID = "key_unpaid"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    SERVER_ERROR = "server_error"
    BAD_REPLY = "bad_reply"

    @property
    def is_permanent(self) -> bool:
        """Whether it stays so until a person does something."""
        return self in {ProbeFailure.KEY_INVALID, ProbeFailure.KEY_UNPAID}


class KeepaSyncError(Exception):
    """Keepa's count could not be read; the message is for people, without the key."""

    def __init__(self, failure: ProbeFailure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


class KeepaSync:
    """One keep-alive connection to Keepa's `/token`; use it from one thread at a time."""

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
        """Read the bucket's state; blocks for at most some twenty seconds.

        Raises:
            KeepaSyncError: there is no answer, or none that tells a balance.
        """
        answer = self._caller.call("GET", "/token", {"key": self._key.get_secret_value()})
        if not isinstance(answer, Answer):
            raise self._without_answer(answer)
        return read_reply(answer.status, answer.body)

    def close(self) -> None:
        """Close the connection."""
        self._caller.close()

    def _without_answer(self, failure: Failure) -> KeepaSyncError:
        match failure.trouble:
            case Trouble.TIMEOUT:
                return KeepaSyncError(
                    ProbeFailure.TIMEOUT,
                    f"{self.base_url} does not answer in time: {failure.message}",
                )
            case Trouble.BAD_BODY:
                return KeepaSyncError(
                    ProbeFailure.BAD_REPLY, f"{self.base_url}: {failure.message}"
                )
        return KeepaSyncError(
            ProbeFailure.UNREACHABLE, f"{self.base_url} can't be reached: {failure.message}"
        )


def read_reply(status: int, body: bytes | None) -> Envelope:
    """Take the observation out of a reply; a 429's envelope is one as well.

    *body* is None where it was larger than any real one.

    Raises:
        KeepaSyncError: the reply tells no balance.
    """
    if status == HTTPStatus.PAYMENT_REQUIRED:
        raise KeepaSyncError(
            ProbeFailure.KEY_UNPAID,
            "Keepa refuses this key for want of a paid subscription (HTTP 402):"
            " check the plan at keepa.com, or KEEPA_API_KEY",
        )
    reply = _json_object(body)
    if reply is not None and (envelope := _envelope(reply)) is not None:
        return envelope
    raise _explain(status, reply)


def _json_object(body: bytes | None) -> Mapping[str, Any] | None:
    try:
        reply = json.loads(body or b"")
    except (ValueError, RecursionError):
        return None
    return reply if isinstance(reply, dict) else None


def _envelope(reply: Mapping[str, Any]) -> Envelope | None:
    """The envelope if all its fields are sound and tell a balance.

    The same bodies count as for a fetcher, whose envelopes come with its settles.
    """
    # Field, value, least and most; a field that says nothing on /token may be missing.
    bounds = {
        "server_time_ms": (reply.get("timestamp"), 1, LATEST_MS),
        "processing_ms": (reply.get("processingTimeInMs", 0), 0, DURATION_MS_MAX),
        "tokens_left": (reply.get("tokensLeft"), -TOKENS_MAX, TOKENS_MAX),
        "tokens_consumed": (reply.get("tokensConsumed", 0), 0, TOKENS_MAX),
        "refill_in_ms": (reply.get("refillIn"), 0, DURATION_MS_MAX),
        "refill_rate": (reply.get("refillRate"), 1, TOKENS_MAX),
    }
    reduction = reply.get("tokenFlowReduction", 0.0)
    # bool is an int to Python, but not to Keepa.
    if any(
        type(value) is not int or not least <= value <= most
        for value, least, most in bounds.values()
    ):
        return None
    if type(reduction) not in {int, float} or not 0 <= reduction <= TOKENS_MAX:
        return None
    integers = {field: value for field, (value, _, _) in bounds.items()}
    return Envelope(**integers, token_flow_reduction=float(reduction))


def _explain(status: int, reply: Mapping[str, Any] | None) -> KeepaSyncError:
    error = reply.get("error") if reply is not None else None
    kind = error.get("type") if isinstance(error, dict) else None
    # The key is the only parameter that /token has.
    if kind == "invalidParameter" or status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return KeepaSyncError(
            ProbeFailure.KEY_INVALID, "Keepa does not know this key: check KEEPA_API_KEY"
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return KeepaSyncError(ProbeFailure.SERVER_ERROR, f"Keepa answers HTTP {status}")
    return KeepaSyncError(
        ProbeFailure.BAD_REPLY,
        f"the reply (HTTP {status}) tells no balance: is KEEPA_BASE_URL right?",
    )
