"""What a run measures on the way."""

from collections import Counter
from dataclasses import dataclass, field

from broker.core.leases import DenialReason, Denied, Granted, Priority
from tests.simulation.call import Call


@dataclass(slots=True)
class Measures:
    """Counts and tokens of one run."""

    requests: int = 0
    grants: int = 0
    calls: int = 0
    refusals: int = 0
    probes: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    denials: Counter[DenialReason] = field(default_factory=Counter)
    spent_by_holder: Counter[str] = field(default_factory=Counter)
    spent_by_class: Counter[Priority] = field(default_factory=Counter)
    largest: int = 0

    def charged(self, call: Call) -> None:
        """Keepa has charged a call."""
        self.calls += 1
        self.spent_by_holder[call.holder] += call.cost
        self.spent_by_class[call.demand.priority] += call.cost
        self.largest = max(self.largest, call.cost)

    def granted(self, call: Call, outcome: Granted) -> None:
        """The broker has granted a request."""
        self.grants += 1
        self.largest = max(self.largest, outcome.lease.tokens)

    def denied(self, outcome: Denied) -> None:
        """The broker has denied a request."""
        self.denials[outcome.reason] += 1
