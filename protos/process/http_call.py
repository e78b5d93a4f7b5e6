"""One HTTP call to Keepa: bounded in time and memory, its key in no error.

Rule 1: no retries and no redirects. A retry would spend tokens that no lease covers, and a
redirect would carry the key to another server.
Rule 2: failures are returned. A raised error of the HTTP library quotes the URL, and the
key travels in the query string.
Rule 3: whether a call may have been charged is observed: it counts as sent once a byte of
the request has left, also if an error follows.
"""

import logging
import os
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar
from urllib.parse import urlsplit

import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

from protos.process.inflate import BodyError, BodyTooLargeError
from protos.process.proxies import Proxy
from protos.process.reply_body import read_body

# Its debug lines hold the URL.
logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)


class Trouble(StrEnum):
    """Why a call got no answer."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    BAD_BODY = "bad body"


@dataclass(frozen=True, slots=True)
class Failure:
    """A call without an answer; *sent* is whether the server may have seen the request."""

    trouble: Trouble
    message: str
    sent: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; the body is None if it is larger than allowed."""

    status: int
    body: bytes | None


class HttpCaller:
    """Calls to one server over connections that are kept; for one thread at a time.

    Args:
        base_url: The server, without a trailing slash.
        connect_timeout_s: Most seconds for a connection.
        read_timeout_s: Most seconds until the next byte of the answer.
        call_timeout_s: Most seconds for a whole call.
        body_bytes_max: Most bytes of a body, decompressed.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout_s: float,
        read_timeout_s: float,
        call_timeout_s: float,
        body_bytes_max: int,
    ) -> None:
        self.base_url = base_url
        self.timeouts_s = (connect_timeout_s, read_timeout_s)
        self._call_timeout_s = call_timeout_s
        self._body_bytes_max = body_bytes_max
        self._session = requests.Session()
        self._session.headers.update(
            {"Accept-Encoding": "gzip", "User-Agent": "keepa-token-broker"}
        )
        self._wire = _Wire()
        self._session.mount("https://", self._wire)
        self._session.mount("http://", self._wire)

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

    def call(
        self, method: str, path: str, parameters: Mapping[str, str], data: str | None = None
    ) -> Answer | Failure:
        """Makes one call; the answer may have any status."""
        proxy = Proxy.towards(self.base_url)
        if proxy is not None and urlsplit(self.base_url).scheme == "http":
            problem = (
                f"{proxy} is on the way to {self.base_url}, and over plain http it would read the"
                " key: use https in KEEPA_BASE_URL, or put"
                f" {urlsplit(self.base_url).hostname} into NO_PROXY"
            )
            return Failure(Trouble.UNREACHABLE, problem, sent=False)
        self._wire.request_left = False
        deadline_s = time.monotonic() + self._call_timeout_s
        try:
            with self._session.request(
                method,
                self.base_url + path,
                params=parameters,
                data=data,
                headers={"Content-Type": "application/json"} if data else None,
                timeout=self.timeouts_s,
                allow_redirects=False,
                stream=True,
                # The same way as checked above: loopback is never behind a proxy.
                proxies=None if proxy else {"no_proxy": urlsplit(self.base_url).hostname or ""},
            ) as response:
                return self._answer(response, deadline_s)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as exc:
            # All errors of `requests` are OSErrors; it raises ValueErrors for bad addresses.
            sent = self._wire.request_left
            late = isinstance(exc, requests.Timeout)
            trouble = Trouble.TIMEOUT if late else Trouble.UNREACHABLE
            return Failure(trouble, self._describe(exc, proxy, sent=sent), sent)

    def _answer(self, response: requests.Response, deadline_s: float) -> Answer | Failure:
        try:
            body = read_body(response, bytes_max=self._body_bytes_max, deadline_s=deadline_s)
        except BodyTooLargeError:
            return Answer(response.status_code, None)
        except BodyError as exc:
            return Failure(Trouble.BAD_BODY, str(exc), sent=True)
        return Answer(response.status_code, body)

    def _describe(self, exc: Exception, proxy: Proxy | None, *, sent: bool) -> str:
        """Returns the cause of *exc* and its remedy, in one line without the URL."""
        if sent:
            if isinstance(exc, requests.Timeout):
                return "no answer within the read timeout"
            return f"the connection broke before the reply was complete ({type(exc).__name__})"
        host = urlsplit(self.base_url).netloc.rpartition("@")[2]
        cause = _why_not_sent(exc, host)
        if proxy is None:
            return cause
        if isinstance(exc, requests.exceptions.InvalidSchema) and "SOCKS" in str(exc):
            cause = "SOCKS needs the package PySocks (pip install pysocks)"
        elif isinstance(exc, requests.exceptions.ProxyError):
            cause = _why_no_proxy(exc)
        elif isinstance(exc, ValueError):
            cause = "it is no address of a proxy"
        return (
            f"{host} is reached through {proxy}: {cause}; correct or unset {proxy.variable},"
            f" or put {urlsplit(self.base_url).hostname} into NO_PROXY"
        )


class _Noting(HTTPConnection):
    """A connection that notes when the request itself, no handshake, starts to leave."""

    wire: ClassVar["_Wire"]
    _connecting = False

    def connect(self) -> None:
        self._connecting = True
        try:
            super().connect()
        finally:
            self._connecting = False

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        # The request that opens a proxy's tunnel holds neither Keepa's request nor the key.
        if not self._connecting:
            self.wire.request_left = True
        super().send(data)


class _Wire(HTTPAdapter):
    """Sends requests; ``request_left`` is whether a byte of the current one has left."""

    request_left = False

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        if not issubclass(pool.ConnectionCls, _Noting):
            kind = (_Noting, pool.ConnectionCls)
            pool.ConnectionCls = type("NotingConnection", kind, {"wire": self})
        return pool


def _causes(exc: BaseException) -> list[BaseException]:
    """Returns *exc* and every error that it wraps; the libraries nest them in arguments."""
    found: list[BaseException] = []
    waiting: list[BaseException] = [exc]
    while waiting:
        error = waiting.pop()
        if any(error is known for known in found):
            continue
        found.append(error)
        wrapped = (
            *error.args,
            getattr(error, "reason", None),
            error.__cause__,
            error.__context__,
        )
        waiting += [inner for inner in wrapped if isinstance(inner, BaseException)]
    return found


def _why_not_sent(exc: Exception, host: str) -> str:
    causes = _causes(exc)
    for cause in causes:
        match cause:
            case urllib3.exceptions.NameResolutionError() | socket.gaierror():
                return f"the name {host} can't be resolved: check KEEPA_BASE_URL and the DNS"
            case ssl.SSLCertVerificationError():
                return (
                    f"the certificate of {host} is not trusted ({cause.verify_message}): if a"
                    " proxy re-signs traffic here, name its CA in REQUESTS_CA_BUNDLE"
                )
            case ssl.SSLError():
                reason = (cause.reason or "no reason given").replace("_", " ").lower()
                return f"no TLS with {host} ({reason}): check KEEPA_BASE_URL"
            case ConnectionRefusedError():
                return f"{host} refuses connections: check KEEPA_BASE_URL and the firewall"
    if _timed_out(causes):
        return f"no connection to {host} within the connect timeout"
    return _why_refused_here(exc, host)


def _timed_out(causes: list[BaseException]) -> bool:
    # The library's NewConnectionError is always a timeout, also for other reasons.
    return any(
        isinstance(cause, requests.Timeout | urllib3.exceptions.TimeoutError | TimeoutError)
        and not isinstance(cause, urllib3.exceptions.NewConnectionError)
        for cause in causes
    )


def _why_refused_here(exc: Exception, host: str) -> str:
    """Returns why the library itself did not send the request."""
    match exc:
        case requests.exceptions.InvalidSchema() | requests.exceptions.MissingSchema():
            return "KEEPA_BASE_URL must start with https://"
        case requests.exceptions.InvalidURL() | urllib3.exceptions.LocationValueError():
            return "KEEPA_BASE_URL names no server"
        case requests.exceptions.ConnectionError():
            numbers = [c.errno for c in _causes(exc) if isinstance(c, OSError) and c.errno]
            reason = f" ({os.strerror(numbers[0])})" if numbers else ""
            return f"can't connect to {host}{reason}"
        case OSError() if not isinstance(exc, requests.RequestException):
            return "no CA certificates: check REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE"
        case _:
            return f"the request can't be sent ({type(exc).__name__})"


def _why_no_proxy(exc: Exception) -> str:
    causes = _causes(exc)
    for cause in causes:
        text = str(cause)
        if text.startswith("Tunnel connection failed: "):
            return f"the proxy refuses the way ({text.removeprefix('Tunnel connection failed: ')})"
        match cause:
            case urllib3.exceptions.NameResolutionError() | socket.gaierror():
                return "the proxy's name can't be resolved"
            case ConnectionRefusedError():
                return "the proxy refuses connections"
            case ssl.SSLError():
                return "no TLS with the proxy"
    return "the proxy does not answer" if _timed_out(causes) else "the proxy can't be used"
