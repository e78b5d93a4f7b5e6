"""Keepa minutes: the clock of every stamp inside a product or deal."""

MINUTE_MS = 60_000
HOUR_MINUTES = 60
DAY_MINUTES = 24 * HOUR_MINUTES
# Unix minutes at which Keepa's clock stood at zero (2011-01-01).
KEEPA_EPOCH_MINUTES = 21_564_000


def even_keepa_minutes(unix_ms: float) -> int:
    """The newest even Keepa minute not after *unix_ms*; recorded stamps are always even."""
    return (int(unix_ms // MINUTE_MS) - KEEPA_EPOCH_MINUTES) & ~1


def unix_ms(keepa_minutes: int) -> int:
    """The time of a stamp, in Unix milliseconds."""
    return (keepa_minutes + KEEPA_EPOCH_MINUTES) * MINUTE_MS
