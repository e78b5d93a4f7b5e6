"""Events in the ledger that operators should see."""

from enum import Enum

from msgspec import Struct

from broker.core.evidence import Doubt


class EventKind(Enum):
    """What happened."""

    # A lease's client fell silent.
    EXPIRED = "expired"
    # A call was sent, and its client did not see what it cost.
    COST_UNKNOWN = "cost_unknown"
    # Keepa refused a call (HTTP 429).
    REFUSED = "refused"
    # A report did not fit the model.
    IMPLAUSIBLE = "implausible"
    # Tokens were spent by other programs with the same key.
    FOREIGN_SPEND = "foreign_spend"
    # Keepa's plan is another than before.
    PLAN = "plan"


class Event(Struct, frozen=True):
    """One event: `tokens` spent by others, or that a refill brings by the new plan."""

    kind: EventKind
    holder: str = ""
    tokens: int = 0
    doubt: Doubt | None = None
