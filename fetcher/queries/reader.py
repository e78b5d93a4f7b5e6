"""Reading a query file that a person has written, key by key.

Rule 1: every error names the key and what to write instead.
Rule 2: an unknown key is a typo, and an error; it is never ignored.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from fetcher.replies.record import integer

DURATION_UNITS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION: Final = re.compile(r"([0-9]{1,6}) ?([smhd])\Z")

# One address alone, or the quoted one of a curl command.
_ADDRESS: Final = re.compile(r"""(?s)^(?:curl\b.*?["'])?(https?://.+?)(?:["'](?:\s.*)?)?\Z""")
# An assignment, as in programs and query strings.
_ASSIGNED: Final = re.compile(
    r"(?is)^\??(?:\w+\s+)?(?:selection|queryJSON)\s*=\s*(\{.*\}|%7B.*)\s*;?\Z"
)


class BadKeyError(ValueError):
    """A key of a query file is unusable; ``reason`` is what to write instead."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason


def read_json(text: str) -> Mapping[str, object]:
    """Returns the JSON object in *text*.

    Raises:
        BadKeyError: not one JSON object, or a key is given twice.
    """
    text = pasted_json(text)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except BadKeyError:
        raise
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        problem = f"not JSON at {place}: {error.msg}{_paste_hint(text, error.pos)}"
        raise BadKeyError("file", problem) from None
    except (ValueError, RecursionError) as error:
        raise BadKeyError("file", "not readable JSON: a number or nesting is too big") from error
    if not isinstance(value, dict):
        raise BadKeyError("file", "write one JSON object: Keepa's selection, or one holding it")
    return value


def pasted_json(text: str) -> str:
    """Returns the JSON in a paste: the text itself, or the selection in an address of Keepa.

    Keepa's page of deals keeps its selection after "#!deals/", an API call in its
    parameter "selection"; both percent-encoded or not. A key in the address is dropped.

    Raises:
        BadKeyError: The address holds no selection.
    """
    text = text.removeprefix("\ufeff").strip()
    if found := _ADDRESS.search(text):
        address = found[1].strip()
        fields = urlsplit(address)
        host = (fields.hostname or "").removeprefix("www.")
        if host != "keepa.com" and not host.endswith(".keepa.com"):
            raise BadKeyError("file", "an address, but none of keepa.com: paste the JSON itself")
        behind = fields.fragment.removeprefix("!")
        if behind.startswith("deals/"):
            return unquote(behind.removeprefix("deals/"))
        if "selection" in (asked := parse_qs(fields.query)):
            return asked["selection"][0]
        raise BadKeyError(
            "file", "this address holds no selection: copy it from Keepa's page of deals, or"
            ' the JSON under "show API query"',
        )  # fmt: skip
    if found := _ASSIGNED.match(text):
        return unquote(found[1]) if found[1].startswith("%7B") else found[1].rstrip(";")
    return text


def _paste_hint(text: str, position: int) -> str:
    """Guesses what was pasted instead of JSON; returns what to change."""
    near = text[max(0, position - 1) : position + 1]
    if any(quote in text for quote in "\u201c\u201d\u201e\u2018\u2019"):
        return '; it has typographic quotes: write "straight" ones'
    if re.search(r",\s*[}\]]", text):
        return "; remove the comma before a closing bracket"
    if "'" in near or re.search(r"\b(True|False|None)\b", text):
        return '; this is Python: JSON has "double" quotes, true, false and null'
    if re.search(r"(^|\s)(//|#|/\*)", text):
        return "; JSON has no comments: remove them"
    if not text.startswith(("{", "[")):
        return "; a file begins with { and holds nothing but Keepa's selection"
    return ""


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise BadKeyError(key, "given twice; remove one")
        found[key] = value
    return found


def _no_constant(name: str) -> object:
    raise BadKeyError("file", f"{name} is no number in JSON")


def duration_words(duration_ms: int) -> str:
    """Returns *duration_ms* in its largest whole unit: 90 s, 5 m, 2 h."""
    for unit, unit_ms in reversed(DURATION_UNITS_MS.items()):
        if duration_ms >= unit_ms and duration_ms % unit_ms == 0:
            return f"{duration_ms // unit_ms} {unit}"
    return f"{duration_ms / DURATION_UNITS_MS['s']:.0f} s"


class Section:
    """One JSON object of a query file, with its path for error texts."""

    def __init__(self, values: object, path: str = "") -> None:
        if not isinstance(values, Mapping):
            raise BadKeyError(path or "file", "write a JSON object: {…}")
        self._values = values
        self._path = path

    def key(self, name: str) -> str:
        """Returns the full name of the key *name*, for error texts."""
        return f"{self._path}.{name}" if self._path else name

    def has(self, name: str) -> bool:
        """Returns whether the key is given, and not null."""
        return self._values.get(name) is not None

    def value(self, name: str) -> object:
        """Returns the value as written, or None."""
        return self._values.get(name)

    def allow_only(self, names: Sequence[str]) -> None:
        """Rejects every key that is not among *names*, and suggests the nearest."""
        for name in self._values:
            if name in names:
                continue
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
            raise BadKeyError(self.key(str(name)), f"unknown key; {hint}")

    def whole(self, name: str, *, least: int, most: int) -> int | None:
        """Reads an integer, written as a number or as a decimal string."""
        if not self.has(name):
            return None
        number = integer(self.value(name))
        if number is None or not least <= number <= most:
            raise BadKeyError(self.key(name), f"write a whole number from {least} to {most}")
        return number

    def duration_ms(self, name: str, *, least_ms: int, most_ms: int) -> int | None:
        """Reads a duration such as "90s", "5m", "2h" or "1d"; returns milliseconds."""
        if not self.has(name):
            return None
        raw = self.value(name)
        found = _DURATION.match(raw.strip()) if isinstance(raw, str) else None
        if found is None:
            raise BadKeyError(self.key(name), 'write a duration such as "90s", "5m", "2h" or "1d"')
        duration_ms = int(found[1]) * DURATION_UNITS_MS[found[2]]
        if not least_ms <= duration_ms <= most_ms:
            least, most = duration_words(least_ms), duration_words(most_ms)
            raise BadKeyError(self.key(name), f"write a duration from {least} to {most}")
        return duration_ms

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        """Reads one of *choices*."""
        if not self.has(name):
            return None
        raw = self.value(name)
        if raw not in choices:
            raise BadKeyError(self.key(name), f"write one of {', '.join(choices)}")
        return str(raw)

    def flag(self, name: str) -> bool | None:
        """Reads true or false."""
        if not self.has(name):
            return None
        raw = self.value(name)
        if not isinstance(raw, bool):
            raise BadKeyError(self.key(name), "write true or false")
        return raw

    def words(self, name: str) -> tuple[str, ...]:
        """Reads a list of non-empty strings."""
        raw = self.value(name)
        if raw is None:
            return ()
        if not isinstance(raw, list) or not all(isinstance(w, str) and w.strip() for w in raw):
            raise BadKeyError(self.key(name), 'write a list of words: ["…", "…"]')
        return tuple(word.strip() for word in raw)

    def ids(self, name: str) -> tuple[int, ...]:
        """Reads a list of integers."""
        raw = self.value(name)
        if raw is None:
            return ()
        numbers = [integer(item) for item in raw] if isinstance(raw, list) else [None]
        if None in numbers:
            raise BadKeyError(self.key(name), "write a list of whole numbers: [1, 2]")
        return tuple(number for number in numbers if number is not None)
