"""Answers of the gateway's own, in Keepa's form: the token status, refusals, errors."""

import gzip
import json
import time
from collections.abc import Mapping
from http import HTTPStatus
from math import ceil
from typing import Any, Final

from aiohttp import web

from fetcher.broker_client import BucketView

CONTENT_TYPE: Final = "application/json;charset=UTF-8"


class Refusal(Exception):  # noqa: N818 - an answer to the caller, not a fault
    """The call is not made, or has no usable reply; this is the caller's answer.

    Args:
        status: HTTP status.
        kind: Keepa's `error.type`; empty for the bare 429, which has no error object.
        message: For people.
        retry_s: Seconds after which the same request may succeed; None: it will not.
        reason: Label for logs and metrics.
    """

    def __init__(
        self,
        status: HTTPStatus,
        kind: str,
        message: str,
        *,
        reason: str,
        retry_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.reason = reason
        self.retry_s = retry_s


def rejected(message: str, *, reason: str, status: int = HTTPStatus.BAD_REQUEST) -> Refusal:
    """Returns the refusal of a request that would be refused again."""
    return Refusal(HTTPStatus(status), "invalidParameter", message, reason=reason)


def unavailable(message: str, *, reason: str, retry_s: float = 5.0) -> Refusal:
    """Returns the refusal of a request that is worth another try."""
    status = HTTPStatus.SERVICE_UNAVAILABLE
    return Refusal(status, "unavailable", message, reason=reason, retry_s=retry_s)


def no_tokens(retry_s: float, message: str, *, reason: str) -> Refusal:
    """Returns Keepa's own 429, after which a client comes back in *retry_s* seconds."""
    return Refusal(HTTPStatus.TOO_MANY_REQUESTS, "", message, reason=reason, retry_s=retry_s)


def envelope(bucket: BucketView | None) -> dict[str, Any]:
    """Returns the envelope of a call that cost nothing; all zero without a *bucket*."""
    return {
        "processingTimeInMs": 0,
        "refillIn": ceil(bucket.next_refill_in_s * 1000) if bucket else 0,
        "refillRate": bucket.refill_rate if bucket else 0,
        "timestamp": time.time_ns() // 1_000_000,
        "tokenFlowReduction": 0.0,
        "tokensConsumed": 0,
        "tokensLeft": bucket.balance if bucket else 0,
    }


def token_status(bucket: BucketView, *, zipped: bool) -> web.Response:
    """Returns the answer to /token."""
    return _json(HTTPStatus.OK, envelope(bucket), zipped=zipped)


def refused(refusal: Refusal, bucket: BucketView | None, *, zipped: bool) -> web.Response:
    """Returns the answer for *refusal*.

    A client computes its wait from the envelope. The official clients and the one of PyPI
    wait until `timestamp` + `refillIn`, and longer for a balance below zero. So a 429 has
    a balance of zero, and the whole wait in `refillIn`.
    """
    body: dict[str, Any] = envelope(bucket)
    if refusal.status is HTTPStatus.TOO_MANY_REQUESTS:
        body |= {"refillIn": ceil((refusal.retry_s or 0.0) * 1000), "tokensLeft": 0}
    else:
        error = {"details": "", "message": str(refusal), "type": refusal.kind}
        body = {"error": error, **body}
    response = _json(refusal.status, body, zipped=zipped)
    if refusal.retry_s is not None:
        response.headers["Retry-After"] = str(max(1, ceil(refusal.retry_s)))
    return response


def _json(status: HTTPStatus, body: Mapping[str, Any], *, zipped: bool) -> web.Response:
    text = json.dumps(body).encode()
    headers = {"Content-Type": CONTENT_TYPE}
    if zipped:
        # As Keepa's: its clients take no other form of a reply, be it an error.
        text = gzip.compress(text, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return web.Response(status=status, body=text, headers=headers)
