"""Waiting for what another process or thread does: for a condition, never for a guessed time."""

import time
from collections.abc import Callable
from typing import Final

import pytest

# Generous: the deadline only separates a failure from a slow machine.
DEADLINE_S: Final = 240.0
POLL_S: Final = 0.02


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Waits until *condition* holds; fails the test, naming *what*, if it does not in time."""
    give_up_at = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > give_up_at:
            pytest.fail(f"waited {deadline_s:.0f} s in vain: {what}")
        time.sleep(POLL_S)
