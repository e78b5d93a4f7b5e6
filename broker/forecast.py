"""When everybody who waits will be served, if nobody else comes."""

from collections.abc import Callable, Iterable
from math import ceil

from broker.waitlist import Waiting


def etas_ms(
    order: Iterable[Waiting], *, available: int, lump: float, delay_ms: Callable[[int], int]
) -> dict[str, int | None]:
    """Expected delay until service, by lease_id, in milliseconds.

    Everybody is served in turn, each at the first tick that brings the least
    that is useful to it, and takes all it wants that is there by then.

    Args:
        order: Who waits, first served first.
        available: Tokens that could be granted now; may be negative.
        lump: Tokens one tick brings; with none, nobody can tell (None).
        delay_ms: The delay from now until the n-th coming tick (from 1).
    """
    etas: dict[str, int | None] = {}
    left: float = available
    ticks = 0
    for waiting in order:
        quote = waiting.quote
        missing = quote.least_tokens - left
        if missing > 0:
            if lump <= 0:
                etas[waiting.request.lease_id] = None
                continue
            more = ceil(missing / lump)
            ticks += more
            left += more * lump
        etas[waiting.request.lease_id] = delay_ms(ticks) if ticks else 0
        left -= max(quote.least_tokens, min(quote.tokens, left))
    return etas
