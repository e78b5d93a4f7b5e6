"""An unexpected error in any thread of a fetcher: one log line, and the work goes on."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from fetcher.broker_client import aio, upkeep
from fetcher.broker_client.wire import Settlement
from fetcher.keepa import Keepa
from fetcher.postgres import Database
from fetcher.postgres.progress import standings
from fetcher.query_folder import QueryFolder
from fetcher.reports import metrics
from fetcher.reports.metrics import Measuring
from fetcher.work import pages, paid_call, threads, worker
from fetcher.work.threads import ThreadEndedError
from fetcher.work.worker import Worker
from tests.fetcher.scripted_broker import ScriptedBroker
from tests.fix_broker_client import Stage
from tests.fix_fetcher import SELECTION, StartWorld
from tests.waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.slow

ENRICHED = {"selection": SELECTION, "enrichment": True}


def failing_once(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, exc: BaseException
) -> threading.Event:
    """Makes *name* of *place* raise *exc* the first time, and set the event then."""
    original, raised = getattr(place, name), threading.Event()

    def fail(*arguments: Any, **options: Any) -> Any:
        if not raised.is_set():
            raised.set()
            raise exc
        return original(*arguments, **options)

    monkeypatch.setattr(place, name, fail)
    return raised


def run_until(worker: Worker, condition: Callable[[], object], what: str) -> Exception | None:
    """Runs *worker* until *condition* holds; returns what it ended by."""
    ended_by: list[Exception] = []

    def run() -> None:
        try:
            worker.run()
        except Exception as exc:  # noqa: BLE001 - the test looks at whatever it was
            ended_by.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: condition() or not thread.is_alive(), what)
    finally:
        worker.end()
        thread.join(DEADLINE_S)
    return ended_by[0] if ended_by else None


PLACES: dict[str, tuple[Any, str, str]] = {
    "looking for pages": (pages, "standings", "scans"),
    "claiming a page": (pages, "claim_page", "scans"),
    "calling Keepa": (Keepa, "deals", "scans"),
    "settling": (paid_call, "leased_call", "scans"),
    "writing a page": (pages, "commit_page", "scans"),
    "judging again": (worker, "judge_outdated", "scans"),
    "following queries": (QueryFolder, "report", "scans"),
    "buying details": (Keepa, "products", "details"),
    "renewing claims": (worker, "renew_claims", "heartbeat"),
    "reporting": (worker, "beat", "heartbeat"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_thread_goes_on_after_an_unexpected_error(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Everything is read, bought and renewed in the end; the thread is named in one line."""
    monkeypatch.setattr(threads, "FIRST_PAUSE_S", 0.05)
    world = start_world()
    world.write_query("used", ENRICHED)
    module, name, thread = PLACES[place]
    raised = failing_once(monkeypatch, module, name, ZeroDivisionError("as told"))

    def is_done() -> bool:
        open_products = "SELECT count(*) FROM products WHERE state IN ('wanted', 'claimed')"
        return bool(
            raised.is_set()
            and world.scans_completed()
            and not world.value(open_products)
            and world.rows("SELECT 1 FROM workers")
        )

    with world.worker(claim_ttl_s=3) as running, capture_logs() as logs:
        ended_by = run_until(running, is_done, f"the work's end after an error in {place}")
    lines = [line for line in logs if line["event"] == "unexpected error"]

    assert ended_by is None
    assert raised.is_set()
    assert [line["thread"] for line in lines] == [thread]
    assert world.value("SELECT count(*) FROM scan_pages WHERE state = 'claimed'") == 0
    assert world.stored_deals() >= world.served_deals()


@pytest.mark.parametrize(("module", "name"), [(pages, "standings"), (worker, "renew_claims")])
def test_a_thread_that_ends_ends_the_process(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    """What no thread can survive is one line and exit code 1, never an idle process."""
    world = start_world()
    world.write_query("used")
    failing_once(monkeypatch, module, name, SystemExit(3))

    with world.worker(claim_ttl_s=3) as running, capture_logs():
        ended_by = run_until(running, lambda: False, "its end")

    assert isinstance(ended_by, ThreadEndedError)


def test_a_stuck_thread_is_logged_and_its_process_is_alive_no_more(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claims are left to others; `seen_at` stands still, and `doing` names the thread."""
    monkeypatch.setattr(worker, "STEP_AT_MOST_S", 0.5)
    world = start_world()
    world.write_query("used")
    release = threading.Event()

    def hang(*arguments: Any, **options: Any) -> Any:
        release.wait(60)
        return standings(*arguments, **options)

    monkeypatch.setattr(pages, "standings", hang)
    reported = "SELECT 1 FROM workers WHERE doing LIKE 'stuck: scans: %%'"
    with world.worker(claim_ttl_s=3) as running, capture_logs() as logs:
        run_until(
            running,
            lambda: world.rows(reported) and any("stuck" in line["event"] for line in logs),
            "a word about the stuck thread",
        )
        release.set()
    stuck = [line["thread"] for line in logs if "stuck" in line["event"]]

    assert stuck == ["scans"]


@pytest.fixture
def face(request: pytest.FixtureRequest) -> str:
    """Which client the test runs with."""
    return str(request.node.callspec.params["stage"])


def test_upkeep_goes_on_after_an_unexpected_error(
    stage: Stage,
    face: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The next renewal is sent all the same, and one line holds the traceback."""
    servicer = ScriptedBroker(ttl_s=0.6)
    client = stage.client(stage.broker(servicer))
    places = {"blocking": upkeep, "asyncio": aio}
    raised = failing_once(monkeypatch, places[face], "renewal", ZeroDivisionError("as told"))
    with client.lease("deal", tokens_per_unit=5):
        wait_until(lambda: len(servicer.renewals) >= 2, "two renewals")
    wait_until(lambda: servicer.settles, "a settle")

    assert raised.is_set()
    assert caplog.text.count("unexpected error in the upkeep of leases") == 1
    assert "ZeroDivisionError" in caplog.text


def test_a_settle_that_fails_unexpectedly_is_repeated(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller has a paid reply in hand and goes on."""
    servicer = ScriptedBroker()
    client = stage.client(stage.broker(servicer))
    raised = failing_once(monkeypatch, Settlement, "request", ZeroDivisionError("as told"))
    with client.lease("deal", tokens_per_unit=5):
        pass
    wait_until(lambda: servicer.settles, "the settle")

    assert raised.is_set()


def test_measuring_goes_on_after_an_unexpected_error(
    database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Metrics come back; one line names what happened."""
    monkeypatch.setattr(threads, "FIRST_PAUSE_S", 0.05)
    failing_once(monkeypatch, metrics, "measure", ZeroDivisionError("as told"))
    stop = threading.Event()
    with Database(database_url) as database, capture_logs() as logs:
        measuring = Measuring(
            database, QueryFolder(tmp_path), silent_s=30, retention=timedelta(days=90)
        )
        thread = threading.Thread(target=measuring.run, args=(stop,))
        thread.start()
        wait_until(lambda: measuring.latest is not None, "a measurement")
        stop.set()
        thread.join(DEADLINE_S)
    events = [line["event"] for line in logs]

    assert measuring.latest is not None
    assert measuring.database_up
    assert events == ["unexpected error", "goes on after an unexpected error"]
