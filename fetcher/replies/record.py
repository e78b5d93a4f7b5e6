"""Reading values of a reply without trust.

Rule 1: a reading never raises; an unreadable value is None and is counted.
Rule 2: unknown is None. Keepa's -1 (none), -2 (no data), null and absence never become zero.
Rule 3: every result can be stored: no NUL, no lone surrogate, no NaN, no huge number.
"""

import html
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Final

from fetcher.replies.units import LATEST_KEEPA_MINUTES, minutes_to_ms

# Keepa's prices, ranks and counts are 32-bit integers, its ids 64-bit ones.
INT32_MAX: Final = 2**31 - 1
INT64_MAX: Final = 2**63 - 1

# Postgres takes far deeper jsonb than this; real rows nest three deep.
DEPTH_MAX: Final = 24

TEXT_MAX_CHARS: Final = 4_000

_DECIMAL: Final = re.compile(r"-?[0-9]{1,19}\Z")
_TAG: Final = re.compile(r"</?[A-Za-z][^<>]*>")
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")

WRONG_TYPE: Final = "wrong type"


class MalformedReplyError(ValueError):
    """The body is not the reply that was asked for; nothing follows from it about deals."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def integer(value: object) -> int | None:
    """Returns the integer of an int, a whole float or a decimal string; else None."""
    match value:
        case bool():
            return None
        case int():
            return value
        case float() if math.isfinite(value) and value.is_integer():
            return int(value)
        case str() if _DECIMAL.match(value):
            return int(value)
    return None


def plain_text(value: str) -> str:
    """Returns *value* without HTML tags, entities, control characters and runs of blanks."""
    unescaped = html.unescape(value[:TEXT_MAX_CHARS])
    return " ".join(_CONTROL.sub(" ", _TAG.sub(" ", unescaped)).split())


def storable(value: object, depth: int = 0) -> object:
    """Returns a copy of a JSON *value* that Postgres accepts as jsonb.

    NUL and lone surrogates become U+FFFD. NaN, the infinities and values nested deeper
    than DEPTH_MAX become null.
    """
    match value:
        case str():
            return storable_text(value)
        case float() if not math.isfinite(value):
            return None
        case list() if depth < DEPTH_MAX:
            # Nearly all of a reply is lists of integers: this takes a ninth of the time.
            return [item if type(item) is int else storable(item, depth + 1) for item in value]
        case Mapping() if depth < DEPTH_MAX:
            return {storable_text(str(k)): storable(v, depth + 1) for k, v in value.items()}
    return None if isinstance(value, list | Mapping) else value


def storable_text(value: str) -> str:
    """Returns *value* with U+FFFD for characters that Postgres can't store."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)


class Record:
    """One JSON object, read by paths; counts its oddities by name.

    A path is a sequence of keys and indexes: ``record.count("avg", 3, 2)``. The
    counter's keys, such as ``"avg: cut short"``, are few for any reply.
    """

    def __init__(self, fields: Mapping[str, object], oddities: Counter[str]) -> None:
        self._fields = fields
        self._oddities = oddities

    def note(self, name: object, what: str) -> None:
        """Counts one oddity under the field's name."""
        self._oddities[f"{name}: {what}"] += 1

    def value(self, *path: str | int) -> object:
        """Returns the value at *path*, or None if there is none."""
        found: object = self._fields
        for step in path:
            match found, step:
                case Mapping(), str():
                    found = found.get(step)
                case list(), int() if step < len(found):
                    found = found[step]
                case list(), int():
                    self.note(path[0], "cut short")
                    return None
                case None, _:
                    return None
                case _:
                    self.note(path[0], WRONG_TYPE)
                    return None
        return found

    def signed(self, *path: str | int, limit: int = INT32_MAX) -> int | None:
        """Returns the integer at *path*, sentinels included, of at most ±*limit*."""
        if (raw := self.value(*path)) is None:
            return None
        if (number := integer(raw)) is None:
            self.note(path[0], WRONG_TYPE)
            return None
        if abs(number) > limit:
            self.note(path[0], "absurd number")
            return None
        return number

    def count(self, *path: str | int, limit: int = INT32_MAX) -> int | None:
        """Returns the integer at *path*, or None if Keepa has none (negative, null, absent)."""
        number = self.signed(*path, limit=limit)
        return None if number is None or number < 0 else number

    def positive(self, *path: str | int, limit: int = INT32_MAX) -> int | None:
        """Returns the same as count(), but None for zero."""
        return self.count(*path, limit=limit) or None

    def time_ms(self, *path: str | int) -> int | None:
        """Returns the time at *path* (Keepa minutes) in Unix ms; zero is no time."""
        minutes = self.positive(*path, limit=LATEST_KEEPA_MINUTES)
        return None if minutes is None else minutes_to_ms(minutes)

    def text(self, *path: str | int) -> str | None:
        """Returns the text at *path*, cleaned of HTML; None if absent or blank."""
        raw = self.value(*path)
        if raw is not None and not isinstance(raw, str):
            self.note(path[0], WRONG_TYPE)
            return None
        return None if raw is None else plain_text(raw) or None

    def flag(self, *path: str | int) -> bool | None:
        """Returns the truth value at *path*; None if absent."""
        raw = self.value(*path)
        if raw is not None and not isinstance(raw, bool):
            self.note(path[0], WRONG_TYPE)
            return None
        return raw

    def ids(self, *path: str | int) -> tuple[int, ...]:
        """Returns the positive 64-bit ids in the list at *path*."""
        raw = self.value(*path)
        if raw is None:
            return ()
        if not isinstance(raw, list):
            self.note(path[0], WRONG_TYPE)
            return ()
        ids = [integer(item) for item in raw]
        good = tuple(number for number in ids if number is not None and 0 < number <= INT64_MAX)
        if len(good) < len(ids):
            self.note(path[0], "absurd id")
        return good
