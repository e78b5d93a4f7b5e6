"""Calls to api.keepa.com: one request each, no hidden retries, the key never shown.

A retry would spend tokens that no lease covers, so every failure is raised at
once and the caller decides, by the error's class, what comes next.
"""

import json
import logging
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import requests
import urllib3.exceptions

from fetcher.errors import (
    KeepaError,
    KeepaResponseError,
    KeepaThrottledError,
    KeepaUnavailableError,
)
from fetcher.replies.envelope import Envelope

# Its debug lines hold the URL, and the URL holds the key.
logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)

# Keepa's own Java client: 30 s to connect, 120 s to read (keepa-api.md, section 2).
CONNECT_TIMEOUT_S: Final = 30.0
READ_TIMEOUT_S: Final = 120.0

# No setting limits the system's resolver: five seconds, two tries, three servers as a rule.
LONGEST_LOOK_UP_S: Final = 30.0

# A full page of deals is about 345 kB and a batch of 100 products some MB.
LARGEST_BODY_BYTES: Final = 256 * 1024 * 1024
CHUNK_BYTES: Final = 64 * 1024

# Beyond this many characters a selection travels in the body: servers and
# proxies commonly refuse request lines of more than 8 kB.
LONGEST_SELECTION: Final = 3_000

# Never reached the server, so never charged. MaxRetryError wraps one of these.
NOT_SENT: Final = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.NameResolutionError,
    urllib3.exceptions.ProxyError,
)


@dataclass(frozen=True, slots=True)
class Reply:
    """A usable answer: HTTP 200, a JSON object without `error`."""

    body: dict[str, Any]
    envelope: Envelope | None
    duration_s: float


class Keepa:
    """A session with Keepa for one key; use it from one thread at a time."""

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str = "https://api.keepa.com",
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._api_key = api_key
        self._base_url = base_url.rstrip("/")
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._session = requests.Session()
        self._session.headers.update(
            {"Accept-Encoding": "gzip", "User-Agent": "keepa-token-broker"}
        )

    @property
    def longest_call_s(self) -> float:
        """How long a call can take, in seconds, the look-up of the name included."""
        # The time limit for a whole body is looked at between its pieces.
        return self._connect_timeout_s + 2 * self._read_timeout_s + LONGEST_LOOK_UP_S

    def __repr__(self) -> str:
        return f"Keepa(base_url={self._base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def deals(self, selection: Mapping[str, Any]) -> Reply:
        """Fetch one page of deals: 5 tokens, an empty page included.

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
        """Fetch up to 100 products; *parameters* such as stats and offers set the price.

        Raises as `deals` does.
        """
        fields = {name: str(value) for name, value in parameters.items()}
        fields |= {"domain": str(domain_id), "asin": ",".join(asins)}
        return self._call("GET", "/product", fields)

    def token_status(self) -> Reply:
        """Ask for the balance: free. Raises as `deals` does."""
        return self._call("GET", "/token", {})

    def _call(
        self, method: str, path: str, parameters: Mapping[str, str], *, data: str | None = None
    ) -> Reply:
        started = time.monotonic()
        answer = self._exchange(method, path, parameters, data)
        if isinstance(answer, KeepaUnavailableError):
            # Raised here, outside the handler: the original error names the URL.
            raise answer
        status, content = answer
        body = _decode(content)
        envelope = Envelope.from_body(body)
        failure = _failure(status, body, envelope)
        if failure is not None:
            # Keepa might quote the request in its message.
            failure.args = (str(failure).replace(self._api_key, "***"),)
            raise failure
        assert isinstance(body, dict)
        return Reply(body, envelope, time.monotonic() - started)

    def _exchange(
        self, method: str, path: str, parameters: Mapping[str, str], data: str | None
    ) -> tuple[int, bytes] | KeepaUnavailableError:
        deadline = time.monotonic() + self._connect_timeout_s + self._read_timeout_s
        try:
            with self._session.request(
                method,
                self._base_url + path,
                params={"key": self._api_key, **parameters},
                data=data,
                headers={"Content-Type": "application/json"} if data else None,
                timeout=(self._connect_timeout_s, self._read_timeout_s),
                # A redirect would carry the key to wherever it points.
                allow_redirects=False,
                stream=True,
            ) as response:
                content = b"".join(_read(response, deadline))
                return response.status_code, content
        except KeepaUnavailableError as exc:
            return exc
        except requests.RequestException as exc:
            return KeepaUnavailableError(_describe(exc), sent=_was_sent(exc))
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            return KeepaUnavailableError(f"connection broke ({type(exc).__name__})")


def _read(response: requests.Response, deadline: float) -> Iterator[bytes]:
    """Yield the decoded body; the timeouts of requests only limit a single read."""
    size = 0
    for chunk in response.iter_content(CHUNK_BYTES):
        size += len(chunk)
        if size > LARGEST_BODY_BYTES:
            raise KeepaUnavailableError("the reply is larger than any real one")
        if time.monotonic() > deadline:
            raise KeepaUnavailableError("the reply took too long to arrive in full")
        yield chunk


def _decode(content: bytes) -> object:
    """The JSON value of a body; None when it is cut or no JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _failure(status: int, body: object, envelope: Envelope | None) -> KeepaError | None:
    """The error by what the caller does next; None for a usable reply."""
    kind, message = _error_of(body)
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


def _error_of(body: object) -> tuple[str, str]:
    """Type and message of the reply's `error`; empty strings when there is none."""
    error = body.get("error") if isinstance(body, dict) else None
    if error is None or error is False:
        return "", ""
    if not isinstance(error, dict):
        return "unknownError", str(error)[:200]
    parts = (error.get("message"), error.get("details"))
    message = " ".join(str(part) for part in parts if part)
    return str(error.get("type") or "unknownError"), message[:500]


def _describe(exc: requests.RequestException) -> str:
    match exc:
        case requests.ConnectTimeout():
            return "no connection within the connect timeout"
        case requests.Timeout():
            return "no answer within the read timeout"
        case requests.exceptions.SSLError():
            return "the TLS handshake failed"
        case requests.exceptions.ProxyError():
            return "the proxy can't be reached"
        case requests.ConnectionError() if not _was_sent(exc):
            return "can't connect"
        case _:
            return f"the connection broke before the reply was complete ({type(exc).__name__})"


def _was_sent(exc: requests.RequestException) -> bool:
    """Whether the request may have reached Keepa, and so may have been charged."""
    if isinstance(exc, requests.exceptions.InvalidURL | requests.exceptions.MissingSchema):
        return False
    cause = exc.args[0] if exc.args else None
    if isinstance(cause, urllib3.exceptions.MaxRetryError):
        cause = cause.reason
    untrusted = isinstance(cause, urllib3.exceptions.SSLError) and any(
        isinstance(reason, ssl.SSLCertVerificationError) for reason in cause.args
    )
    return not (untrusted or isinstance(cause, NOT_SENT))
