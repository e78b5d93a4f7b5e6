"""Failed calls to Keepa by kind: counted in the process, added up in the database."""

import threading
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum

from fetcher.errors import KeepaResponseError, KeepaThrottledError, KeepaUnavailableError


class ErrorKind(StrEnum):
    """What went wrong with a call."""

    THROTTLED = "throttled"
    """Keepa had no tokens left (429)."""
    UNREACHABLE = "unreachable"
    """The request never left."""
    NO_REPLY = "no_reply"
    """No usable answer came: a time-out, a reset, a cut body, a server error."""
    REFUSED = "refused"
    """Keepa refuses this request."""
    MALFORMED = "malformed"
    """The reply is not what was asked for."""


def kind_of(exc: Exception) -> ErrorKind:
    """Returns the kind of *exc*, which ended a call."""
    match exc:
        case KeepaThrottledError():
            return ErrorKind.THROTTLED
        case KeepaUnavailableError():
            return ErrorKind.NO_REPLY if exc.sent else ErrorKind.UNREACHABLE
        case KeepaResponseError():
            return ErrorKind.REFUSED
    return ErrorKind.MALFORMED


class KeepaErrors:
    """Counts until the heartbeat takes them to the database; safe in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def note(self, exc: Exception) -> None:
        """Counts a call that ended with *exc*."""
        self.put_back({kind_of(exc).value: 1})

    def take(self) -> Mapping[str, int]:
        """Returns the counts since the last time, and starts afresh."""
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return taken

    def put_back(self, counts: Mapping[str, int]) -> None:
        """Adds counts that could not be written."""
        with self._lock:
            self._counts.update(counts)
