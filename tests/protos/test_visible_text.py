"""Text from outside is shown to people, and never executed by their terminal."""

import io
import json
import logging
from collections.abc import Callable

import pytest
import structlog
from google.protobuf.duration_pb2 import Duration
from rich.console import Console

from broker.commands.tables import bucket_line, bucket_table, lease_table, waiting_table
from deploy.local.command import _fail
from deploy.local.log_line import LogLine
from deploy.local.screen import Screen
from fetcher.commands.output import Format, print_line, print_rows
from protos.process.logs import configure
from protos.process.settings import LogFormat, LogLevel
from protos.process.visible_text import visible
from protos.tokenbroker.v1 import token_broker_pb2 as pb

# Each does something on one terminal or another, or hides what stands beside it.
ACTING = {
    "osc": "\x1b]0;owned\x07", "csi": "\x1b[2J", "c1": "\x9b31m", "c1 osc": "\x9d0;x\x9c",
    "bell": "\x07", "back": "\x08", "return": "\rfake", "delete": "\x7f", "nul": "\x00",
    "override": "\u202egnp.exe", "isolate": "\u2066x\u2069", "mark": "\u200f", "arabic": "\u061c",
    "zero": "a\u200bb", "joiner": "a\u2060b", "bom": "\ufeff", "line": "a\u2028b",
    "paragraph": "a\u2029b", "next": "a\x85b", "tag": "\U000e0041", "half": "\ud800",
    "filler": "\u3164", "soft": "a\u00adb",
}  # fmt: skip
HOSTILE = "[red]x[/red]" + "".join(ACTING.values())


def assert_harmless(printed: str) -> None:
    """No character of *printed* acts, and the brackets are still there."""
    assert visible(printed, lines=True) == printed
    assert "[red]" in printed


@pytest.mark.parametrize("text", ACTING.values(), ids=ACTING.keys())
def test_what_acts_or_hides_is_shown_as_its_code(text: str) -> None:
    """In letters that every terminal has."""
    shown = visible(text)

    assert "\\" in shown
    assert visible(shown) == shown
    assert shown.isprintable()


@pytest.mark.parametrize(
    "text", ["Hörbuch 5 €", "電気ケトル", "عربي", "😀 café", "a\\b 'c' \"d\""]
)
def test_letters_of_all_languages_stay(text: str) -> None:
    """Only what can't be seen is replaced."""
    assert visible(text) == text


def test_lines_stay_where_they_are_ours() -> None:
    """A traceback has lines; a title has none."""
    assert visible("a\n\tb\r", lines=True) == "a\n\tb\\r"
    assert visible("a\n\tb") == "a\\n\\tb"


def shown(table: object) -> str:
    """*table* as a terminal without colours gets it."""
    output = io.StringIO()
    Console(file=output, width=1_000, no_color=True).print(table)
    return output.getvalue()


def hostile_bucket() -> pb.Bucket:
    """Names and troubles that come from a client, a file or Keepa."""
    text = HOSTILE.replace("\ud800", "")
    budget = pb.Budget(name=text, holder=text, operation=text)
    return pb.Bucket(upstream_trouble=text, budgets_trouble=text, key_fingerprint=text,
                     budgets=[budget], state=pb.BUCKET_STATE_SERVING)  # fmt: skip


@pytest.mark.parametrize("view", [bucket_table, bucket_line], ids=["table", "line"])
def test_a_bucket_shows_texts_as_codes(view: Callable[[pb.Bucket], object]) -> None:
    """What a client, a file or Keepa named."""
    assert_harmless(shown(view(hostile_bucket())) if view is bucket_table
                    else str(view(hostile_bucket())))  # fmt: skip


def test_leases_show_their_holders_as_codes() -> None:
    """Holder and operation are any client's own words."""
    text = HOSTILE.replace("\ud800", "")
    lease = pb.Lease(lease_id=text, holder=text, operation=text, age=Duration(seconds=1))
    wait = pb.Waiting(lease_id=text, holder=text, operation=text, reason=text)

    assert_harmless(shown(lease_table([lease])))
    assert_harmless(shown(waiting_table([wait])))


def test_tables_and_lines_of_the_fetcher_show_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """Deals, scans, rejections, dead pages: all print by these two."""
    print_rows(HOSTILE, [{"title": HOSTILE, "verdicts": [HOSTILE]}], Format.TABLE)
    print_rows(HOSTILE, [], Format.TABLE)
    print_line(HOSTILE)

    assert_harmless(capsys.readouterr().out)


def test_json_escapes_as_json_does(capsys: pytest.CaptureFixture[str]) -> None:
    """A program gets the text as it is."""
    print_rows("Deals", [{"title": HOSTILE}], Format.JSON)
    printed = capsys.readouterr().out

    assert "\x1b" not in printed
    assert json.loads(printed) == [{"title": HOSTILE}]


def test_the_screen_of_the_stack_shows_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """A program's line comes out of a log, where JSON had escaped it."""
    screen = Screen()
    text = HOSTILE.replace("\ud800", "")
    screen.show_line("fetcher-1", LogLine.parse(json.dumps({"event": text, "title": text})))
    screen.show_line("fetcher-1", LogLine.parse(text))
    _fail(ValueError(text), 1)
    printed = capsys.readouterr()

    assert_harmless(printed.out)
    assert_harmless(printed.err)


def test_console_logs_show_codes() -> None:
    """Event, fields, their names, and the text of an error."""
    root = logging.getLogger()
    before = (root.handlers, root.level)
    output = io.StringIO()
    try:
        configure(LogLevel.INFO, LogFormat.CONSOLE, stream=output)
        log = structlog.get_logger("hostile")
        log.warning(HOSTILE, title=HOSTILE, titles=[HOSTILE], **{"\x1bname": "x"})
        log.error("failed", exc_info=ValueError(HOSTILE))
        logging.getLogger("library").warning("%s", HOSTILE)
    finally:
        root.handlers, root.level = before
        structlog.reset_defaults()

    assert_harmless(output.getvalue())
