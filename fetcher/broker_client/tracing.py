"""The client's spans; W3C trace context in the metadata connects the broker's to them.

All of it does nothing in a program that has not set up OpenTelemetry.
"""

from typing import Final

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

tracer: Final = trace.get_tracer("fetcher.broker_client")


def trace_context() -> tuple[tuple[str, str], ...]:
    """Returns metadata that names the current span; empty if there is none."""
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
