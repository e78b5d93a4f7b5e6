"""The fetcher's tracer, and the name under which its spans appear."""

from typing import Final

from opentelemetry import trace

SERVICE: Final = "dealfetcher"

tracer: Final = trace.get_tracer(SERVICE)
