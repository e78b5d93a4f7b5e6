"""Which deals are wanted, and in which order: the same words for commands, pages and the API.

A row is a deal as one query sees it: its key is (query, domain_id, asin, price_type).

Rule 1: an unknown name or an unreadable value is an error that names the remedy; it never
        widens what is shown.
Rule 2: a deal with an unknown value is not within any limit on that value.
"""

import base64
import binascii
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Final, Literal, cast

from fetcher.queries.reader import DURATION_UNITS_MS
from fetcher.queries.rules import State
from fetcher.replies.record import INT64_MAX
from fetcher.replies.units import DOMAINS, PRICE_TYPES

Kind = Literal["text", "state", "whole", "duration", "time", "asin"]
Sort = Literal["created", "changed", "profit", "roi", "drop", "price", "rank"]

STATES: Final = ("accepted", "pending", "rejected")
TEXT_CHARACTERS_MAX: Final = 200

# The order of each sort; a deal with an unknown value comes last, except in "changed".
SORTS: Final[Mapping[Sort, str]] = {
    "created": "newest deal first",
    "changed": "as they changed, the oldest change first: for reading on from a cursor",
    "profit": "highest profit first",
    "roi": "highest return first",
    "drop": "largest drop in percent first",
    "price": "lowest price first",
    "rank": "best sales rank first",
}

INT16_MAX: Final = 2**15 - 1

_DURATION: Final = re.compile(r"([0-9]{1,6}) ?([smhd])\Z")
_ASIN: Final = re.compile(r"[A-Z0-9]{10}\Z")
_WHOLE: Final = re.compile(r"-?[0-9]{1,18}\Z")


class FilterError(ValueError):
    """A filter, a sort or a cursor is unusable; ``reason`` is what to write instead."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Field:
    """One filter: its name in URLs, its kind, and its meaning."""

    name: str
    kind: Kind
    meaning: str


FIELDS: Final = (
    Field("query", "text", "the query's name"),
    Field("state", "state", f"the verdict: {', '.join(STATES)}"),
    Field("domain", "whole", f"Keepa's number of the site: {', '.join(map(str, DOMAINS))}"),
    Field("price_type", "whole", f"Keepa's price type: 0 to {len(PRICE_TYPES) - 1}"),
    Field("asin", "asin", "one product"),
    Field(
        "title",
        "text",
        "words of the title, or how they begin, in any order",
    ),
    Field("category", "whole", "the root category's number"),
    Field("condition", "whole", "Keepa's code of the condition"),
    Field("price_min", "whole", "lowest price, in minor units"),
    Field("price_max", "whole", "highest price, in minor units"),
    Field("drop_percent_min", "whole", "smallest drop, in percent"),
    Field("profit_min", "whole", "lowest profit, in minor units"),
    Field("roi_percent_min", "whole", "lowest return, in percent"),
    Field("rank_max", "whole", "highest number of the sales rank"),
    Field("rating_min", "whole", "lowest rating, 0 to 50"),
    Field("reviews_min", "whole", "least number of reviews"),
    Field("new_offers_min", "whole", "least number of new offers"),
    Field("used_offers_min", "whole", "least number of used offers"),
    Field("rule", "text", "a rule that stands against it"),
    Field("created_within", "duration", 'youngest deals: "30m", "24h", "7d"'),
    Field("judged_within", "duration", 'judged lately: "30m", "24h", "7d"'),
    Field("judged_since", "time", 'judged since then: "2026-11-25", "2026-11-25T12:00Z"'),
)
_FIELDS: Final = {field.name: field for field in FIELDS}


@dataclass(frozen=True, slots=True)
class DealFilter:
    """The wanted deals; None is "any". Amounts are in minor units, times in milliseconds."""

    query: str | None = None
    state: State | None = None
    domain: int | None = None
    price_type: int | None = None
    asin: str | None = None
    title: str | None = None
    category: int | None = None
    condition: int | None = None
    price_min: int | None = None
    price_max: int | None = None
    drop_percent_min: int | None = None
    profit_min: int | None = None
    roi_percent_min: int | None = None
    rank_max: int | None = None
    rating_min: int | None = None
    reviews_min: int | None = None
    new_offers_min: int | None = None
    used_offers_min: int | None = None
    rule: str | None = None
    created_within: int | None = None
    judged_within: int | None = None
    judged_since: str | None = None

    def given(self) -> dict[str, str | int]:
        """Returns the filters that limit something, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def parameters(self) -> dict[str, str]:
        """Returns the filters as written in a URL; `read_filter` reads them again."""
        return {
            name: f"{value // DURATION_UNITS_MS['s']}s"
            if _FIELDS[name].kind == "duration" and isinstance(value, int)
            else str(value)
            for name, value in self.given().items()
        }


def read_filter(values: Mapping[str, str]) -> DealFilter:
    """Reads filters as written in a URL or as options; an empty value is none.

    Raises:
        FilterError: An unknown name or an unreadable value.
    """
    read: dict[str, str | int] = {}
    for name, text in values.items():
        if name not in _FIELDS:
            raise FilterError(name, f"unknown; known are {', '.join(_FIELDS)}")
        if text.strip():
            read[name] = _read(_FIELDS[name], text.strip())
    return DealFilter(**read)  # type: ignore[arg-type]  # each has its type


def read_sort(text: str) -> Sort:
    """Reads the name of a sort; empty means "created".

    Raises:
        FilterError: An unknown name.
    """
    if not text:
        return "created"
    return cast("Sort", _one_of(SORTS, "sort", text))


def _one_of(known: Collection[str], name: str, text: str) -> str:
    if text not in known:
        raise FilterError(name, f"write one of {', '.join(known)}")
    return text


def _read(field: Field, text: str) -> str | int:
    match field.kind:
        case "state":
            return _one_of(STATES, field.name, text)
        case "asin":
            text = text.upper()
            if not _ASIN.match(text):
                raise FilterError(field.name, "write ten letters and digits")
        case "whole":
            if not _WHOLE.match(text):
                raise FilterError(field.name, "write a whole number")
            return int(text)
        case "duration":
            return duration_ms(field.name, text)
        case "time":
            return iso_time(field.name, text)
        case "text":
            if len(text) > TEXT_CHARACTERS_MAX or not _is_storable(text):
                reason = f"write at most {TEXT_CHARACTERS_MAX} characters of text"
                raise FilterError(field.name, reason)
    return text


def _is_storable(text: str) -> bool:
    """Returns whether Postgres can compare *text*: no zero bytes, no halves of pairs."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def duration_ms(name: str, text: str) -> int:
    """Reads a duration such as "30m" or "7d"; returns milliseconds.

    Raises:
        FilterError: It is none.
    """
    found = _DURATION.match(text)
    if found is None:
        raise FilterError(name, 'write a duration such as "30m", "24h" or "7d"')
    return int(found[1]) * DURATION_UNITS_MS[found[2]]


def iso_time(name: str, text: str) -> str:
    """Reads a date or a time in ISO 8601, of UTC unless it has an offset; returns it in UTC.

    Raises:
        FilterError: It is neither.
    """
    try:
        time = datetime.fromisoformat(text)
        time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        reason = 'write a date or a time such as "2026-11-25" or "2026-11-25T12:00Z"'
        raise FilterError(name, reason) from None
    return time.isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a sorted list: after the row with this key; opaque to its users.

    Args:
        sort: The list's order.
        server: The Postgres cluster, where the place depends on it ("changed"), else 0.
        value: What the order sorts by.
        query, domain_id, asin, price_type: The row's key; it decides between equal values.
    """

    sort: Sort
    server: int
    value: int
    query: str
    domain_id: int
    asin: str
    price_type: int

    def __str__(self) -> str:
        values = [getattr(self, field.name) for field in fields(self)]
        text = json.dumps(values, separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str, *, sort: Sort) -> "Cursor":
        """Reads a cursor of a list in this order.

        Raises:
            FilterError: It is none, or one of another order.
        """
        broken = FilterError("cursor", "no cursor of this list: take the last one, or none")
        try:
            values = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        except (binascii.Error, ValueError, RecursionError):
            raise broken from None
        kinds = [str, int, int, str, int, str, int]
        if not isinstance(values, list) or [type(value) for value in values] != kinds:
            raise broken
        if values[0] != sort:
            raise broken
        if any(isinstance(value, int) and abs(value) > INT64_MAX for value in values) or not (
            all(abs(value) <= INT16_MAX for value in (values[4], values[6]))
        ):
            raise broken
        if not all(_is_storable(value) for value in values if isinstance(value, str)):
            raise broken
        return cls(*values)
