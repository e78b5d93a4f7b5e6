"""Calls whose cost is known: does the current observation include it?

A reply can speak for an earlier moment than the one before it. A call that it
does not certainly include stays reserved, at its cost.
"""

from collections import deque
from typing import Final

from broker.core.bucket import Observation
from broker.core.leases import Lease

# None speaks for a moment as old as this: twice the longest call.
UNCERTAIN_MS_MAX: Final = 240_000


class SettledCalls:
    """Recently settled calls that cost something, in the order of their settles."""

    def __init__(self) -> None:
        self._settled: deque[Lease] = deque()
        # Those that the current observation may lack.
        self.uncertain: dict[str, Lease] = {}

    @property
    def uncertain_tokens(self) -> int:
        """Tokens of the calls that the current observation may lack."""
        return sum(lease.cost for lease in self.uncertain.values())

    def add(self, lease: Lease) -> None:
        """Remember a call that has just been settled."""
        self._settled.append(lease)

    def cost_since(self, moment_ms: int) -> int:
        """Tokens of the calls settled after *moment_ms*."""
        cost = 0
        for lease in reversed(self._settled):
            if lease.settled_ms <= moment_ms:
                break
            cost += lease.cost
        return cost

    def included_by(self, observation: Observation) -> list[Lease]:
        """Uncertain calls that *observation* certainly includes."""
        return [lease for lease in self.uncertain.values() if self.includes(observation, lease)]

    def missing_from(self, observation: Observation, own: Lease | None) -> list[Lease]:
        """Calls that the last observation included but *observation* may not.

        Args:
            observation: Newer than any before.
            own: The call whose reply it is, if any: that one is included.
        """
        missing = []
        for lease in reversed(self._settled):
            if lease.settled_ms <= observation.requested_ms:
                break
            known = lease is own or lease.lease_id in self.uncertain
            if not known and not self.includes(observation, lease):
                missing.append(lease)
        oldest_ms = observation.arrived_ms - UNCERTAIN_MS_MAX
        while self._settled and self._settled[0].settled_ms < oldest_ms:
            self._settled.popleft()
        return missing

    @staticmethod
    def includes(observation: Observation, settled: Lease) -> bool:
        """Whether *observation* certainly includes the call of *settled*."""
        if settled.settled_ms <= observation.requested_ms:
            return True
        interval_ms = settled.interval_ms
        return interval_ms is not None and interval_ms[1] < observation.envelope.server_time_ms
