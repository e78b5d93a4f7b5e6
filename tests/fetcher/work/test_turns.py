"""Taking turns in looking for work, and calls that overlap."""

import threading
import time

from fetcher.work.turns import Turn
from tests.fix_fetcher import SELECTION, StartWorld
from tests.waiting import DEADLINE_S, wait_until


def test_one_thread_has_the_turn_until_it_passes_it_on() -> None:
    """The next one gets it while the first one is still within its context."""
    turn, entered, leave = Turn(), threading.Event(), threading.Event()

    def second() -> None:
        with turn.taken():
            entered.set()

    thread = threading.Thread(target=second)
    with turn.taken():
        thread.start()
        assert turn.is_mine
        assert not entered.wait(0.1)
        turn.end()
        assert not turn.is_mine
        assert entered.wait(DEADLINE_S)
        # A second end passes on nothing that another thread has.
        turn.end()
    leave.set()
    thread.join(DEADLINE_S)
    with turn.taken():
        assert turn.is_mine


def test_news_end_the_rest_of_the_thread_that_has_the_turn() -> None:
    """A thread that has found nothing looks again once another one has finished its work."""
    turn, resting = Turn(), threading.Event()
    rested: list[float] = []

    def idle() -> None:
        with turn.taken():
            resting.set()
            began_s = time.monotonic()
            turn.rest(DEADLINE_S * 10)
            rested.append(time.monotonic() - began_s)

    thread = threading.Thread(target=idle)
    thread.start()
    assert resting.wait(DEADLINE_S)
    turn.wake()
    thread.join(DEADLINE_S)

    assert rested
    assert rested[0] < DEADLINE_S * 10


def test_calls_of_one_process_overlap(start_world: StartWorld) -> None:
    """Pages of several queries are read at once, one lease and one claim each."""
    world = start_world(seed=7)
    world.simulator.set_fault("latency:ms=60000,path=/deal")
    for number in range(3):
        world.write_query(f"used-{number}", {"selection": {**SELECTION, "dateRange": number}})
    fetcher = world.start_fetcher(calls_in_flight=3)
    claimed = "SELECT count(*) FROM scan_pages WHERE state = 'claimed'"
    wait_until(lambda: world.value(claimed) == 3, "three claims")
    wait_until(lambda: world.broker.bucket().open_leases == 3, "three leases")
    waiting = world.broker.bucket().waiting
    fetcher.terminate()
    code = fetcher.wait(DEADLINE_S)

    assert waiting == 0
    assert code == 0
    assert world.value("SELECT count(*) FROM scan_pages WHERE state = 'ready'") == 3
    assert world.broker.bucket().open_leases == 0
