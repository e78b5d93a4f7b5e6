"""What fetchers have logged, and whether they end as they should."""

import json
import time
from collections.abc import MutableMapping
from typing import Any

from deploy.local.program import Program
from tests.fix_fetcher import Log

# Promised are 5 s, on a machine that has time for it.
STOP_S = 45.0


def output(fetcher: Program) -> str:
    """What it has written so far."""
    try:
        return fetcher.output()
    except FileNotFoundError:
        return ""


def events(fetcher: Program) -> list[dict[str, Any]]:
    """What a fetcher has logged."""
    lines = [line for line in output(fetcher).splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines]


def logged(fetcher: Program | Log, event: str) -> list[MutableMapping[str, Any]]:
    """Its log lines of one kind."""
    lines = fetcher if isinstance(fetcher, list) else events(fetcher)
    return [line for line in lines if line["event"] == event]


def stop_in_time(fetcher: Program) -> int:
    """Stops a fetcher; returns its exit code, if it comes in time."""
    started_s = time.monotonic()
    fetcher.terminate()
    code = fetcher.wait(STOP_S + 5)
    assert time.monotonic() - started_s < STOP_S
    return code


def assert_no_traceback(fetcher: Program) -> None:
    """The output explains in one line what is wrong."""
    assert "Traceback" not in fetcher.output()
    assert "unexpected" not in fetcher.output()
