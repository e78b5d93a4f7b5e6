"""How a simulator is set up."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from deploy.keepa_simulator.account import KEEPA_TICK_MS
from deploy.keepa_simulator.faults import Fault

# Documented, so that a demonstration needs no setting; as long as a real key.
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
        deal_speed: How many times as fast as in reality deals come and go.
        products: Products on each domain.
        deals: About how many of them are deals at any moment.
        seed: Equal seeds give equal products.
        cache_ms: How long a selection's reply is served again.
        latency_ms: Least and most time that a call takes beyond computing it.
        charge_at: Whether a call is charged when it starts or when its reply is ready;
            nobody knows which it is at Keepa.
        faults: In force from the start.
        journal: A file that gets one line for each call.
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


def fingerprint(key: str) -> str:
    """A short name for a key that may be shown: the key itself never is."""
    return sha256(f"keepa-token-broker:{key}".encode()).hexdigest()[:12]
