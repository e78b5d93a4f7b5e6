"""What a restarted broker takes over from the journal; times on its own clock."""

from dataclasses import dataclass

from broker.core.leases import Ended
from broker.core.records import Carried


@dataclass(frozen=True, slots=True)
class PastCost:
    """A settled call, for the learned costs."""

    holder: str
    operation: str
    units: int
    tokens: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class PastCharge:
    """Tokens charged to the budgets at a time; a sum over calls."""

    holder: str
    operation: str
    tokens: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """The journal's end: open and lapsed leases, those that ended lately, costs, charges."""

    leases: tuple[Carried, ...] = ()
    ended: tuple[tuple[str, Ended], ...] = ()
    # Oldest first.
    costs: tuple[PastCost, ...] = ()
    charges: tuple[PastCharge, ...] = ()
    paused: bool = False
