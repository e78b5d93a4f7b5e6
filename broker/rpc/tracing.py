"""OpenTelemetry: the broker's part of the traces that its clients begin.

Nothing is traced, and the SDK is not even loaded, unless the environment names a collector.
"""

import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from broker.settings import OtlpProtocol

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

SERVICE: Final = "tokenbroker"
# A collector that is away must not hold up the end for longer.
FLUSH_S: Final = 1.0
PARENT_KEY: Final = "traceparent"

tracer: Final = trace.get_tracer(SERVICE)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class TracedCalls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in stubs only
    """A span for each call that comes with a trace; what polls the broker begins none."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The handler of the call, within a span where the caller has one."""
        handler = await continuation(handler_call_details)
        metadata = dict(handler_call_details.invocation_metadata)
        if PARENT_KEY not in metadata or handler is None or handler.unary_unary is None:
            return handler
        parent = TraceContextTextMapPropagator().extract(metadata)
        name, answer = handler_call_details.method.lstrip("/"), handler.unary_unary

        async def traced(request: object, context: Any) -> object:
            with tracer.start_as_current_span(name, parent, kind=trace.SpanKind.SERVER):
                return await answer(request, context)

        return grpc.unary_unary_rpc_method_handler(
            traced, handler.request_deserializer, handler.response_serializer
        )


@contextmanager
def exporting(protocol: OtlpProtocol | None) -> Iterator[None]:
    """Send spans by *protocol* while the block runs; None sends nothing.

    Where to, and all else, the SDK reads from the environment.
    """
    if protocol is None:
        yield
        return
    provider = _provider(protocol)
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        flush = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
        flush.start()
        flush.join(FLUSH_S)


def _provider(protocol: OtlpProtocol) -> "TracerProvider":
    # Only who traces pays for these imports.
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win.
    instance = f"{socket.gethostname()}-{os.getpid()}"
    ours = {"service.name": SERVICE, "service.instance.id": instance}
    resource = Resource.create(ours | dict(OTELResourceDetector().detect().attributes))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(protocol)))
    return provider


def _exporter(protocol: OtlpProtocol) -> "SpanExporter":
    place = f"opentelemetry.exporter.otlp.proto.{protocol.partition('/')[0]}.trace_exporter"
    exporter: SpanExporter = import_module(place).OTLPSpanExporter()
    return exporter
