"""What the journal does at the moment, for operators."""

from dataclasses import dataclass
from enum import Enum


class JournalState(Enum):
    """What the journal does."""

    # There is none.
    OFF = "off"
    WRITING = "writing"
    # Postgres is away; records gather.
    BUFFERING = "buffering"
    # Another broker leads: records of this one are not written.
    FENCED = "fenced"


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """The journal at one moment: numbers of records, ms, and the trouble for people."""

    state: JournalState = JournalState.OFF
    written: int = 0
    lost: int = 0
    buffered: int = 0
    lag_ms: int = 0
    trouble: str = ""
