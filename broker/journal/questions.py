"""What the journal answers with; needs no driver of the database."""

from dataclasses import dataclass
from enum import Enum

from broker.core.records import Record


class By(Enum):
    """What spending is summed up by."""

    HOLDER = "holder"
    IDENTITY = "identity"
    OPERATION = "operation"
    HOUR = "hour"
    DAY = "day"


@dataclass(frozen=True, slots=True)
class Told:
    """A record of the story, and its time in Unix ms."""

    time_ms: int
    epoch: int
    kind: str
    record: Record


@dataclass(frozen=True, slots=True)
class SpendRow:
    """Spending of one holder, identity, operation, hour or day (UTC); tokens and numbers."""

    key: str
    tokens: int
    calls: int
    refusals: int
    denials: int
    written_off_tokens: int
