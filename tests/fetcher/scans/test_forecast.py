"""What queries cost per hour, and whether a plan carries it."""

import json
from typing import Any

import pytest

from fetcher.queries.judging import request_of
from fetcher.queries.query import DealQuery, parse_query
from fetcher.replies.units import CACHE_MS
from fetcher.scans.forecast import forecast

SELECTION: dict[str, Any] = {"domainId": 1, "priceTypes": [2], "dateRange": 3, "page": 0}


def query(name: str = "q", **head: object) -> DealQuery:
    """A query with this head."""
    return parse_query(name, json.dumps({"selection": SELECTION, **head}))


def test_a_fixed_interval_costs_its_pages() -> None:
    """Twelve scans an hour of one page each; and one full scan of ten pages a day."""
    plan = forecast(
        [query(interval="5m", max_pages=10)], costs={}, refill_per_hour=300, deals_per_hour=0
    )
    (one,) = plan.queries

    assert (one.pages, one.page_tokens) == (12, 60)
    assert one.full_tokens == pytest.approx(50 / 24)
    assert one.tokens_per_hour == plan.tokens_per_hour
    assert plan.carried is True


def test_many_new_deals_take_more_pages() -> None:
    """A page holds 150 deals: 3,000 new ones an hour are 20 pages."""
    plan = forecast(
        [query(interval="1h", full_scan_every="never")],
        costs={},
        refill_per_hour=None,
        deals_per_hour=3_000,
    )

    assert plan.queries[0].pages == 20


def test_another_order_reads_every_page() -> None:
    """Without newest first each scan reads all pages, and needs no full scan."""
    plan = forecast([query(interval="30m", sort=4, max_pages=7)], costs={}, refill_per_hour=20)

    assert (plan.queries[0].pages, plan.queries[0].full_tokens) == (14, 0)
    assert plan.carried is False
    assert any("not sorted by newest first" in words for words in plan.assumptions)


def test_details_are_counted_by_deal() -> None:
    """Twenty offers are two pages of six tokens, until the broker has learned better."""
    wanted = query(enrichment={"offers": 20}, interval="1h", full_scan_every="never")
    request = request_of(wanted)
    assert request is not None
    prior = forecast([wanted], costs={}, refill_per_hour=None, deals_per_hour=4)
    learned = forecast(
        [wanted],
        costs={request.operation: 7.5, "deal": 6.0},
        refill_per_hour=None,
        deals_per_hour=4,
    )

    assert (prior.queries[0].details, prior.queries[0].detail_tokens) == (4, 48)
    assert (learned.queries[0].page_tokens, learned.queries[0].detail_tokens) == (6, 30)
    assert any("list prices: deal, product?" in words for words in prior.assumptions)
    assert not any("list prices" in words for words in learned.assumptions)


def test_adaptive_queries_take_what_fixed_ones_leave() -> None:
    """The plan is carried as long as the fixed intervals are."""
    fixed = query("fixed", interval="2m", full_scan_every="never")
    adaptive = query("adaptive", full_scan_every="never")
    rich = forecast([fixed, adaptive], costs={}, refill_per_hour=300)
    poor = forecast([fixed, adaptive], costs={}, refill_per_hour=60)

    assert (rich.carried, poor.carried) == (True, False)
    assert rich.queries[1].interval_ms < poor.queries[1].interval_ms
    assert not rich.queries[1].fixed


def test_an_unknown_plan_is_not_judged() -> None:
    """The assumed interval is named; an interval below Keepa's cache is not believed."""
    plan = forecast([query(), query("r", interval="10s")], costs={}, refill_per_hour=None)

    assert plan.carried is None
    assert [one.interval_ms for one in plan.queries] == [300_000, CACHE_MS]
    assert any("no refill rate is known" in words for words in plan.assumptions)


def test_no_queries_cost_nothing() -> None:
    """A plan of zero tokens carries them."""
    plan = forecast([], costs={}, refill_per_hour=0)

    assert (plan.tokens_per_hour, plan.carried) == (0, True)
