"""Calls to Keepa end in a usable reply or in the one right error, and never show the key."""

import gzip
import json
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from fetcher.errors import (
    KeepaError,
    KeepaResponseError,
    KeepaThrottledError,
    KeepaUnavailableError,
)
from fetcher.keepa import Keepa

KEY = "k3y-that-nobody-may+see/at=all"
ENVELOPE = {
    "timestamp": 1_758_325_044_347,
    "processingTimeInMs": 2,
    "tokensLeft": 33,
    "tokensConsumed": 5,
    "refillIn": 38_816,
    "refillRate": 5,
    "tokenFlowReduction": 0.0,
}
Answer = Callable[[socket.socket], None]


class RawServer:
    """A server that answers each request with exact bytes, faults included."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                head, _, body = connection.recv(1 << 20).partition(b"\r\n\r\n")
                line, *fields = head.decode().split("\r\n")
                headers = {
                    name.lower(): value for name, value in (f.split(": ", 1) for f in fields)
                }
                while len(body) < int(headers.get("content-length", 0)):
                    body += connection.recv(1 << 20)
                self.requests.append((line, headers, body))
                self._answer(connection)


@contextmanager
def serving(answer: Answer) -> Iterator[RawServer]:
    """A raw server for one test."""
    server = RawServer(answer)
    try:
        yield server
    finally:
        server.close()


def reply(status: int, body: bytes, *, length: int | None = None) -> Answer:
    """An answer with a gzipped *body*; *length* may lie."""
    packed = gzip.compress(body)
    head = (
        f"HTTP/1.1 {status} Whatever\r\nContent-Encoding: gzip\r\nConnection: close\r\n"
        f"Content-Length: {len(packed) if length is None else length}\r\n\r\n"
    )
    return lambda connection: connection.sendall(head.encode() + packed)


def json_reply(status: int, **fields: Any) -> Answer:
    """An answer with the envelope and *fields*."""
    return reply(status, json.dumps(ENVELOPE | fields).encode())


def reset(connection: socket.socket) -> None:
    """Resets the connection instead of answering."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def keepa(base_url: str) -> Keepa:
    """A client with short timeouts."""
    return Keepa(KEY, base_url=base_url, connect_timeout_s=10, read_timeout_s=3)


def failure(answer: Answer) -> KeepaError:
    """The error that *answer* leads to, after looking for the key in all of it."""
    with (
        serving(answer) as server,
        keepa(server.base_url) as client,
        pytest.raises(KeepaError) as caught,
    ):
        client.deals({"page": 0})
    assert_no_key(caught.value)
    return caught.value


def assert_no_key(error: BaseException | None) -> None:
    """Looks for the key in an error, its causes and contexts."""
    while error is not None:
        text = "".join(traceback.format_exception(error)) + repr(error)
        assert KEY not in text
        assert "nobody-may" not in text
        error = error.__cause__ or error.__context__


def test_a_reply_carries_body_and_envelope() -> None:
    """A page of deals comes with the state of Keepa's tokens."""
    with (
        serving(json_reply(200, deals={"dr": []})) as server,
        keepa(server.base_url) as client,
    ):
        answer = client.deals({"page": 0, "domainId": "1"})
    line, headers, _ = server.requests[0]
    query = parse_qs(urlsplit(line.split()[1]).query)

    assert answer.body["deals"] == {"dr": []}
    assert answer.envelope is not None
    assert answer.envelope.tokens_consumed == 5
    assert json.loads(query["selection"][0]) == {"page": 0, "domainId": "1"}
    assert query["key"] == [KEY]
    assert headers["accept-encoding"] == "gzip"


def test_a_long_selection_travels_in_the_body() -> None:
    """Five hundred excluded categories don't fit a request line."""
    selection = {"excludeCategories": [1_000_000_000 + n for n in range(500)]}
    with serving(json_reply(200)) as server, keepa(server.base_url) as client:
        client.deals(selection)
    line, headers, body = server.requests[0]

    assert line.startswith("POST /deal?key=")
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == selection


def test_429_is_throttled_with_its_envelope() -> None:
    """A refusal is no failure of the page, and holds the time of the next tokens."""
    error = failure(json_reply(429, tokensLeft=-249, tokensConsumed=0))

    assert isinstance(error, KeepaThrottledError)
    assert error.envelope is not None
    assert error.envelope.tokens_left == -249


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_error_is_worth_another_try(status: int) -> None:
    """5xx with an envelope holds its cost."""
    error = failure(json_reply(status))

    assert isinstance(error, KeepaUnavailableError)
    assert error.envelope is not None


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, b'{"deals": {"dr": [', length=None),
        reply(200, json.dumps(ENVELOPE).encode(), length=10_000),
        reply(200, b"<html>hello</html>"),
        reply(200, b"[1, 2]"),
        reply(200, b""),
        reply(503, b"upstream connect error"),
        reset,
        lambda connection: connection.close(),
        lambda connection: connection.recv(1),
    ],
    ids=["cut", "short", "html", "list", "empty", "plain 503", "reset", "closed", "silent"],
)
def test_an_unusable_answer_may_have_been_charged(answer: Answer) -> None:
    """Without an envelope the cost of a call that was sent is unknown."""
    error = failure(answer)

    assert isinstance(error, KeepaUnavailableError)
    assert error.sent
    assert error.envelope is None


def test_no_connection_means_not_charged() -> None:
    """A call that found no listener was never sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with keepa(f"http://127.0.0.1:{port}") as client, pytest.raises(KeepaError) as caught:
        client.deals({})

    assert isinstance(caught.value, KeepaUnavailableError)
    assert not caught.value.sent
    assert_no_key(caught.value)


@pytest.mark.parametrize("status", [400, 402, 404, 405])
def test_a_refused_request_is_given_up(status: int) -> None:
    """The same request would be refused again."""
    error = failure(json_reply(status, error={"type": "bad", "message": "no"}))

    assert isinstance(error, KeepaResponseError)
    assert error.status == status
    assert "bad no" in str(error)


def test_an_error_object_in_a_200_is_an_error() -> None:
    """Keepa may refuse with HTTP 200; that is no empty page."""
    error = failure(json_reply(200, error={"type": "invalidSelection", "message": f"key {KEY}"}))

    assert isinstance(error, KeepaResponseError)
    assert error.kind == "invalidSelection"


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("left", [0, -249])
@pytest.mark.parametrize(
    "error",
    [
        {"type": "NOT_ENOUGH_TOKEN", "message": "wait"},
        {"type": "error", "message": "You have not enough tokens left", "details": ""},
        "not enough tokens",
    ],
    ids=["type", "message", "text"],
)
def test_too_few_tokens_by_another_status_are_waited_for(
    status: int, left: int, error: object
) -> None:
    """The page is neither put aside nor counted as failed: nothing was spent."""
    caught = failure(json_reply(status, error=error, tokensLeft=left, tokensConsumed=0))

    assert isinstance(caught, KeepaThrottledError)
    assert caught.envelope is not None
    assert caught.envelope.tokens_left == left


@pytest.mark.parametrize(
    "fields",
    [{"tokensLeft": 5}, {"tokensConsumed": 5}, {"refillRate": 0}, {"error": {"type": "bad"}}],
    ids=["has tokens", "was charged", "unknown key", "another error"],
)
def test_other_errors_are_no_refusals(fields: dict[str, Any]) -> None:
    """To wait for tokens would not help."""
    refused = {"error": {"type": "tokens"}, "tokensLeft": -5, "tokensConsumed": 0}

    assert isinstance(failure(json_reply(200, **(refused | fields))), KeepaResponseError)


def test_an_unknown_key_is_recognised() -> None:
    """Keepa answers an unknown key with an error and all token fields zero."""
    error = failure(
        json_reply(
            400,
            error={"type": "invalidParameter", "message": "You used an invalid parameter."},
            refillRate=0,
            tokensLeft=0,
        )
    )

    assert isinstance(error, KeepaResponseError)
    assert error.concerns_key


def test_a_redirect_is_not_followed() -> None:
    """A redirect would carry the key to wherever it points."""
    error = failure(
        lambda connection: connection.sendall(
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
        )
    )

    assert isinstance(error, KeepaResponseError)


def test_a_reply_that_drips_for_ever_is_cut_off() -> None:
    """A byte now and then resets each read's timeout, but not the call's."""
    enough = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not enough.wait(0.05):
            try:
                connection.sendall(b" " * 70_000)
            except OSError:
                return

    with serving(drip) as server:
        client = Keepa(KEY, base_url=server.base_url, connect_timeout_s=0.1, read_timeout_s=0.2)
        with client, pytest.raises(KeepaUnavailableError):
            client.token_status()
        enough.set()


def test_products_are_asked_for_with_their_parameters() -> None:
    """The parameters of an enrichment reach Keepa unchanged."""
    with (
        serving(json_reply(200, products=[])) as server,
        keepa(server.base_url) as client,
    ):
        client.products(["B000000001", "B000000002"], domain_id=3, parameters={"stats": 90})
    query = parse_qs(urlsplit(server.requests[0][0].split()[1]).query)

    assert query["asin"] == ["B000000001,B000000002"]
    assert query["domain"] == ["3"]
    assert query["stats"] == ["90"]


def test_the_client_does_not_show_its_key() -> None:
    """Neither repr nor a debugger's view of the session holds it."""
    with Keepa(KEY) as client:
        shown = repr(client)

    assert KEY not in shown
