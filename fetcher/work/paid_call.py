"""One call to Keepa under one lease: however it ends, the broker hears what it cost."""

from collections.abc import Callable

from opentelemetry.trace import SpanKind

from fetcher.broker_client import Lease
from fetcher.errors import KeepaResponseError, KeepaThrottledError, KeepaUnavailableError
from fetcher.keepa import Reply
from fetcher.tracing import tracer


def leased_call(lease: Lease, call: Callable[[], Reply], *, units: int | None = None) -> Reply:
    """Make *call* and settle *lease* the moment its outcome is known.

    *units* is what the call asks for where that is less than was granted.

    Raises:
        LeaseLostError: Too little of the lease is left; nothing was sent.
        KeepaError: As the call raised it, settled.
    """
    lease.calling()
    try:
        with tracer.start_as_current_span("call", kind=SpanKind.CLIENT) as span:
            reply = call()
            if reply.envelope is not None:
                span.set_attribute("tokens_consumed", reply.envelope.tokens_consumed)
                span.set_attribute("tokens_left", reply.envelope.tokens_left)
    except KeepaThrottledError as exc:
        lease.settle_refused(exc.envelope)
        raise
    except KeepaUnavailableError as exc:
        if exc.sent:
            lease.settle_replied(exc.envelope, units=units)
        else:
            lease.settle_not_sent()
        raise
    except KeepaResponseError as exc:
        lease.settle_replied(exc.envelope, units=units)
        raise
    lease.settle_replied(reply.envelope, units=units)
    return reply
