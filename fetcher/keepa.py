"""Calls to api.keepa.com: one request each, no hidden retries, the key never shown.

A retry would spend tokens that no lease covers. Every failure is raised at once, and
the error's class decides what the caller does next.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import requests

from fetcher.errors import (
    KeepaError,
    KeepaResponseError,
    KeepaThrottledError,
    KeepaUnavailableError,
)
from fetcher.replies.envelope import Envelope
from fetcher.replies.failure import error_of, is_refusal
from protos.process.http_call import Answer, HttpCaller

# Keepa's own Java client: 30 s to connect, 120 s to read (keepa-api.md, section 2).
CONNECT_TIMEOUT_S: Final = 30.0
READ_TIMEOUT_S: Final = 120.0

# No setting limits the system's resolver: five seconds, two tries, three servers as a rule.
LONGEST_LOOK_UP_S: Final = 30.0

# A full page of deals is about 345 kB, a batch of 100 products some MB.
REPLY_BYTES_MAX: Final = 32 * 1024 * 1024
# The objects of a reply may take this many times the most bytes of a reply. Those of
# real replies take 9 times their size: a real one may have nearly half the most bytes.
OBJECTS_PER_BYTE_MAX: Final = 4

# Beyond this many characters a selection travels in the body: servers and
# proxies commonly refuse request lines of more than 8 kB.
LONGEST_SELECTION: Final = 3_000

# First bytes, in UTF-8, of characters beyond U+FFFF and beyond U+00FF.
_WIDE: Final = re.compile(rb"[\xf0-\xf7]")
_HALF_WIDE: Final = re.compile(rb"[\xc4-\xef]")


@dataclass(frozen=True, slots=True)
class Reply:
    """A usable answer: HTTP 200, a JSON object without `error`."""

    body: dict[str, Any]
    envelope: Envelope | None


class Keepa:
    """A session with Keepa for one key; for one thread at a time."""

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str = "https://api.keepa.com",
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
        reply_bytes_max: int = REPLY_BYTES_MAX,
    ) -> None:
        self._api_key = api_key
        self._reply_bytes_max = reply_bytes_max
        self._caller = HttpCaller(
            base_url.rstrip("/"),
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
            call_timeout_s=connect_timeout_s + read_timeout_s,
            body_bytes_max=reply_bytes_max,
        )

    @property
    def longest_call_s(self) -> float:
        """Longest time a call can take, in seconds, the look-up of the name included."""
        # The time limit for a whole body is checked between its pieces.
        return sum(self._caller.timeouts_s) + self._caller.timeouts_s[1] + LONGEST_LOOK_UP_S

    def __repr__(self) -> str:
        return f"Keepa(base_url={self._caller.base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._caller.close()

    def deals(self, selection: Mapping[str, Any]) -> Reply:
        """Fetches one page of deals: 5 tokens, an empty page included.

        Raises:
            KeepaThrottledError: Nothing was spent; wait for tokens.
            KeepaUnavailableError: Worth another try later.
            KeepaResponseError: The same request would fail again.
        """
        text = json.dumps(selection, separators=(",", ":"))
        if len(text) > LONGEST_SELECTION:
            return self._call("POST", "/deal", {}, data=text)
        return self._call("GET", "/deal", {"selection": text})

    def products(
        self,
        asins: Sequence[str],
        *,
        domain_id: int,
        parameters: Mapping[str, int],
    ) -> Reply:
        """Fetches up to 100 products; *parameters* such as stats and offers set the price.

        Raises as `deals` does.
        """
        fields = {name: str(value) for name, value in parameters.items()}
        fields |= {"domain": str(domain_id), "asin": ",".join(asins)}
        return self._call("GET", "/product", fields)

    def token_status(self) -> Reply:
        """Fetches the balance: free. Raises as `deals` does."""
        return self._call("GET", "/token", {})

    def _call(
        self, method: str, path: str, parameters: Mapping[str, str], *, data: str | None = None
    ) -> Reply:
        answer = self._caller.call(method, path, {"key": self._api_key, **parameters}, data)
        if not isinstance(answer, Answer):
            raise KeepaUnavailableError(answer.message, sent=answer.sent)
        body = None if answer.body is None else self._decode(answer.body)
        envelope = Envelope.from_body(body)
        failure = _failure(answer.status, body, envelope)
        if body is None and answer.status == requests.codes.ok:
            failure = self._unusable(answer)
        if failure is not None:
            # Keepa might quote the request in its message.
            failure.args = (str(failure).replace(self._api_key, "***"),)
            raise failure
        assert isinstance(body, dict)
        return Reply(body, envelope)

    def _decode(self, content: bytes) -> object:
        """Returns the JSON value of a body; None when it is cut, no object, or too large."""
        if content.lstrip()[:1] != b"{" or self._becomes_too_large(content):
            return None
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            return None

    def _becomes_too_large(self, content: bytes) -> bool:
        return objects_bytes(content) > OBJECTS_PER_BYTE_MAX * self._reply_bytes_max

    def _unusable(self, answer: Answer) -> KeepaError:
        """Returns the error for an HTTP 200 without a usable JSON object."""
        content = answer.body
        if content is not None and not self._becomes_too_large(content):
            return KeepaUnavailableError("the reply is cut or no JSON")
        return KeepaResponseError(
            f"the reply is too large for KEEPA_REPLY_MAX_BYTES={self._reply_bytes_max}: ask for"
            " less at once, or raise it where there is seven times as much memory",
            status=answer.status,
            kind="replyTooLarge",
        )


def objects_bytes(content: bytes) -> int:
    """Estimates the most bytes of memory that the objects of the JSON text *content* take.

    Counts its punctuation before anything is built: thirty megabytes of ``[[],[],…``
    become eight hundred. Sizes of CPython 3.11 on 64 bits.
    """
    # CPython gives all characters of a text the width of its widest.
    width = 4 if _WIDE.search(content) else 2 if _HALF_WIDE.search(content) else 1
    return (
        # The decoded text, and whatever part of it becomes strings.
        2 * width * len(content)
        # A number and its place in a list.
        + 40 * content.count(b",")
        + 88 * content.count(b"[")
        + 232 * content.count(b"{")
        # A string has two quotes; field names are shared, but may all differ.
        + 30 * content.count(b'"')
        + 120 * content.count(b":")
    )


def _failure(status: int, body: object, envelope: Envelope | None) -> KeepaError | None:
    """Returns the error by what the caller does next; None for a usable reply."""
    kind, message = error_of(body)
    if is_refusal(f"{kind} {message}", status, envelope):
        return KeepaThrottledError(f"no tokens left: {kind} {message}", envelope=envelope)
    if status == requests.codes.too_many_requests:
        return KeepaThrottledError("HTTP 429: no tokens left", envelope=envelope)
    if status >= requests.codes.server_error or status == requests.codes.request_timeout:
        return KeepaUnavailableError(f"HTTP {status} {message}".strip(), envelope=envelope)
    if status != requests.codes.ok or kind:
        text = f"HTTP {status}: {kind} {message}".rstrip(": ")
        return KeepaResponseError(text, status=status, kind=kind, envelope=envelope)
    if not isinstance(body, dict):
        return KeepaUnavailableError("the reply is cut or no JSON")
    return None
