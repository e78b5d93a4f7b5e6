"""Counts the work of a step in calls, which no neighbour on the machine can change."""

import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from broker.core.errors import BrokerError


class TooMuchWorkError(Exception):
    """A step has made more calls than it may."""


def calls_of(step: Callable[[], object], most: int = 10**9) -> int:
    """Calls of functions, built-in ones and generators that *step* makes, refused or not.

    Raises:
        TooMuchWorkError: It has made more than *most* of them; the step is cut off there.
    """
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}
        if calls > most:
            sys.setprofile(None)
            raise TooMuchWorkError(f"more than {most} calls")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        with suppress(BrokerError):
            step()
    finally:
        sys.setprofile(before)
    return calls
