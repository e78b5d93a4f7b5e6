"""A loopback OpenTelemetry collector: keeps the spans that it receives over OTLP/HTTP."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACES_PATH: Final = "/v1/traces"


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A received span; *text* is all of it, for a search for secrets."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, str]
    text: str


class OtlpReceiver:
    """The spans received so far."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._spans: list[ReceivedSpan] = []

    @property
    def spans(self) -> list[ReceivedSpan]:
        """Every span, in the order of arrival."""
        with self._lock:
            return list(self._spans)

    def traces(self) -> dict[str, list[ReceivedSpan]]:
        """The spans by trace."""
        found: dict[str, list[ReceivedSpan]] = {}
        for span in self.spans:
            found.setdefault(span.trace_id, []).append(span)
        return found

    def take(self, body: bytes) -> None:
        """Keeps the spans of one export."""
        spans = list(_spans(ExportTraceServiceRequest.FromString(body)))
        with self._lock:
            self._spans += spans


@contextmanager
def receiving() -> Iterator[OtlpReceiver]:
    """A receiver on a free port, for the length of the block."""

    class Exchange(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            known = self.path == TRACES_PATH
            if known:
                receiver.take(body)
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as above
            """Logs nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Exchange) as server:
        receiver = OtlpReceiver(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()


def _spans(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for group in request.resource_spans:
        resource = {one.key: one.value.string_value for one in group.resource.attributes}
        for scope in group.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    service=resource["service.name"],
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    attributes={
                        one.key: one.value.string_value or str(one.value.int_value)
                        for one in span.attributes
                    },
                    text=f"{group.resource} {span}",
                )
