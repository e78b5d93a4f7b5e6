"""What a run is made of: Keepa's habits, the fleet, and everything that goes wrong."""

from dataclasses import dataclass, replace
from random import Random
from typing import Final

from broker.core.allocator import DEBT_HORIZON_MS, AllocatorConfig
from broker.core.budgets import Budget
from tests.simulation.demand import DEALS, KNOWN, UNKNOWN, Demand
from tests.simulation.keepa_model import Moment

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything but the seed. Probabilities are per opportunity; `…_every_ms` is
    the mean time between two strikes, 0 for never.
    """

    # Keepa
    rate: int = 20
    period_ms: int = 60_200
    tick_jitter_ms: int = 0
    # The period wanders by up to this much a tick.
    period_wander_ms: int = 0
    opening: int = 100
    charge: Moment = Moment.START
    snapshot: Moment = Moment.END
    reduction_milli: int = 0
    # The fleet
    workers: int = 8
    workers_per_holder: int = 1
    demands: tuple[Demand, ...] = (DEALS,)
    # Each worker sticks to one kind of call, dealt out in turn.
    loyal: bool = False
    idle_ms: int = 0
    max_wait: float = 0.0
    give_up: float = 0.0
    # Keepa's calls, and the way there and back, each from the first to the second
    processing_ms: int = 400
    call_way_ms: tuple[int, int] = (5, 40)
    probe_way_ms: tuple[int, int] = (10, 100)
    slow_call: float = 0.0
    call_lost: float = 0.0
    reply_lost: float = 0.0
    server_error: float = 0.0
    probe_fails: float = 0.0
    outage_every_ms: int = 0
    # Messages between workers and broker
    delay_ms: int = 4
    slow_message: float = 0.0
    message_lost: float = 0.0
    message_copied: float = 0.0
    # Lives
    dies_before_call: float = 0.0
    dies_in_call: float = 0.0
    restart_every_ms: int = 0
    suspend_every_ms: int = 0
    clock_stop_every_ms: int = 0
    pause_every_ms: int = 0
    # The account
    foreign_every_ms: int = 0
    plan_change_every_ms: int = 0
    reduction_every_ms: int = 0
    # The broker
    clock_ppm: int = 0
    floor_tokens: int = 0
    # Refill time of the greatest debt; None stands for one tick.
    debt_horizon_ms: int = DEBT_HORIZON_MS
    budgets: tuple[Budget, ...] = ()
    # Length of a day of the budgets; 0: there is none.
    day_ms: int = 0
    # Identities of the workers, in turn, and their weights.
    identities: tuple[str, ...] = ()
    weights: tuple[tuple[str, float], ...] = ()

    def holder(self, number: int) -> str:
        """The holder that worker *number* asks for."""
        own = f"h{number // self.workers_per_holder}"
        identities = self.identities
        return f"{identities[number % len(identities)]}/{own}" if identities else own

    def config(self) -> AllocatorConfig:
        """The broker's configuration."""
        return AllocatorConfig(
            floor_tokens=self.floor_tokens,
            debt_horizon_ms=self.debt_horizon_ms,
            budgets=self.budgets,
        )


# What a random run may switch on, each with its possible settings.
FEATURES: Final[dict[str, tuple[object, ...]]] = {
    "tick_jitter_ms": (3, 15, 60),
    "period_wander_ms": (2, 20),
    "charge": (Moment.END,),
    "snapshot": (Moment.START,),
    "reduction_milli": (500, 1250),
    "loyal": (True,),
    "max_wait": (0.1, 0.6),
    "give_up": (0.05,),
    "slow_call": (0.01, 0.1),
    "call_lost": (0.02,),
    "reply_lost": (0.02,),
    "server_error": (0.03,),
    "probe_fails": (0.05, 0.5),
    "outage_every_ms": (20 * MINUTE_MS,),
    "slow_message": (0.01, 0.1),
    "message_lost": (0.01, 0.1),
    "message_copied": (0.02,),
    "dies_before_call": (0.01,),
    "dies_in_call": (0.01,),
    "restart_every_ms": (10 * MINUTE_MS, 2 * HOUR_MS),
    "suspend_every_ms": (10 * MINUTE_MS,),
    "clock_stop_every_ms": (30 * MINUTE_MS,),
    "pause_every_ms": (HOUR_MS,),
    "foreign_every_ms": (5 * MINUTE_MS, HOUR_MS),
    "plan_change_every_ms": (HOUR_MS,),
    "reduction_every_ms": (HOUR_MS,),
    "clock_ppm": (-50, 100),
    "floor_tokens": (10,),
    "debt_horizon_ms": (0, MINUTE_MS, 5 * MINUTE_MS),
    "budgets": (
        (Budget("offers", operation="*offers*", share=0.3),),
        (Budget("odd", holder="*1*", tokens_per_hour=200),),
    ),
}


def random_scenario(seed: int) -> Scenario:
    """A scenario of its own for every seed; each feature is on in about a third.

    Leaving features out matters as much as putting them in: one that is always
    on hides what goes wrong without it.
    """
    rng = Random(f"scenario/{seed}")
    rate = rng.choice((1, 5, 5, 20, 60, 300))
    workers = rng.choice((1, 2, 5, 8, 20, 60, 200))
    count = rng.randint(1, 4)
    base = Scenario(
        rate=rate,
        period_ms=rng.choice((60_200, 60_200, 60_000, 2_000)),
        opening=rng.choice((0, -rate * 20, rate * 30, rate * 60)),
        workers=workers,
        workers_per_holder=rng.choice((1, 1, 3)),
        demands=tuple(rng.sample(KNOWN + UNKNOWN, count)),
        # From starved to idle most of the time.
        idle_ms=rng.choice((0, 10_000, 5 * MINUTE_MS, HOUR_MS)) * max(1, workers // 8),
        processing_ms=rng.choice((50, 400, 2_000)),
    )
    chance = rng.choice((0.1, 0.3, 0.5))
    chosen = {
        name: rng.choice(settings) for name, settings in FEATURES.items() if rng.random() < chance
    }
    return replace(base, **chosen)  # type: ignore[arg-type]  # settings fit their fields
