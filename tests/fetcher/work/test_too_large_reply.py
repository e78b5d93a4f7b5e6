"""A fetcher gives up a page with too large a reply, and goes on with the others."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.fetcher.fetcher_log import assert_no_traceback, stop_in_time
from tests.fix_fetcher import SELECTION, StartWorld
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

# An ordinary page of 150 rows passes; its objects count for more than a mebibyte.
LIMIT_BYTES = 8 * 1024 * 1024
# Only this query has a search in the title, so only its replies are padded.
LARGE = {"selection": SELECTION | {"titleSearch": "desk"}}


class Padding(BaseHTTPRequestHandler):
    """Forwards calls to *upstream*; pads the replies to searches beyond the limit."""

    upstream: ClassVar[str]

    def do_GET(self) -> None:
        """Forwards one call."""
        connection = http.client.HTTPConnection(self.upstream, timeout=30)
        connection.request("GET", self.path, headers={"Accept-Encoding": "identity"})
        reply = connection.getresponse()
        body = reply.read()
        encoding = reply.getheader("Content-Encoding")
        connection.close()
        selection = parse_qs(urlsplit(self.path).query).get("selection", [""])[0]
        if "titleSearch" in selection:
            body, encoding = b" " * (LIMIT_BYTES + 1), None
        self.send_response(reply.status)
        if encoding is not None:
            self.send_header("Content-Encoding", encoding)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Logs nothing."""


@contextmanager
def padding(upstream: str) -> Iterator[str]:
    """Base URL of a server that forwards to *upstream* (host:port) and pads searches."""
    handler = type("PaddingOf", (Padding,), {"upstream": upstream})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_too_large_a_reply_ends_in_a_dead_page_and_the_fetcher_goes_on(
    start_world: StartWorld,
) -> None:
    """The page is dead after one paid try, and the other query completes."""
    world = start_world(seed=2)
    world.write_query("large", LARGE)
    world.write_query("used")
    with padding(world.simulator.base_url.removeprefix("http://")) as base_url:
        fetcher = world.start_fetcher(keepa_base_url=base_url, keepa_reply_max_bytes=LIMIT_BYTES)
        wait_until(
            lambda: world.rows("SELECT 1 FROM scan_pages WHERE state = 'dead'"), "a dead page"
        )
        wait_until(world.scans_completed, "a completed scan of the other query")
        code = stop_in_time(fetcher)
    [(attempts, error, query)] = world.rows(
        "SELECT attempts, error, query FROM scan_pages p JOIN scans s ON s.id = p.scan_id"
        " WHERE p.state = 'dead'"
    )

    assert code == 0
    assert query == "large"
    assert attempts == 1
    assert f"KEEPA_REPLY_MAX_BYTES={LIMIT_BYTES}" in error
    assert world.stored_deals() != set()
    assert_no_traceback(fetcher)
    assert [call for call in world.calls() if call["status"] != HTTPStatus.OK] == []
