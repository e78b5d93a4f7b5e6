"""OpenTelemetry: sends spans to the collector that the environment names, if it names one.

The code that does the work begins its spans with OpenTelemetry's API. They cost nothing
until `exporting` has loaded the SDK.
"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Final

from opentelemetry import trace

from protos.process.settings import OtlpProtocol

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

# Longest delay of the process's end by a collector that is away.
FLUSH_S: Final = 1.0


@contextmanager
def exporting(service: str, protocol: OtlpProtocol | None) -> Iterator[None]:
    """Sends the spans of *service* by *protocol* while the block runs; None sends nothing.

    The SDK reads the collector's address and all other options from the environment.
    """
    if protocol is None:
        yield
        return
    provider = _provider(service, protocol)
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        flush = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
        flush.start()
        flush.join(FLUSH_S)


def _provider(service: str, protocol: OtlpProtocol) -> "TracerProvider":
    # Imported late: slow to load, and only a process that traces needs them.
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    instance = f"{socket.gethostname()}-{os.getpid()}"
    ours = {"service.name": service, "service.instance.id": instance}
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence.
    resource = Resource.create(ours | dict(OTELResourceDetector().detect().attributes))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(protocol)))
    return provider


def _exporter(protocol: OtlpProtocol) -> "SpanExporter":
    place = f"opentelemetry.exporter.otlp.proto.{protocol.partition('/')[0]}.trace_exporter"
    exporter: SpanExporter = import_module(place).OTLPSpanExporter()
    return exporter
