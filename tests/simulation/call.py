"""One call as an all-knowing observer sees it."""

from dataclasses import dataclass

from tests.simulation.demand import Demand


@dataclass(slots=True, eq=False)
class Call:
    """A worker's request for a lease, and the call that may follow."""

    lease_id: str
    holder: str
    demand: Demand
    units: int
    max_wait_ms: int | None
    asked_ms: int
    # As granted; the latest grant counts.
    epoch: int = 0
    granted_units: int = 0
    tokens: int = 0
    # What Keepa charges for it.
    cost: int = 0
    charged: bool = False
    # The broker holds tokens for it, and it may still be charged.
    held: bool = False
    # It will never be charged (any more).
    harmless: bool = False
    # The worker is done with it.
    over: bool = False
    # The auditor's count of surprises at Keepa's last reply before the grant.
    surprises: int = 0

    @property
    def min_units(self) -> int:
        """The least that is useful."""
        return 0 if self.demand.whole else 1
