"""Real receivers on this machine: of webhooks over HTTP, and of mail over SMTP."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller

from deploy.local.ports import free_port


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came in."""

    headers: dict[str, str]
    body: bytes


@dataclass
class WebhookReceiver:
    """Answers each request with the next of `statuses`, else 200; `before` runs first."""

    received: list[Received] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    before: Callable[[], None] | None = None
    address: str = ""
    reply_headers: dict[str, str] = field(default_factory=dict)

    def ids(self) -> list[str]:
        """The ids of all requests, in the order in which they came."""
        return [request.headers["webhook-id"] for request in self.received]


@contextmanager
def webhook_receiver() -> Iterator[WebhookReceiver]:
    """A receiver on a free port."""
    receiver = WebhookReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.received.append(Received(headers, body))
            if receiver.before is not None:
                receiver.before()
            self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
            for name, value in receiver.reply_headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Prints nothing."""

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:
                """A sender that was killed reads no answer."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    receiver.address = f"http://127.0.0.1:{server.server_address[1]}/hook/sesame-4711"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class MailReceiver:
    """Keeps what comes in; refuses the next `refusals` mails."""

    mails: list[Message] = field(default_factory=list)
    refusals: int = 0
    port: int = 0

    @property
    def address(self) -> str:
        """The address of the receiver for apprise."""
        return f"mailto://127.0.0.1:{self.port}/?from=deals@example.com&to=me@example.com"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        """Takes a mail, or refuses it."""
        if self.refusals:
            self.refusals -= 1
            return "451 later, please"
        self.mails.append(BytesParser(policy=default).parsebytes(envelope.content))
        return "250 OK"


@contextmanager
def mail_receiver() -> Iterator[MailReceiver]:
    """A receiver on a free port."""
    receiver = MailReceiver()
    receiver.port = free_port("127.0.0.1")
    controller = Controller(receiver, hostname="127.0.0.1", port=receiver.port)
    controller.start()
    try:
        yield receiver
    finally:
        controller.stop()
