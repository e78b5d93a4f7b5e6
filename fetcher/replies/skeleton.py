"""The top level of a reply that streams by: its scalar fields and its `error`, in bounded memory.

A reply of products has some twenty megabytes, of which its envelope is two hundred bytes, at
the beginning or at the end. The scanner counts brackets outside strings and keeps what
stands at the top level; nested values other than `error` become null.
"""

import json
import re
from typing import Any, Final

# Beyond this many bytes at the top level it is no reply of Keepa's.
KEPT_BYTES_MAX: Final = 64 * 1024

# All up to the next bracket, whole strings included: below the top level, one step in C.
_DEEP: Final = re.compile(rb'[^"\[{\]}]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"\[{\]}]*+)*+', re.DOTALL)
# Searched for first, because a set of characters alone is found three times as fast.
_MARK: Final = re.compile(rb'["\[{\]}]')
_REST_OF_STRING: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_ERROR: Final = re.compile(rb'"error"\s*:\s*$')
_OPENING: Final = b"[{"
_ENVELOPE: Final = ("timestamp", "tokensLeft", "tokensConsumed", "refillIn", "refillRate")


class Skeleton:
    """Collects the top level of one JSON object, fed piece by piece."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._depth = 0
        self._in_string = False
        # The last piece ended with the backslash of an escape.
        self._escaped = False
        self._keeps_error = False
        self._is_reply = True

    def feed(self, piece: bytes) -> None:
        """Takes the next *piece* of the decoded body, of any length."""
        position = self._end_string(piece, 0) if self._in_string else 0
        while position < len(piece) and self._is_reply:
            if self._depth > 1 and not self._keeps_error:
                deep = _DEEP.match(piece, position)
                position = position if deep is None else deep.end()
            found = _MARK.search(piece, position)
            if found is None:
                self._keep(piece[position:])
                break
            start = found.start()
            self._keep(piece[position:start])
            mark = piece[start : start + 1]
            position = start + 1
            if mark == b'"':
                self._keep(mark)
                position = self._end_string(piece, position)
            elif mark in _OPENING:
                self._open(mark)
            else:
                self._close(mark)

    @property
    def fields(self) -> dict[str, Any] | None:
        """The top level so far; None if it is no JSON object.

        Of a reply that was cut, only the complete fields.
        """
        text = bytes(self._kept)
        if self._depth > 0:
            # The last field may be cut anywhere: it does not count.
            text = text[: _last_comma(text)] + b"}"
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return fields if isinstance(fields, dict) else None

    @property
    def is_complete(self) -> bool:
        """Whether the object has ended."""
        return self._is_reply and self._depth == 0 and bool(self._kept) and not self._in_string

    @property
    def has_envelope(self) -> bool:
        """Whether every field of the envelope has come; cheap enough for every piece."""
        return all(f'"{name}"'.encode() in self._kept for name in _ENVELOPE)

    def _end_string(self, piece: bytes, start: int) -> int:
        """Returns the position behind the string in which *start* is."""
        # An escape that the last piece has begun takes one more character.
        found = _REST_OF_STRING.match(piece, start + self._escaped)
        end = len(piece) if found is None else found.end()
        if self._depth <= 1 or self._keeps_error:
            self._keep(piece[start:end])
        self._in_string = found is None
        if found is not None:
            self._escaped = False
        elif start < len(piece):
            self._escaped = _ends_in_escape(piece, start + self._escaped)
        return end

    def _open(self, bracket: bytes) -> None:
        if self._depth == 1:
            self._keeps_error = _ERROR.search(self._kept[-100:]) is not None
            if not self._keeps_error:
                self._kept += b"null"
        self._depth += 1
        if self._depth == 1 or self._keeps_error:
            self._kept += bracket
        self._check()

    def _close(self, bracket: bytes) -> None:
        if self._depth <= 1 or self._keeps_error:
            self._kept += bracket
        self._depth -= 1
        self._keeps_error = self._keeps_error and self._depth > 1
        if self._depth < 0:
            self._is_reply = False

    def _keep(self, text: bytes) -> None:
        if self._depth <= 1 or self._keeps_error:
            self._kept += text
            self._check()

    def _check(self) -> None:
        if len(self._kept) > KEPT_BYTES_MAX:
            self._is_reply = False
            del self._kept[:]


def _ends_in_escape(piece: bytes, start: int) -> bool:
    """Whether *piece* ends with a backslash that escapes what follows."""
    bare = piece[start:].rstrip(b"\\")
    return (len(piece) - start - len(bare)) % 2 == 1


def _last_comma(text: bytes) -> int:
    """The position of the last comma between fields; strings are passed over."""
    position, last, depth = 0, text.find(b"{") + 1, 0
    for found in re.finditer(
        rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{\]},]', text[position:], re.DOTALL
    ):
        token = found.group()
        if token in {b"[", b"{"}:
            depth += 1
        elif token in {b"]", b"}"}:
            depth -= 1
        elif token == b"," and depth == 1:
            last = found.start()
    return last
