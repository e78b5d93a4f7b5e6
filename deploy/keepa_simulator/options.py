"""The settings of a simulator."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from deploy.keepa_simulator.account import KEEPA_TICK_MS
from deploy.keepa_simulator.faults import Fault

# Documented, so that a demonstration needs no setting; it has the length of a real key.
DEMO_KEY = "simulator0demo0key0" + "0" * 44 + "1"
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of one simulator.

    Args:
        api_keys: Each has an account of its own, all with the same plan.
        rate: Tokens per tick.
        initial_tokens: Opening balance; None is a full bucket.
        tick_ms: Milliseconds from one tick to the next.
        deal_speed: Speed-up of deals appearing and vanishing.
        products: Products on each domain.
        deals: Approximate number of current deals on each domain.
        seed: Equal seeds give equal products.
        cache_ms: Lifetime of a selection's cached reply.
        latency_ms: Least and greatest added duration of a call.
        charge_at: Whether a call is charged when it starts or when its reply is ready;
            Keepa's own choice is unknown.
        faults: Faults from the start on.
        journal: A file that gets one line per call.
        state: A file that keeps the accounts over a restart, beside copies of the catalogues;
            the calls of the journal come back with them.
    """

    api_keys: tuple[str, ...] = (DEMO_KEY,)
    rate: int = 20
    initial_tokens: int | None = None
    tick_ms: int = KEEPA_TICK_MS
    deal_speed: float = 1.0
    products: int = 20_000
    deals: int = 5_000
    seed: int = 1
    cache_ms: int = 120_000
    latency_ms: tuple[int, int] = (0, 0)
    charge_at: Literal["start", "end"] = "start"
    faults: tuple[Fault, ...] = ()
    journal: Path | None = None
    state: Path | None = None


def fingerprint(key: str) -> str:
    """A short name of a key that may be shown; the key itself may not."""
    return sha256(f"keepa-token-broker:{key}".encode()).hexdigest()[:12]
