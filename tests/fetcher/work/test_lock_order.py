"""Writers of the same products: they wait in a line, never in a circle."""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from deploy.local.ports import free_port
from fetcher.broker_client import BrokerClient
from fetcher.keepa import Keepa, Reply
from fetcher.postgres import Database
from fetcher.postgres.deals import upsert_deals
from fetcher.postgres.products import claim_products
from fetcher.queries.judging import request_of
from fetcher.queries.query import DealQuery, parse_query
from fetcher.query_folder import QueryFolder
from fetcher.work.details import ProductsJob
from fetcher.work.page_commit import write_deals
from fetcher.work.shared import Limits, Workplace
from fetcher.work.verdicts import judge_outdated
from tests.fetcher.keepa_pages import MINUTE_MS, NOON_MS, asin, query_text, reply, row
from tests.waiting import DEADLINE_S, wait_until

NUMBERS = range(5)
WAITING = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


def query_file(rank_max: int = 100_000) -> str:
    """A query with details to buy."""
    return query_text(enrichment={"stats_days": 90}, rules={"rank": {"max": rank_max}})


def asked(rank_max: int = 100_000) -> DealQuery:
    """The same, parsed."""
    return parse_query("used", query_file(rank_max))


def store_details(workplace: Workplace) -> None:
    """Stores details of all products."""
    request = request_of(asked())
    assert request is not None
    claims = workplace.attempt(
        partial(claim_products, request=request, units=5, holder="me", ttl_s=30)
    )
    answer = [{"asin": asin(number), "title": "A title"} for number in NUMBERS]
    with Keepa("k" * 64) as keepa:
        ProductsJob(request, claims, keepa).store(Reply({"products": answer}, None), workplace)


def judge_by_new_rules(workplace: Workplace) -> None:
    """Judges what is stored by changed rules."""
    workplace.persist(partial(judge_outdated, query=asked(rank_max=1)))


@pytest.mark.parametrize("other", [store_details, judge_by_new_rules])
def test_a_page_and_another_writer_of_its_products_end_one_after_the_other(
    database_url: str, tmp_path: Path, other: Callable[[Workplace], None]
) -> None:
    """The other one begins between the page's deals and its verdicts, and waits for its end."""
    (tmp_path / "used.json").write_text(query_file())
    ended: list[str] = []
    served_ms = NOON_MS + MINUTE_MS
    changed = reply(
        [row(number, price=900, updated_ms=served_ms) for number in NUMBERS], served_ms
    )
    with (
        Database(database_url, connections_max=4) as database,
        BrokerClient(f"127.0.0.1:{free_port()}") as broker,
        capture_logs() as logs,
    ):
        limits = Limits(claim_ttl_s=30, attempts_max=3, retry_delay_s=1)
        workplace = Workplace("me", database, broker, QueryFolder(tmp_path), limits)
        workplace.folder.refresh()
        with database.connection() as connection:
            paid = reply([row(number) for number in NUMBERS])
            write_deals(connection, asked(), paid, scan_id=None)

        def work() -> None:
            other(workplace)
            ended.append("other")

        def is_waiting() -> bool:
            # A transaction of its own: within one, Postgres shows the same picture again.
            with database.connection() as looking:
                return looking.execute(WAITING).fetchone() == (1,)

        thread = threading.Thread(target=work)
        with database.connection() as connection:
            upsert_deals(connection, changed.page.deals, reply_time_ms=served_ms)
            thread.start()
            wait_until(is_waiting, "a wait")
            write_deals(connection, asked(), changed, scan_id=None)
            ended.append("page")
        thread.join(DEADLINE_S)

    assert ended == ["page", "other"]
    assert [line for line in logs if "deadlock" in str(line)] == []
