"""OpenTelemetry: the broker's spans within the traces of its clients."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import grpc
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SERVICE: Final = "tokenbroker"
PARENT_KEY: Final = "traceparent"

tracer: Final = trace.get_tracer(SERVICE)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class TracedCalls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in stubs only
    """Begins a span for each call that carries a trace; polling begins none."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Returns the call's handler, within a span if the call carries a trace."""
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
