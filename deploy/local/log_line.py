"""Log lines of programs, parsed from JSON and shown in one short line each.

Pure: text in, text out.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Final, Self

_NOT_FIELDS: Final = frozenset({"event", "level", "timestamp", "logger", "exception"})
_QUIET_LEVELS: Final = frozenset({"debug", "info", ""})


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a program's output: a JSON object of structlog's, or plain text."""

    event: str
    level: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses a line; the text of one that is no JSON object becomes the event."""
        try:
            entry = json.loads(text)
        except ValueError:
            return cls(text)
        if not isinstance(entry, dict) or "event" not in entry:
            return cls(text)
        fields = {name: value for name, value in entry.items() if name not in _NOT_FIELDS}
        if traceback := str(entry.get("exception", "")).strip():
            # Its last line names the exception; the rest stays in the log.
            fields["exception"] = traceback.splitlines()[-1]
        return cls(str(entry["event"]), str(entry.get("level", "")), fields)

    def __str__(self) -> str:
        """One line for people: the level from warning up, the event, the rest as k=v."""
        level = "" if self.level in _QUIET_LEVELS else f"{self.level.upper()}: "
        rest = " ".join(f"{name}={_shown(value)}" for name, value in self.fields.items())
        return f"{level}{self.event}" + (f"  {rest}" if rest else "")


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f'"{text}"' if " " in text and isinstance(value, str) else text
