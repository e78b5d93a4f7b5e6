"""Tables of scans fit a terminal and show ages."""

import re
import sys
from datetime import UTC, datetime, timedelta

import pytest

from fetcher.commands.look import _scan_for_people
from fetcher.commands.output import Format, age, print_rows
from fetcher.replies.units import span_words
from fetcher.work.pace import _alike

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def scan(**changes: object) -> dict[str, object]:
    """A scan as the database has it."""
    ended = NOW - timedelta(minutes=3)
    return {
        "id": 12_345, "query": "books-used", "kind": "newest", "state": "completed",
        "end_reason": "watermark", "started_at": ended - timedelta(seconds=40),
        "ended_at": ended, "watermark": ended, "pages_read": 12, "pages_open": 0,
        "pages_dead": 1, "rows": 1_800, "new_deals": 42, "tokens": 60, **changes,
    }  # fmt: skip


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_a_scan_is_one_line_with_its_age(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dates wrapped even at two hundred columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    print_rows("Scans", [_scan_for_people(scan(), NOW, wide=False)] * 3, Format.TABLE)
    printed = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    lines = printed.rstrip().splitlines()

    assert max(map(len, lines)) <= columns
    assert sum("books-used" in line and "3 min" in line for line in lines) == 3


def test_all_columns_are_there_when_asked_for() -> None:
    """Those that matter now and then."""
    wide = _scan_for_people(scan(), NOW, wide=True)

    assert wide.keys() >= {"state", "open", "dead", "rows", "watermark's age"}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_199, "119 min"), (7_200, "2 h"),
     (200_000, "2 d"), (-5, "0 s")],
)  # fmt: skip
def test_an_age_has_one_unit(seconds: int, words: str) -> None:
    """Seconds of yesterday help no reader."""
    assert age(NOW - timedelta(seconds=seconds), NOW) == words


@pytest.mark.parametrize(
    ("span_s", "words"), [(361.2, "6 min"), (45.0, "45 s"), (10_836.0, "3 h"), (0.6, "1 s")]
)
def test_an_interval_has_one_unit(span_s: float, words: str) -> None:
    """A newcomer once read "10836 s"."""
    assert span_words(span_s) == words


def test_a_plan_is_news_when_it_changes_by_much() -> None:
    """Or when there is another query."""
    assert _alike({"a": 100}, {"a": 150})
    assert not _alike({"a": 100}, {"a": 250})
    assert not _alike({"a": 100}, {"a": 100, "b": 1})
    assert not _alike({"a": 100}, {})


def test_a_table_in_a_pipe_does_not_wrap(capsys: pytest.CaptureFixture[str]) -> None:
    """A program that reads it counts lines."""
    print_rows("Scans", [_scan_for_people(scan(), NOW, wide=True)], Format.TABLE)
    lines = capsys.readouterr().out.rstrip().splitlines()

    assert len(lines) <= 5
