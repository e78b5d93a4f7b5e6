"""Claims on pages and on products: one mechanism, so one set of tests for both."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fetcher.postgres import Database
from fetcher.postgres.claims import (
    PAGE_WORK,
    PRODUCT_WORK,
    Claim,
    WorkTable,
    bury_claims,
    fail_claims,
    lock_claims,
    release_claims,
    renew_claims,
)
from fetcher.postgres.database import Connection
from fetcher.postgres.deals import upsert_deals
from fetcher.postgres.pages import claim_page
from fetcher.postgres.products import (
    claim_products,
    count_wanted,
    known_products,
    next_request,
    store_products,
    want_products,
)
from fetcher.queries.judging import DetailsRequest
from fetcher.replies.products import Product, parse_product
from tests.fetcher.keepa_pages import NOON_MS, asin, page, query, row
from tests.fetcher.work.test_page_commit import start

TTL_S = 30.0
REQUEST = DetailsRequest(1, "product?stats=90", {"stats": 90}, 1)
RAWS = {asin(1): {"asin": asin(1), "title": "A title"}}
BOTH = [PAGE_WORK, PRODUCT_WORK]

Change = Callable[[Connection, WorkTable, list[Claim]], list[Claim]]


def fail(connection: Connection, table: WorkTable, claims: list[Claim]) -> list[Claim]:
    """Counts a failed try."""
    return fail_claims(connection, table, claims, "broken", delays_s=[0.0])


def bury(connection: Connection, table: WorkTable, claims: list[Claim]) -> list[Claim]:
    """Set aside."""
    return bury_claims(connection, table, claims, "broken")


ENDS: dict[str, Change] = {
    "release": release_claims,
    "fail": fail,
    "bury": bury,
    "lock": lock_claims,
}


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with one page to read and one product to ask for."""
    with Database(database_url) as database:
        start(database, query())
        with database.connection() as connection:
            upsert_deals(connection, page([row(1)]).deals, reply_time_ms=NOON_MS)
            want_products(connection, REQUEST, {asin(1): None})
        yield database


def claim(
    database: Database,
    table: WorkTable,
    holder: str,
    *,
    ttl_s: float = TTL_S,
    take_over: bool = True,
) -> Claim | None:
    """Claims the only row of *table*."""
    with database.connection() as connection:
        if table is PAGE_WORK:
            return claim_page(
                connection, [query()], holder=holder, ttl_s=ttl_s, take_over=take_over
            )
        claims = claim_products(
            connection, REQUEST, units=10, holder=holder, ttl_s=ttl_s, take_over=take_over
        )
        return claims[0] if claims else None


def claimed(database: Database, table: WorkTable, holder: str, *, ttl_s: float = TTL_S) -> Claim:
    """As `claim`, where there is something to claim."""
    found = claim(database, table, holder, ttl_s=ttl_s)
    assert found is not None
    return found


def only_row(database: Database, table: WorkTable) -> dict[str, Any]:
    """The row that is worked on."""
    with database.connection() as connection:
        rows = connection.execute(f"SELECT to_jsonb(t) FROM {table.name} t".encode()).fetchall()
    (found,) = [found for (found,) in rows]
    return dict(found)


@pytest.mark.parametrize("table", BOTH, ids=lambda table: table.name)
@pytest.mark.parametrize("end", ENDS)
def test_a_lost_claim_is_reported_and_changes_nothing(
    database: Database, table: WorkTable, end: str
) -> None:
    """Whatever a former holder does, the row is its new holder's."""
    mine = claimed(database, table, "me", ttl_s=-1)
    theirs = claimed(database, table, "you")
    before = only_row(database, table)
    with database.connection() as connection:
        lost = ENDS[end](connection, table, [mine])
    after = only_row(database, table)
    with database.connection() as connection:
        kept = ENDS[end](connection, table, [theirs])

    assert lost == [mine]
    assert after == before
    assert kept == []
    assert (theirs.fence, theirs.attempts) == (mine.fence + 1, 1)


@pytest.mark.parametrize("table", BOTH, ids=lambda table: table.name)
def test_an_expired_claim_is_left_alone_on_demand(database: Database, table: WorkTable) -> None:
    """After an outage its holder may be alive and about to renew it."""
    claimed(database, table, "me", ttl_s=-1)
    cautious = claim(database, table, "you", take_over=False)
    with database.connection() as connection:
        seen = next_request(connection, take_over=False)
        count = count_wanted(connection, REQUEST, most=10, take_over=False)
    bold = claim(database, table, "you", take_over=True)

    assert cautious is None
    if table is PRODUCT_WORK:
        assert (seen, count) == (None, 0)
    assert bold is not None


@pytest.mark.parametrize("table", BOTH, ids=lambda table: table.name)
def test_renewing_waits_for_no_lock(database: Database, table: WorkTable) -> None:
    """A commit that takes its time must not hold up the renewal of the holder's other claims."""
    mine = claimed(database, table, "me", ttl_s=-1)
    with database.connection() as writing:
        lock_claims(writing, table, [mine])
        with database.connection() as beating:
            beating.execute("SET LOCAL lock_timeout = '5s'")
            during = renew_claims(beating, table, holder="me", ttl_s=TTL_S)
    with database.connection() as connection:
        after = renew_claims(connection, table, holder="me", ttl_s=TTL_S)
        others = renew_claims(connection, table, holder="you", ttl_s=TTL_S)

    assert (during, after, others) == (0, 1, 0)
    assert claim(database, table, "you") is None


@pytest.mark.parametrize("table", BOTH, ids=lambda table: table.name)
def test_any_error_text_can_be_kept(database: Database, table: WorkTable) -> None:
    """Keepa is quoted in errors, at length and with any character."""
    mine = claimed(database, table, "me")
    with database.connection() as connection:
        lost = bury_claims(connection, table, [mine], "bad \0 body " + "x" * 100_000)
    found = only_row(database, table)

    assert lost == []
    assert found["state"] == "dead"
    assert found["error"].startswith("bad  body x")
    assert len(found["error"]) <= 1000


def product(number: int) -> Product:
    """Details of one product."""
    return parse_product(RAWS[asin(number)], domain_id=1)


def test_a_late_answer_to_another_question_is_not_taken_for_the_answer(
    database: Database,
) -> None:
    """The first holder's reply comes when others have bought it and more is wanted by now."""
    claimed(database, PRODUCT_WORK, "me", ttl_s=-1)
    claimed(database, PRODUCT_WORK, "you")
    more = DetailsRequest(1, "product?offers=20", {"stats": 90, "offers": 20}, 6)
    with database.connection() as connection:
        store_products(connection, REQUEST, [product(1)], RAWS, reply_time_ms=NOON_MS)
        want_products(connection, more, {asin(1): NOON_MS})
        store_products(connection, REQUEST, [product(1)], RAWS, reply_time_ms=NOON_MS + 60_000)
        wanted = next_request(connection)
        known = known_products(connection, query(enrichment=True), [asin(1)])[asin(1)]

    assert wanted == more
    assert known.parameters == REQUEST.parameters
