"""Fetchers, as whole processes and within the test, with a real simulator, broker, Postgres."""

import os
import signal
from pathlib import Path

import pytest

from tests.fetcher.fetcher_log import STOP_S, assert_no_traceback, logged, stop_in_time
from tests.fix_fetcher import SELECTION, StartWorld
from tests.waiting import DEADLINE_S, wait_until

RSS_MAX_MB = 100


def test_a_scan_stores_exactly_what_was_served(start_world: StartWorld) -> None:
    """Every row of every page, its verdict, and every token are accounted for."""
    world = start_world()
    world.write_query("used", {"selection": SELECTION, "rules": {"rank": {"max": 100_000}}})
    fetcher = world.start_fetcher()
    wait_until(world.scans_completed, "a completed scan")
    code = stop_in_time(fetcher)
    served = world.served_deals()
    verdicts = dict(world.rows("SELECT state, count(*) FROM verdicts GROUP BY state"))
    newest = world.rows("SELECT domain_id, asin, last_update FROM deals")

    assert code == 0
    assert world.stored_deals() == served
    assert sum(verdicts.values()) == len(served)
    assert verdicts["rejected"] > 0
    assert all(update is not None for _, _, update in newest)
    world.assert_every_token_is_accounted_for()
    assert_no_traceback(fetcher)


def test_the_log_shows_what_is_fetched_and_why_deals_were_rejected(
    start_world: StartWorld,
) -> None:
    """The sort type is named with its meaning, rejections by rule."""
    world = start_world()
    world.write_query("used", {"selection": SELECTION, "rules": {"rank": {"max": 1}}})
    with world.at_work() as log:
        wait_until(lambda: logged(log, "verdicts"), "a breakdown of verdicts")
    started = logged(log, "Fetching deals using Sort Type: 1 (deal age, newest first)")
    breakdown = logged(log, "verdicts")[0]["breakdown"]

    assert started[0]["query"] == "used"
    assert "rejected: rank" in breakdown


def test_details_of_accepted_deals_are_bought_once(start_world: StartWorld) -> None:
    """Pending deals get their product verdict, and no product is paid for twice."""
    world = start_world()
    query = {
        "selection": SELECTION,
        "enrichment": True,
        "rules": {"rank": {"max": 200_000}, "monthly_sold": {"min": 1, "unknown": "reject"}},
    }
    world.write_query("used", query)
    todo = "SELECT count(*) FROM products WHERE state IN ('wanted', 'claimed')"
    with world.at_work():
        wait_until(world.scans_completed, "a completed scan")
        wait_until(lambda: not world.value(todo), "all products bought")
    wanted = world.value("SELECT count(*) FROM products")
    bought = sum(call["consumed"] for call in world.calls("/product"))
    undecided = world.value("SELECT count(*) FROM final_verdicts WHERE state = 'pending'")

    assert wanted > 0
    assert bought == wanted
    assert undecided == 0
    world.assert_every_token_is_accounted_for()


def test_an_idle_fetcher_stops_at_once(start_world: StartWorld) -> None:
    """With no query there is nothing to finish."""
    world = start_world()
    fetcher = world.start_fetcher()
    wait_until(lambda: logged(fetcher, "fetcher started"), "a start")

    assert stop_in_time(fetcher) == 0
    assert_no_traceback(fetcher)


def test_a_fetcher_that_waits_for_tokens_stops_in_time(start_world: StartWorld) -> None:
    """The wait is cancelled, and nothing stays claimed or reserved."""
    world = start_world(initial_tokens=-1000, rate=1, tick_seconds=60)
    world.write_query("used")
    fetcher = world.start_fetcher()
    wait_until(lambda: world.broker.bucket().waiting == 1, "a wait for tokens")
    claimed = world.value("SELECT count(*) FROM scan_pages WHERE state = 'claimed'")
    code = stop_in_time(fetcher)

    assert code == 0
    assert claimed == 0
    wait_until(lambda: world.broker.bucket().waiting == 0, "the wait's end")
    assert world.broker.bucket().open_leases == 0


def test_a_fetcher_in_mid_call_gives_its_page_back(start_world: StartWorld) -> None:
    """A call that takes too long to wait for is reported, its page free for others."""
    world = start_world(rough=True)
    world.simulator.set_fault("latency:ms=60000,path=/deal")
    world.write_query("used")
    fetcher = world.start_fetcher()
    wait_until(lambda: world.broker.bucket().open_leases == 1, "a call")
    wait_until(
        lambda: world.value("SELECT count(*) FROM scan_pages WHERE state = 'claimed'"), "a claim"
    )
    code = stop_in_time(fetcher)

    assert code == 0
    assert world.rows("SELECT state, attempts FROM scan_pages") == [("ready", 0)]
    assert world.broker.bucket().open_leases == 0


def test_a_fetcher_with_time_to_finish_writes_what_it_paid_for(start_world: StartWorld) -> None:
    """Scaling in loses no paid call: the call under way is written, and no other begins."""
    world = start_world(rough=True)
    world.simulator.set_fault("latency:ms=4000,path=/deal")
    world.write_query("used")
    fetcher = world.start_fetcher(finish_seconds=60, claim_ttl_s=60)
    wait_until(
        lambda: world.value("SELECT count(*) FROM scan_pages WHERE state = 'claimed'"), "a claim"
    )
    fetcher.terminate()
    code = fetcher.wait(DEADLINE_S)
    calls = world.calls()

    assert code == 0
    assert len(calls) == 1
    assert world.value("SELECT count(*) FROM scan_pages WHERE state = 'done'") == 1
    assert world.value("SELECT sum(tokens) FROM scan_pages") == calls[0]["consumed"] > 0
    assert world.broker.bucket().open_leases == 0
    assert_no_traceback(fetcher)


def test_a_fetcher_counts_as_alive_once_it_works(start_world: StartWorld) -> None:
    """The report from before the tables were checked is not the last one for long.

    A beat comes every third of a claim's time, which is longer here than the test waits.
    """
    claim_ttl_s = 600.0
    world = start_world()
    world.write_query("used")
    world.start_fetcher(claim_ttl_s=claim_ttl_s)
    wait_until(
        lambda: any(
            silent_s < claim_ttl_s
            for (silent_s,) in world.rows(
                "SELECT extract(epoch FROM now() - seen_at)::float8 FROM workers"
            )
        ),
        "a report of being at work",
    )


def test_run_seconds_ends_by_itself(start_world: StartWorld) -> None:
    """A run with a limit exits 0."""
    world = start_world()
    fetcher = world.start_fetcher("--run-seconds", "1")

    assert fetcher.wait(DEADLINE_S) == 0


def test_ctrl_c_is_a_clean_end(start_world: StartWorld) -> None:
    """SIGINT stops as SIGTERM does."""
    world = start_world()
    fetcher = world.start_fetcher()
    wait_until(lambda: logged(fetcher, "fetcher started"), "a start")
    os.kill(fetcher.pid, signal.SIGINT)

    assert fetcher.wait(STOP_S) == 0


def test_a_fetcher_stays_small(start_world: StartWorld) -> None:
    """Memory stays below 100 MB while pages are read."""
    world = start_world()
    world.write_query("used")
    fetcher = world.start_fetcher()
    wait_until(world.scans_completed, "a completed scan")
    status = Path(f"/proc/{fetcher.pid}/status").read_text()
    rss_mb = int(status.split("VmRSS:")[1].split()[0]) / 1000

    assert rss_mb < RSS_MAX_MB


def test_a_refusal_puts_the_page_back_unharmed(start_world: StartWorld) -> None:
    """A 429 is no failed attempt and never the end of the deals."""
    world = start_world()
    world.simulator.set_fault("throttle:path=/deal,count=3")
    world.write_query("used")
    world.collect()

    assert [call["status"] for call in world.calls()].count(429) == 3
    assert world.value("SELECT max(attempts) FROM scan_pages") == 0
    assert world.stored_deals() == world.served_deals()


@pytest.mark.parametrize("fault", ["error:status=503", "cut", "garbage", "reset"])
def test_a_failed_call_is_repeated(start_world: StartWorld, fault: str) -> None:
    """Server errors, cut and strange bodies cost an attempt, never a deal."""
    world = start_world()
    joint = "," if ":" in fault else ":"
    world.simulator.set_fault(f"{fault}{joint}path=/deal,count=2")
    world.write_query("used")
    log = world.collect()

    assert len(logged(log, "page failed")) == 2
    assert world.stored_deals() >= world.served_deals()


def test_a_page_that_always_fails_is_put_aside(start_world: StartWorld) -> None:
    """It ends as a dead letter with its error, and the watermark does not move."""
    world = start_world()
    world.simulator.set_fault("error:status=500,path=/deal")
    world.write_query("used")
    dead = "SELECT 1 FROM scan_pages WHERE state = 'dead'"
    with world.at_work(attempts_max=3):
        wait_until(lambda: world.rows(dead), "a dead page")
    error, attempts = world.rows("SELECT error, attempts FROM scan_pages")[0]

    assert "500" in error
    assert attempts == 3
    assert world.value("SELECT state FROM scans") == "abandoned"
    assert world.rows("SELECT watermark FROM watermarks") == [(None,)]


def test_a_page_of_a_killed_fetcher_is_finished_by_another(start_world: StartWorld) -> None:
    """Killing a fetcher in mid-call costs the call, not the page."""
    world = start_world(rough=True)
    world.simulator.set_fault("latency:ms=3000,path=/deal,count=1")
    world.write_query("used")
    first = world.start_fetcher(claim_ttl_s=1)
    wait_until(
        lambda: world.value("SELECT count(*) FROM scan_pages WHERE state = 'claimed'"), "a claim"
    )
    first.kill()
    world.start_fetcher(claim_ttl_s=1)
    wait_until(world.scans_completed, "a completed scan")
    holders = world.value("SELECT max(fence) FROM scan_pages")

    assert holders >= 2
    assert world.stored_deals() == world.served_deals()


def test_fetchers_never_read_the_same_page_at_once(start_world: StartWorld) -> None:
    """A fleet reads each page of a scan once."""
    world = start_world()
    world.simulator.set_fault("latency:ms=50,path=/deal")
    for number in range(3):
        selection = {**SELECTION, "priceTypes": [number]}
        world.write_query(f"query-{number}", {"selection": selection})
    fleet = [world.start_fetcher() for _ in range(4)]
    wait_until(lambda: world.scans_completed() == 3, "three completed scans")
    for fetcher in fleet:
        fetcher.terminate()
    paid = len(world.calls())
    reads = world.value("SELECT sum(reads) FROM scan_pages")

    assert reads == paid
    assert world.value("SELECT max(fence - reads) FROM scan_pages") == 0
    assert world.stored_deals() == world.served_deals()
    world.assert_every_token_is_accounted_for()


def test_a_changed_query_is_picked_up(start_world: StartWorld) -> None:
    """A query file that appears later is read without a restart."""
    world = start_world()
    world.write_query("first")
    with world.at_work():
        wait_until(world.scans_completed, "a scan of the query that was there")
        world.write_query("later")
        wait_until(lambda: world.scans_completed() == 2, "a scan of the new query")


def test_a_bad_query_file_is_named_and_does_not_stop_the_others(
    start_world: StartWorld,
) -> None:
    """The log names the file, the key and the reason."""
    world = start_world()
    world.write_query("good")
    world.write_query("bad", {"domainId": 99, "priceTypes": [1]})
    with world.at_work() as log:
        wait_until(world.scans_completed, "a scan of the good query")
    refused = logged(log, "query file refused")

    assert [(line["query"], line["key"]) for line in refused] == [("bad", "selection.domainId")]


def test_changed_rules_judge_stored_deals_again_for_free(start_world: StartWorld) -> None:
    """A new rule applies to what is stored, without a call to Keepa."""
    world = start_world()
    world.write_query("used")
    world.collect()
    spent = world.spent()
    accepted = world.value("SELECT count(*) FROM verdicts WHERE state = 'accepted'")
    world.write_query("used", {"selection": SELECTION, "rules": {"rank": {"max": 1}}})
    old = "SELECT count(*) FROM verdicts WHERE state = 'accepted'"
    with world.at_work():
        wait_until(lambda: not world.value(old), "new verdicts")

    assert accepted > 0
    assert world.spent() == spent


@pytest.mark.parametrize(
    ("sort", "fault"), [(4, None), (1, "unsorted:path=/deal")], ids=["sort-4", "out-of-order"]
)
def test_an_order_that_supports_no_stop_is_found_out_on_the_first_page(
    start_world: StartWorld, sort: int, fault: str | None
) -> None:
    """By sort type 4, or served out of order: a scan logs it once, and reads every page."""
    world = start_world(deal_speed=200, cache_seconds=1, deals=1000)
    if fault is not None:
        world.simulator.set_fault(fault)
    world.write_query("drops", {"selection": {**SELECTION, "sortType": sort}})
    with world.at_work(poll_speed=100) as log:
        wait_until(lambda: world.scans_completed() >= 2, "two completed scans")
    complaints = [line for line in log if "every page" in line["event"]]
    scans = [line["scan"] for line in complaints]
    reasons = world.rows("SELECT DISTINCT end_reason FROM scans WHERE state = 'completed'")

    assert {(line["log_level"], line["page"]) for line in complaints} == {("warning", 0)}
    assert scans == sorted(set(scans))
    assert scans[:2] == [1, 2]
    assert ("percent drop descending" in complaints[0]["order"]) == (sort == 4)
    assert reasons == [("short page",)]
    assert world.stored_deals() == world.served_deals()
