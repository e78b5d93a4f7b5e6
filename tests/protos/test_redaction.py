"""No way out of a process leads past the redaction."""

import io
import subprocess
import sys
from collections.abc import Iterable

import pytest

from protos.process.redaction import REDACTED, RedactedStream, Redaction

SECRET = "p@ss/wörd\\50%"

# Each line of `main` is a way by which text leaves a process past every handler.
WAYS_OUT = """
import asyncio, atexit, logging, sys, threading, warnings
from protos.process.redaction import redact_stderr

SECRET = {secret!r}
redact_stderr(lambda: [SECRET])

class Leaky:
    def __del__(self):
        raise RuntimeError("in a destructor " + SECRET)

def fail(where):
    raise RuntimeError(where + " " + SECRET)

async def forget():
    asyncio.get_running_loop().create_task(fail_later())
    await asyncio.sleep(0.01)

async def fail_later():
    fail("in a task")

warnings.warn("in a warning " + SECRET)
logging.getLogger("library").error("by logging's last resort %r", SECRET)
thread = threading.Thread(target=fail, args=("in a thread",))
thread.start()
thread.join()
asyncio.run(forget())
Leaky()
atexit.register(fail, "at exit")
sys.stderr.write("a line without an end " + SECRET)
fail("in the main thread")
"""


def redacted(text: str, secrets: Iterable[str]) -> str:
    """*text* after a redaction of *secrets*."""
    return Redaction(secrets)(text)


def test_every_way_out_of_a_process_is_redacted() -> None:
    """Threads, tasks, warnings, destructors, exit handlers, logging's last resort."""
    done = subprocess.run(
        [sys.executable, "-c", WAYS_OUT.format(secret=SECRET)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    places = ("a thread", "a task", "a warning", "a destructor", "the main thread")

    assert done.returncode == 1
    assert [place for place in places if f"in {place} {REDACTED}" not in done.stderr] == []
    assert f"at exit {REDACTED}" in done.stderr
    assert f"last resort '{REDACTED}'" in done.stderr
    assert f"without an end {REDACTED}" in done.stderr
    assert "wörd" not in done.stderr
    assert "rd\\\\50" not in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:anything@host/db", f"postgresql://u:{REDACTED}@host/db"),
        ("http://me:x@proxy:3128 is down", f"http://me:{REDACTED}@proxy:3128 is down"),
        ("host=h password=x dbname=d", f"host=h password={REDACTED} dbname=d"),
        ("?sslmode=require&password=a%20b&x=y", f"?sslmode=require&password={REDACTED}&x=y"),
        ("at http://127.0.0.1:9464/metrics", "at http://127.0.0.1:9464/metrics"),
        ("mail me@example.org", "mail me@example.org"),
    ],
)
def test_what_stands_where_passwords_do_is_blanked(text: str, shown: str) -> None:
    """Even if it is not known to be one."""
    assert redacted(text, []) == shown


def test_a_very_short_secret_leaves_words_alone() -> None:
    """Blanked in URLs and options; elsewhere it would take every a out of the log."""
    assert redacted("a database at postgresql://u:a@h", ["a"]) == (
        f"a database at postgresql://u:{REDACTED}@h"
    )


def test_of_a_secret_that_holds_another_nothing_is_left() -> None:
    """The longer one goes first."""
    assert redacted("abcdef-tail", ["abcdef", "abcdef-tail"]) == REDACTED


def test_a_secret_in_pieces_is_blanked_once_its_line_is_whole() -> None:
    """Tracebacks are written piece by piece; an unfinished line waits for the flush."""
    lines = io.StringIO()
    stream = RedactedStream(lines, lambda: ["password"])
    stream.write("first pass")
    stream.write("word\nsecond pass")
    before = lines.getvalue()
    stream.write("word")
    stream.flush()

    assert before == f"first {REDACTED}\n"
    assert lines.getvalue() == f"first {REDACTED}\nsecond {REDACTED}"
    assert stream.closed is False
