"""Keeps secrets out of all that a process writes for people: logs, errors, tracebacks."""

import json
import re
import sys
import threading
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import Any, Final, TextIO, cast
from urllib.parse import quote, quote_plus

REDACTED: Final = "[redacted]"
# A shorter secret is part of too many harmless words; the patterns below still cover it.
LENGTH_MIN: Final = 6
# Text in the place of a password, whether it is a known one or not.
PATTERNS: Final = (
    re.compile(r"(://[^\s/:@\"']*:)[^\s@\"']+(?=@)"),
    re.compile(r"(?i)(password=)[^\s&'\"]+"),
)


class Redaction:
    """Blanks out *secrets* in a text, in every form of quoting."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = (str, quote, partial(quote, safe=""), quote_plus, _in_json, _in_repr)
        long = [text for text in secrets if len(text) >= LENGTH_MIN]
        found = {form(text) for text in long for form in forms}
        # Longest first: no piece of a secret that contains another must be left.
        self._secrets = sorted(found, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Returns *text* without the secrets."""
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        for pattern in PATTERNS:
            text = pattern.sub(rf"\1{REDACTED}", text)
        return text


class RedactedStream:
    """A text stream that blanks out secrets line by line, over the given stream.

    Args:
        stream: The stream to write to.
        secrets: Returns the secrets; called when the first line is written.
    """

    def __init__(self, stream: TextIO, secrets: Callable[[], Iterable[str]]) -> None:
        self._stream = stream
        self._read_secrets = secrets
        self._rest = ""
        # A signal's handler may write while its thread does.
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @cached_property
    def _redact(self) -> Redaction:
        return Redaction(self._read_secrets())

    def write(self, text: str) -> int:
        """Writes whole lines; an unfinished line waits for its end, or for `flush`."""
        with self._lock:
            lines, newline, self._rest = (self._rest + text).rpartition("\n")
            if newline:
                self._stream.write(self._redact(lines) + newline)
        return len(text)

    def flush(self) -> None:
        """Writes the unfinished line."""
        with self._lock:
            rest, self._rest = self._rest, ""
            if rest:
                self._stream.write(self._redact(rest))
            self._stream.flush()


def redact_stderr(secrets: Callable[[], Iterable[str]]) -> None:
    """Blanks out *secrets* in all that this process writes to stderr from now on.

    That covers usage errors, sys.excepthook, threading.excepthook, asyncio's and logging's
    last resort, warnings, and errors at exit.
    """
    if not isinstance(sys.stderr, RedactedStream):
        sys.stderr = cast("TextIO", RedactedStream(sys.stderr, secrets))


def _in_json(text: str) -> str:
    """Returns *text* in the form that it has inside a JSON string."""
    return json.dumps(text)[1:-1]


def _in_repr(text: str) -> str:
    return repr(text)[1:-1]
