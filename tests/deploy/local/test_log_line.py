"""Programs' log lines in readable form."""

import json

import pytest

from deploy.local.log_line import LogLine


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        ({"event": "page read", "level": "info", "rows": 150}, "page read  rows=150"),
        ({"event": "late", "level": "warning"}, "WARNING: late"),
        ({"event": "why", "reason": "two words"}, 'why  reason="two words"'),
        ({"event": "t", "timestamp": "2025-09-16T00:00:00Z", "logger": "x"}, "t"),
        ({"event": "list", "ids": [1, 2]}, "list  ids=[1,2]"),
        (
            {"event": "bug", "level": "error", "exception": "Traceback\n …\nKeyError: 'a'"},
            "ERROR: bug  exception=\"KeyError: 'a'\"",
        ),
    ],
)
def test_an_entry_becomes_one_short_line(entry: dict[str, object], shown: str) -> None:
    """The event comes first, then its fields; times and tracebacks stay in the log."""
    line = LogLine.parse(json.dumps(entry))

    assert str(line) == shown


@pytest.mark.parametrize("text", ["plain words", "{broken", "[1, 2]", '{"no": "event"}', "7"])
def test_other_text_is_shown_as_it_stands(text: str) -> None:
    """Output that is no log entry stays unchanged."""
    assert str(LogLine.parse(text)) == text
