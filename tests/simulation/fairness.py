"""How long anyone may wait, in tokens that go to others meanwhile.

The waitlist is start-time fair queueing in two levels. Let L be the largest
charge so far, W the calls that one holder may have under way, F the holders
that share the class while a request waits.

Inside the class: the request starts at most W·L behind its holder's earlier
ones, and its holder at most W·L ahead of virtual time (what it was served ahead
of its turn, corrections included). Another holder is served until its tag has
passed that of the request: at most 2·W·L + 2·L tokens, and 2·L more if it comes back
from a call and has kept its turn. So the class is served at most P = F·(2·W·L + 4·L)
before it.

Among classes: a class of weight v is served at most v/w·(P + 2·L) + 2·L while
one of weight w is served P, by the same argument on class tags.

By liveness (see audit.py), tokens are granted as they land. Together the two bound the
time: these tokens over the refill rate, plus a probe's patience per tick.
"""

from dataclasses import dataclass
from typing import Final

from broker.core.leases import Priority
from tests.simulation.call import Call

WEIGHTS: Final = {Priority.HIGH: 8, Priority.NORMAL: 4, Priority.LOW: 1}


@dataclass(frozen=True, slots=True)
class Arrival:
    """What had been served when a request began to wait; `order` counts arrivals."""

    call: Call
    served: tuple[int, int, int]
    births: int


class WaitBound:
    """Tokens served to each class, against what each waiting request must bear."""

    def __init__(self, holders: int, calls_per_holder: int) -> None:
        self._served = dict.fromkeys(Priority, 0)
        self._waiting: dict[str, Arrival] = {}
        self._holders = holders
        self._calls_per_holder = calls_per_holder
        self._births = 0
        self._largest = 1
        # The longest wait seen, as a part of its bound.
        self.worst = 0.0

    def forget(self) -> None:
        """A new broker begins: all waits start anew."""
        self._waiting.clear()

    def born(self) -> None:
        """One more holder than before."""
        self._births += 1

    def begins(self, call: Call) -> None:
        """*call* waits from now on."""
        if call.lease_id not in self._waiting:
            served = self._served
            self._waiting[call.lease_id] = Arrival(
                call,
                (served[Priority.HIGH], served[Priority.NORMAL], served[Priority.LOW]),
                self._births,
            )

    def ends(self, lease_id: str) -> None:
        """It no longer waits."""
        self._waiting.pop(lease_id, None)

    def serve(self, priority: Priority, tokens: int) -> None:
        """Charges *tokens* to a class; negative to correct an earlier charge."""
        self._served[priority] += tokens
        self._largest = max(self._largest, tokens)

    def broken_by(self) -> str | None:
        """What the request that has waited longest has to complain about, if anything."""
        for arrival in self._waiting.values():
            return self._complaint(arrival)
        return None

    def _complaint(self, arrival: Arrival) -> str | None:
        own = arrival.call.demand.priority
        largest = self._largest
        flows = self._holders + self._births - arrival.births
        class_tokens = flows * 2 * largest * (self._calls_per_holder + 2)
        for priority, before in zip(Priority, arrival.served, strict=True):
            bound = class_tokens
            if priority is not own:
                share = WEIGHTS[priority] / WEIGHTS[own]
                bound = int(share * (class_tokens + 2 * largest)) + 2 * largest
            served = self._served[priority] - before
            self.worst = max(self.worst, served / bound)
            if served > bound:
                return (
                    f"{arrival.call.lease_id} ({own.name}) waits while {served} tokens went to"
                    f" {priority.name}; {bound} is the most"
                )
        return None
