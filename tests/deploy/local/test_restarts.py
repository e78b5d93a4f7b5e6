"""Delays before programs that ended are restarted."""

from deploy.local.restarts import DELAY_S_MAX, DELAY_S_MIN, STEADY_S, Restart


def test_a_program_that_keeps_ending_is_started_ever_less_eagerly() -> None:
    """Delays double up to a limit."""
    restart = Restart()
    delays_s = [restart.ended(started_s=0, now_s=1) for _ in range(8)]

    assert delays_s[:3] == [DELAY_S_MIN, 2 * DELAY_S_MIN, 4 * DELAY_S_MIN]
    assert delays_s[-1] == DELAY_S_MAX
    assert restart.count == 8


def test_a_steady_program_comes_back_soon() -> None:
    """A program that ran long restarts after the shortest delay."""
    restart = Restart()
    for _ in range(5):
        restart.ended(started_s=0, now_s=1)
    delay_s = restart.ended(started_s=10, now_s=10 + STEADY_S)

    assert delay_s == DELAY_S_MIN


def test_a_start_is_due_once() -> None:
    """A plan is due at its time, and only once."""
    restart = Restart()
    delay_s = restart.ended(started_s=0, now_s=100)
    answers = [restart.take_due(now_s) for now_s in (100, 100 + delay_s, 101 + delay_s)]

    assert answers == [False, True, False]
