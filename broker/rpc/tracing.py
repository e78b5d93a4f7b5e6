"""OpenTelemetry: the broker's spans within the traces of its clients."""

from typing import Final

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from broker.rpc.layers import Answer, Context, Stream

SERVICE: Final = "tokenbroker"
PARENT_KEY: Final = "traceparent"

tracer: Final = trace.get_tracer(SERVICE)


class TracedCalls:
    """Begins a span for each call that carries a trace; polling begins none."""

    def unary(self, method: str, answer: Answer) -> Answer:
        """Answers within a span if the call carries a trace."""
        name = method.lstrip("/")

        async def traced(request: object, context: Context) -> object:
            metadata = dict(context.invocation_metadata() or ())
            if PARENT_KEY not in metadata:
                return await answer(request, context)
            parent = TraceContextTextMapPropagator().extract(metadata)
            with tracer.start_as_current_span(name, parent, kind=trace.SpanKind.SERVER):
                return await answer(request, context)

        return traced

    def stream(self, method: str, stream: Stream) -> Stream:
        """Streams have no span."""
        del method
        return stream
