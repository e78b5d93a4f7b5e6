"""Paid calls: what is handled for pages is handled for products, and the other way round."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from deploy.local.ports import free_port
from fetcher.broker_client import BrokerClient
from fetcher.keepa import Keepa, Reply
from fetcher.postgres import Database
from fetcher.postgres.products import ProductClaim
from fetcher.queries.judging import DetailsRequest
from fetcher.query_folder import QueryFolder
from fetcher.work.details import ProductsJob
from fetcher.work.pages import PageJob
from fetcher.work.paid_call import Job
from fetcher.work.shared import Limits, Workplace
from tests.fetcher.fetcher_log import assert_no_traceback, logged
from tests.fetcher.keepa_pages import asin, body, query, row
from tests.fetcher.work.test_page_commit import claim, start
from tests.fix_fetcher import SELECTION, StartWorld
from tests.waiting import wait_until

ENRICHED = {"selection": SELECTION, "enrichment": True}
LIMITS = Limits(claim_ttl_s=30, attempts_max=3, retry_delay_s=1)


@pytest.mark.parametrize(
    ("noun", "path", "table", "query"),
    [
        ("page", "/deal", "scan_pages", {"selection": SELECTION}),
        ("products", "/product", "products", ENRICHED),
    ],
    ids=["pages", "products"],
)
def test_a_reply_whose_claim_was_lost_is_logged_and_kept(
    start_world: StartWorld, noun: str, path: str, table: str, query: dict[str, object]
) -> None:
    """Another process has claimed the work in mid-call: one warning, and nothing paid is lost."""
    world = start_world(seed=2, deals=300)
    world.simulator.set_fault(f"latency:ms=4000,path={path},count=1")
    world.write_query("used", query)
    fetcher = world.start_fetcher()
    held = f"SELECT count(*) FROM {table} WHERE state = 'claimed'"
    wait_until(lambda: world.value(held) and world.calls(path), "a call under way")
    world.execute(
        f"UPDATE {table} SET fence = fence + 1, holder = 'another',"
        " claim_expires = now() - interval '1 hour' WHERE state = 'claimed'"
    )
    lost = f"{noun} taken over meanwhile: only the reply's data kept"
    wait_until(lambda: logged(fetcher, lost), "a warning")
    wait_until(world.scans_completed, "a completed scan")
    warnings = logged(fetcher, lost)

    assert [line["level"] for line in warnings] == ["warning"]
    assert warnings[0]["lost"] >= 1
    assert world.stored_deals() == world.served_deals()
    assert_no_traceback(fetcher)


@pytest.mark.parametrize(
    ("noun", "table", "query"),
    [
        ("page", "scan_pages", {"selection": SELECTION}),
        ("products", "products", ENRICHED),
    ],
    ids=["pages", "products"],
)
def test_work_that_kills_its_holders_is_put_aside_before_the_next_call(
    start_world: StartWorld, noun: str, table: str, query: dict[str, object]
) -> None:
    """A claim after too many expired ones leads to no call."""
    world = start_world(seed=2, deals=300)
    # The call that would kill: it is never made, or it would be seen.
    world.simulator.set_fault("error:status=500,path=/product")
    world.write_query("used", query)
    first = world.start_fetcher(retry_delay_s=3600)
    if table == "products":
        wait_until(lambda: logged(first, "products failed"), "a failed call")
    else:
        wait_until(world.scans_completed, "a completed scan")
    first.stop()
    calls = len(world.calls("/product"))
    state = "state = 'ready'" if table == "scan_pages" else "state = 'wanted'"
    if table == "scan_pages":
        world.execute("UPDATE scans SET state = 'running', end_page = NULL, end_reason = NULL")
        world.execute("UPDATE scan_pages SET state = 'ready' WHERE page = 0")
    world.execute(f"UPDATE {table} SET attempts = 8, not_before = now() WHERE {state}")
    pages = len(world.calls())
    second = world.start_fetcher(page_attempts_max=8)
    wait_until(lambda: logged(second, f"{noun} put aside"), "a dead letter")
    wait_until(lambda: world.value(f"SELECT count(*) FROM {table} WHERE state = 'dead'"), "death")
    error = world.value(f"SELECT max(error) FROM {table} WHERE state = 'dead'")
    second.stop()

    assert error == "its holders died again and again"
    assert len(world.calls("/product")) == calls
    if table == "scan_pages":
        assert len(world.calls()) == pages


@pytest.fixture
def workplace(database_url: str, tmp_path: Path) -> Iterator[Workplace]:
    """A workplace with a database and no broker."""
    with (
        Database(database_url) as database,
        BrokerClient(f"127.0.0.1:{free_port()}") as broker,
    ):
        yield Workplace("me", database, broker, QueryFolder(tmp_path), LIMITS)


def odd_page(workplace: Workplace, keepa: Keepa) -> tuple[Job, Reply]:
    """A page with a row that names no product."""
    asked = query()
    start(workplace.database, asked)
    claimed = claim(workplace.database, asked)
    assert claimed is not None
    return PageJob(claimed, asked, keepa), Reply(body([row(1), {"title": "?"}]), None)


def odd_products(_workplace: Workplace, keepa: Keepa) -> tuple[Job, Reply]:
    """A batch with a product that names no ASIN."""
    claimed = [ProductClaim(1, asin(1), fence=1, attempts=0)]
    job = ProductsJob(DetailsRequest(1, "product?stats=90", {"stats": 90}, 1), claimed, keepa)
    products = [{"asin": asin(1), "title": "A title"}, {"title": "?"}]
    return job, Reply({"products": products}, None)


@pytest.mark.parametrize("odd", [odd_page, odd_products], ids=["pages", "products"])
def test_what_was_odd_in_a_reply_is_logged(
    workplace: Workplace, odd: Callable[[Workplace, Keepa], tuple[Job, Reply]]
) -> None:
    """Malformed rows are counted by name, of products as of deals."""
    with Keepa("k" * 64) as keepa:
        job, reply = odd(workplace, keepa)
        with capture_logs() as logs:
            job.store(reply, workplace)
    (line,) = [line for line in logs if line["event"] == f"{job.noun} read"]

    assert sum(line["oddities"].values()) == 1
