"""Threads that go on, and are seen when they don't."""

import sys
import threading
import time
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from fetcher.work import threads as threads_module
from fetcher.work.shared import Every, Limits, Pulse
from fetcher.work.threads import Activities, ThreadEndedError, Threads
from tests.waiting import wait_until

LIMITS = Limits(claim_ttl_s=9, attempts_max=3, retry_delay_s=1)


class Crew:
    """Threads under test, and how they ended."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.activities = Activities()
        self.ended_by: list[Exception] = []
        self.threads = Threads(
            self.stop, self.activities, fatal=(KeyError,), end=self.ended_by.append
        )

    def run_until(self, condition: Callable[[], object], what: str) -> None:
        """Waits, then ends the threads."""
        try:
            wait_until(condition, what)
        finally:
            self.stop.set()
            self.threads.join(until_s=time.monotonic() + 5)


def test_an_unexpected_error_is_logged_once_and_the_thread_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same error from the same place is one line, however often it comes."""
    monkeypatch.setattr(threads_module, "FIRST_PAUSE_S", 0.01)
    crew = Crew()
    rounds: list[int] = []

    def step() -> float:
        rounds.append(1)
        if len(rounds) <= 4:
            raise ZeroDivisionError
        return 0.01

    with capture_logs() as logs:
        crew.threads.start("scans", step)
        crew.run_until(lambda: len(rounds) > 5, "rounds after the errors")
    lines = [line for line in logs if line["event"] == "unexpected error"]

    assert [(line["thread"], line["log_level"]) for line in lines] == [("scans", "error")]
    assert isinstance(lines[0]["exc_info"], ZeroDivisionError)
    assert [line["times"] for line in logs if line["event"].startswith("goes on")] == [4]
    assert crew.ended_by == []


def test_pauses_after_errors_grow_up_to_a_limit() -> None:
    """A thread that renews claims must not rest for longer than they last."""
    mishaps = threads_module.Mishaps("heartbeat", longest_pause_s=3.0)
    with capture_logs():
        pauses_s = [mishaps.note(ValueError()) for _ in range(5)]

    assert pauses_s == [1.0, 2.0, 3.0, 3.0, 3.0]


def test_an_error_for_a_person_ends_the_process() -> None:
    """It is handed on, without a traceback in the log."""
    crew = Crew()

    def step() -> float:
        raise KeyError("the key")

    with capture_logs() as logs:
        crew.threads.start("scans", step)
        crew.run_until(lambda: crew.ended_by, "the end")

    assert [str(exc) for exc in crew.ended_by] == ["'the key'"]
    assert logs == []


def test_a_thread_can_not_end_unseen() -> None:
    """What is no ordinary error ends the process with one clear line."""
    crew = Crew()

    def step() -> float:
        sys.exit(3)

    with capture_logs() as logs:
        crew.threads.start("details", step)
        crew.run_until(lambda: crew.ended_by, "the end")

    assert isinstance(crew.ended_by[0], ThreadEndedError)
    assert "'details' ended by SystemExit" in str(crew.ended_by[0])
    assert [line["event"] for line in logs] == ["thread ended"]


def test_a_machine_without_room_for_threads_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback: a limit that an operator can raise."""

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)

    with pytest.raises(ThreadEndedError, match="ulimit"):
        Crew().threads.start("scans", lambda: 1.0)


def test_a_thread_that_takes_too_long_is_stuck() -> None:
    """Waiting for tokens may last for ever, a statement may not."""
    activities = Activities()
    activities.begin("waiting for tokens", at_most_s=None)
    waiting = activities.overdue()
    activities.begin("writing", at_most_s=-1.0)
    writing = activities.overdue()

    assert waiting == []
    assert [activity.text for activity in writing] == ["writing"]


def test_expired_claims_are_taken_over_only_after_a_quiet_time() -> None:
    """Nine seconds a claim, a beat every three: living holders get four and a half."""
    pulse = Pulse(LIMITS)
    before = pulse.may_take_over(99)
    for now_s in (100, 103, 106):
        pulse.beat(now_s)
    early, steady = pulse.may_take_over(104.4), pulse.may_take_over(104.6)
    pulse.miss()
    during = pulse.may_take_over(107)
    pulse.beat(115)
    after = [pulse.may_take_over(now_s) for now_s in (115, 119.4, 119.6)]
    late = pulse.may_take_over(122)
    pulse.beat(123)

    assert (before, early, steady, during) == (False, False, True, False)
    assert after == [False, False, True]
    assert late is False
    assert pulse.may_take_over(124) is False


def test_what_is_done_seldom_is_done_at_once_and_then_in_its_time() -> None:
    """Counted from the last time."""
    every = Every(600)

    assert [every.is_due(now_s) for now_s in (0, 1, 599, 600, 601, 1200)] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]
