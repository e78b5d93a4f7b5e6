"""Builds replies of Keepa and requests of clients in few words."""

from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.bucket import Envelope, Observation, Source
from broker.core.leases import LeaseRequest, Outcome, Priority, Settlement

EPOCH = 7
# Keepa's clock stands far from the broker's: nothing may compare them.
SERVER_MS = 1_700_000_000_000
# By default the next tick is far away, at this one moment.
TICK_AT_MS = 10_000_000


def envelope(
    tokens_left: int,
    *,
    at: int = 0,
    took: int = 0,
    consumed: int = 0,
    refill_in: int | None = None,
    rate: int = 5,
    reduction: float = 0.0,
) -> Envelope:
    """Keepa's words *at* ms after the epoch of these tests."""
    if refill_in is None:
        refill_in = TICK_AT_MS - at - took
    return Envelope(SERVER_MS + at, took, tokens_left, consumed, refill_in, rate, reduction)


def probe(
    tokens_left: int, *, at: int, refill_in: int | None = None, rate: int = 5, took: int = 0
) -> Observation:
    """An answer to a probe that was asked and answered in the same ms."""
    said = envelope(tokens_left, at=at, took=took, refill_in=refill_in, rate=rate)
    return Observation(said, arrived_ms=at, requested_ms=at, source=Source.PROBE)


def request(
    lease_id: str = "a",
    *,
    holder: str = "h",
    operation: str = "deal",
    units: int = 1,
    min_units: int = 0,
    prior: float = 5,
    priority: Priority = Priority.NORMAL,
    ttl_ms: int = 15_000,
    deadline_ms: int | None = None,
    answer_by_ms: int | None = None,
) -> LeaseRequest:
    """A request for one deal page by default."""
    return LeaseRequest(
        lease_id,
        holder,
        operation,
        units,
        min_units,
        prior,
        priority,
        ttl_ms,
        deadline_ms,
        answer_by_ms,
    )


def settlement(
    lease_id: str = "a",
    outcome: Outcome = Outcome.REPLIED,
    said: Envelope | None = None,
    *,
    holder: str = "h",
    epoch: int = EPOCH,
    operation: str = "deal",
    units: int = 1,
    tokens: int = 5,
) -> Settlement:
    """How the call of a lease ended."""
    return Settlement(lease_id, epoch, holder, operation, units, tokens, outcome, said)


def synced(tokens: int, config: AllocatorConfig | None = None, **said: int) -> Allocator:
    """An allocator that serves, with a reply of Keepa at 0 ms."""
    config = config or AllocatorConfig(recovery_grace_ms=0)
    allocator = Allocator(config, epoch=EPOCH, started_ms=0)
    allocator.probe_started(0)
    allocator.probe_answered(envelope(tokens, **said), 0, 0)
    return allocator
