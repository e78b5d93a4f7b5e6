"""What is away is one clear line and a steady retry."""

from pathlib import Path

from deploy.local.ports import free_port
from fetcher.__main__ import main
from tests.fetcher.fetcher_log import assert_no_traceback, logged, output, stop_in_time
from tests.fix_broker import environment
from tests.fix_fetcher import SELECTION, StartWorld
from tests.in_process import run_here
from tests.waiting import DEADLINE_S, wait_until


def test_without_keepa_the_fetcher_keeps_trying(start_world: StartWorld) -> None:
    """A Keepa that can't be reached harms no page."""
    world = start_world()
    world.write_query("used")
    fetcher = world.start_fetcher(keepa_base_url=f"http://127.0.0.1:{free_port()}")
    wait_until(lambda: logged(fetcher, "Keepa is not available: trying again"), "a complaint")
    code = stop_in_time(fetcher)

    assert code == 0
    assert world.value("SELECT max(attempts) FROM scan_pages") == 0
    assert world.spent() == 0
    assert_no_traceback(fetcher)


def test_an_unknown_key_ends_the_fetcher(start_world: StartWorld) -> None:
    """A broker that counts for another key refuses; only a person can help."""
    world = start_world()
    world.write_query("used")
    fetcher = world.start_fetcher(keepa_api_key="another-key-altogether")
    code = fetcher.wait(DEADLINE_S)

    assert code == 1
    assert "KEEPA_API_KEY" in fetcher.last_message
    assert "another-key-altogether" not in fetcher.output()
    assert_no_traceback(fetcher)


def test_without_postgres_the_fetcher_waits(start_world: StartWorld) -> None:
    """One line names the trouble; the password is not in it."""
    world = start_world()
    url = f"postgresql://me:hidden-word@127.0.0.1:{free_port()}/deals"
    fetcher = world.start_fetcher(database_url=url)
    wait_until(lambda: logged(fetcher, "waiting for the database"), "a complaint")
    code = stop_in_time(fetcher)

    assert code == 0
    assert "hidden-word" not in fetcher.output()
    assert_no_traceback(fetcher)


def test_without_tables_the_fetcher_names_the_remedy(
    start_world: StartWorld, empty_database_url: str
) -> None:
    """Migrations may come later."""
    world = start_world()
    with world.at_work(empty_database_url) as log:
        wait_until(lambda: logged(log, "waiting for the database"), "a complaint")

    assert "dealfetcher migrate" in logged(log, "waiting for the database")[0]["problem"]


def test_without_a_broker_the_fetcher_waits_for_it(start_world: StartWorld) -> None:
    """It makes no call, and goes on when the broker is back."""
    world = start_world(rough=True)
    world.write_query("used")
    world.broker.program.kill()
    world.broker.program.wait(DEADLINE_S)
    fetcher = world.start_fetcher()
    wait_until(lambda: "no broker answers" in output(fetcher), "a complaint")
    calls = world.calls()
    world.broker.start()
    wait_until(world.scans_completed, "a completed scan")

    assert calls == []
    assert fetcher.output().count("no broker answers") == 1
    assert_no_traceback(fetcher)


def test_a_missing_key_is_named_with_its_remedy(
    tmp_path: Path,
) -> None:
    """Exit code 2, and where it was looked for."""
    given = environment(database_url="postgresql://127.0.0.1/deals")
    done = run_here(main, "dealfetcher", ("run",), environment=given, folder=tmp_path)

    assert done.returncode == 2
    assert "KEEPA_API_KEY" in done.stderr
    assert ".env" in done.stderr


def test_a_key_without_access_ends_the_fetcher(start_world: StartWorld) -> None:
    """A 402 is for a person to solve: the page stays unharmed, and the message explains it."""
    world = start_world()
    world.simulator.set_fault("error:status=402,path=/deal")
    world.write_query("used")
    fetcher = world.start_fetcher()
    code = fetcher.wait(DEADLINE_S)

    assert code == 1
    assert "402" in fetcher.last_message
    assert world.rows("SELECT state, attempts FROM scan_pages") == [("ready", 0)]
    assert_no_traceback(fetcher)


def test_stale_deals_are_logged_with_the_query_that_was_sent(start_world: StartWorld) -> None:
    """Where even the newest deal is two days old, the log names the age and the selection."""
    world = start_world()
    world.simulator.set_fault("skew:ms=172800000,path=/deal")
    world.write_query("used")
    with world.at_work() as log:
        wait_until(lambda: logged(log, "the newest deal is older than 24 hours"), "a warning")
    warning = logged(log, "the newest deal is older than 24 hours")[0]

    assert warning["log_level"] == "warning"
    assert 47 < warning["hours"] < 49
    assert warning["sent"] == SELECTION


def test_a_query_without_any_row_is_complete_and_empty(start_world: StartWorld) -> None:
    """Zero rows end a scan like any short page; nothing is stored, and nothing failed."""
    world = start_world()
    world.write_query("used", {"selection": {**SELECTION, "titleSearch": "no such title"}})
    log = world.collect()

    assert world.rows("SELECT end_reason, end_page FROM scans") == [("short page", 0)]
    assert world.value("SELECT count(*) FROM deals") == 0
    assert logged(log, "page failed") == []
