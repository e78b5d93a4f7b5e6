"""Asks Keepa for its own count: `GET /token`, which costs nothing.

When to ask is the allocator's decision; this module makes one call and reads the
few envelope fields. The key travels in the query string, so nothing of a URL and
no exception of the HTTP library ever leaves this file.

Facts: keepa-api.md, sections 1 and 2.
"""

import json
import time
from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final

import requests
from pydantic import SecretStr

from broker.core.bucket import Envelope

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 10.0
# A body of a few hundred bytes that isn't here by then isn't coming.
BODY_TIMEOUT_S: Final = 10.0
# The real body has about 170 bytes.
BODY_BYTES_MAX: Final = 64 * 1024


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
        self._session = requests.Session()
        self._session.headers.update(
            {"Accept-Encoding": "gzip", "User-Agent": "keepa-token-broker"}
        )

    def ask(self) -> Envelope:
        """Read the bucket's state; blocks for at most some twenty seconds.

        Raises:
            KeepaSyncError: there is no answer, or none that tells a balance.
        """
        status, body = self._get()
        return read_reply(status, body)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def _get(self) -> tuple[int, bytes]:
        try:
            with self._session.get(
                f"{self.base_url}/token",
                params={"key": self._key.get_secret_value()},
                timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                # A redirect would carry the key to another host.
                allow_redirects=False,
                stream=True,
            ) as response:
                return response.status_code, _body(response)
        except requests.RequestException as exc:
            failure = _transport_failure(exc, self.base_url)
        # Raised out here, so that the original, which quotes the URL, isn't its context.
        raise failure


def _body(response: requests.Response) -> bytes:
    """The decoded body, bounded in size and time: a trickle must not hold the probe."""
    give_up_s = time.monotonic() + BODY_TIMEOUT_S
    body = b""
    for chunk in response.iter_content(8192):
        body += chunk
        if len(body) > BODY_BYTES_MAX or time.monotonic() > give_up_s:
            raise requests.exceptions.ContentDecodingError
    return body


def _transport_failure(exc: requests.RequestException, base_url: str) -> KeepaSyncError:
    match exc:
        case requests.Timeout():
            return KeepaSyncError(ProbeFailure.TIMEOUT, f"{base_url} does not answer in time")
        case requests.exceptions.SSLError():
            return KeepaSyncError(
                ProbeFailure.UNREACHABLE, f"no trusted TLS connection to {base_url}"
            )
        case requests.exceptions.ContentDecodingError():
            return KeepaSyncError(ProbeFailure.BAD_REPLY, f"{base_url} sends no readable body")
        case _:
            return KeepaSyncError(ProbeFailure.UNREACHABLE, f"{base_url} can't be reached")


def read_reply(status: int, body: bytes) -> Envelope:
    """Take the observation out of a reply; a 429's envelope is one as well.

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


def _json_object(body: bytes) -> Mapping[str, Any] | None:
    try:
        reply = json.loads(body)
    except ValueError:
        return None
    return reply if isinstance(reply, dict) else None


def _envelope(reply: Mapping[str, Any]) -> Envelope | None:
    """The envelope if all its fields are there, sound, and tell a balance."""
    integers = {
        "server_time_ms": reply.get("timestamp"),
        "processing_ms": reply.get("processingTimeInMs", 0),
        "tokens_left": reply.get("tokensLeft"),
        "tokens_consumed": reply.get("tokensConsumed", 0),
        "refill_in_ms": reply.get("refillIn"),
        "refill_rate": reply.get("refillRate"),
    }
    reduction = reply.get("tokenFlowReduction", 0.0)
    # bool is an int to Python, but not to us.
    if any(type(value) is not int for value in integers.values()):
        return None
    if type(reduction) not in {int, float}:
        return None
    envelope = Envelope(**integers, token_flow_reduction=reduction)
    durations = (envelope.processing_ms, envelope.tokens_consumed, envelope.refill_in_ms)
    if min(durations) < 0 or not envelope.is_observation:
        return None
    return envelope


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
