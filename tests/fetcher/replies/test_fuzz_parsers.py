"""Replies and query files mutated at random: the parsers neither crash nor lie.

FUZZ_EXAMPLES sets how many are tried of each kind (default 100); the long run is
``FUZZ_EXAMPLES=100000 pytest tests/fetcher/replies/test_fuzz_parsers.py``.
"""

import json
import math
import os
from copy import deepcopy
from typing import Any, Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fetcher.queries.enrichment import Enrichment
from fetcher.queries.query import DealQuery, QueryError, parse_query
from fetcher.queries.rules import evaluate, read_rules
from fetcher.replies.deals import ASIN, Deal, DealPage, parse_deal, parse_deal_page
from fetcher.replies.products import Product, ProductPage, parse_product, parse_products
from fetcher.replies.record import DEPTH_MAX, INT32_MAX, MalformedReplyError, storable
from fetcher.replies.units import LATEST_KEEPA_MINUTES, minutes_to_ms
from fetcher.scans.page_facts import page_facts
from fetcher.scans.plan import Progress, ScanPlan, decide_after_page, finish_scan
from tests.fetcher.builders import NOW_MS, deal_body, deal_row, product_row

fuzz = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

# Every kind of JSON value, the most harmful ones often.
SCALARS: Final = (
    st.none()
    | st.booleans()
    | st.integers(-3, 60)
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        (
            2**31,
            2**63,
            -(2**63),
            10**40,
            "12",
            "-1",
            "\x00",
            "\ud800",
            "<b>",
            "&#0;",
            "&#xD800;",
            "٣",
            "B000000001",
            math.inf,
            math.nan,
            1e308,
            -0.0,
        )
    )
)
VALUES: Final = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn, original: Any) -> Any:
    """*original* with a few values replaced, removed, cut short or repeated."""
    changed = deepcopy(original)
    for _ in range(draw(st.integers(0, 6))):
        holder = changed
        for _ in range(draw(st.integers(0, 6))):
            inside = [item for item in _items(holder) if isinstance(item, dict | list) and item]
            if not inside:
                break
            holder = draw(st.sampled_from(inside))
        _hurt(draw, holder)
    return changed


def _items(holder: Any) -> list[Any]:
    return list(holder.values()) if isinstance(holder, dict) else list(holder)


def _hurt(draw: st.DrawFn, holder: Any) -> None:
    if not holder:
        return
    places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    place = draw(st.sampled_from(places))
    match draw(st.sampled_from(("replace", "replace", "remove", "cut", "repeat"))):
        case "replace":
            holder[place] = draw(VALUES)
        case "remove":
            del holder[place]
        case "cut" if isinstance(holder, list):
            del holder[place:]
        case "repeat" if isinstance(holder, list):
            holder.append(holder[place])


DEAL_BODY: Final = deal_body(
    [deal_row(), deal_row("B000000002"), deal_row("B000000003", warehouseCondition=3)]
)
DEAL_BODY["deals"] |= {"categoryIds": [283155], "categoryCount": [3], "categoryNames": ["Books"]}
PRODUCT_BODY: Final = {"products": [product_row(), product_row("B000000002", productType=3)]}
QUERY: Final = {
    "name": "some",
    "sort": 1,
    "interval": "5m",
    "priority": "high",
    "max_pages": 3,
    "rules": {
        "price": {"max": 500, "unknown": "pass"},
        "title": {"exclude": ["x"]},
        "category": {"include": [283155]},
        "amazon": {"is": False},
        "deal_age": {"max": "1h"},
        "profit": {"min": 1},
    },
    "enrichment": {"stats_days": 90, "offers": 20},
    "costs": {"other": 50},
    "selection": {
        "domainId": "1",
        "priceTypes": [2],
        "dateRange": "3",
        "isRangeEnabled": True,
        "currentRange": [1, 5],
        "deltaPercentRange": [50, 2147483647],
        "includeCategories": [283155],
        "sortType": 1,
    },
}
RULES: Final = read_rules(QUERY["rules"], enrichment=Enrichment())
SELECTION: Final = {"includeCategories": [283155]}
DROPPED: Final = ("row: not an object", "row: no asin", "row: asin is not an ASIN")


def assert_storable(value: object, depth: int = 0) -> None:
    """What goes into jsonb holds no NUL, surrogate or NaN, and is not too deep."""
    assert depth <= DEPTH_MAX + 1
    if isinstance(value, str):
        assert "\x00" not in value
        value.encode()
    elif isinstance(value, float):
        assert math.isfinite(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            assert_storable(key)
            assert_storable(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            assert_storable(inner, depth + 1)


def assert_sane(found: Deal | Product) -> None:
    """Every value is in its unit's range, and no text is unstorable."""
    assert ASIN.match(found.asin)
    latest_ms = minutes_to_ms(LATEST_KEEPA_MINUTES)
    for name in found.__slots__:
        value = getattr(found, name)
        if isinstance(value, str):
            assert_storable(value)
        elif name.endswith("_ms") and value is not None:
            assert 0 < value <= latest_ms
        elif isinstance(value, int) and name != "root_category":
            assert abs(value) <= INT32_MAX
    assert found.rating is None or 0 <= found.rating <= 50
    assert found.rank is None or found.rank > 0


def read_deal_page(body: Any) -> DealPage | None:
    """The page, or None if the body was refused as a whole."""
    try:
        return parse_deal_page(body, domain_id=1, price_type=2, date_range=3)
    except MalformedReplyError:
        return None


@given(mutated(DEAL_BODY))
@fuzz
def test_deal_pages_survive_anything(body: Any) -> None:
    """Each row is a sane deal, or counted as malformed, or a repetition; none is lost."""
    page = read_deal_page(body) if isinstance(body, dict) else None
    if page is None:
        return

    twice = page.oddities.get("row: same asin twice", 0)
    dropped = sum(count for name, count in page.oddities.items() if name in DROPPED)
    assert len(page.deals) + dropped + twice == page.row_count
    assert len(body["deals"]["dr"]) == page.row_count
    assert all(count > 0 for count in page.oddities.values())
    for found in page.deals:
        assert_sane(found)
        kept = storable(found.raw)
        assert_storable(kept)
        stored = json.loads(json.dumps(kept, allow_nan=False))
        again = parse_deal(stored, domain_id=1, price_type=2, date_range=3)
        assert (again.asin, again.price_minor) == (found.asin, found.price_minor)


@given(mutated(DEAL_BODY), mutated(PRODUCT_BODY))
@fuzz
def test_whatever_was_parsed_can_be_judged_and_scanned(deals: Any, products: Any) -> None:
    """Rules, order and scan decisions take whatever the parsers let through."""
    page = read_deal_page(deals) if isinstance(deals, dict) else None
    details = read_product_page(products)
    if page is None:
        return

    facts = page_facts(0, page, SELECTION, server_ms=NOW_MS, before=None)
    after = page_facts(1, page, SELECTION, server_ms=NOW_MS, before=facts)
    plan = ScanPlan("incremental", 0, 2, NOW_MS, in_background=False)
    result = finish_scan(plan, [facts, after], "page cap", progress=Progress())
    assert decide_after_page(plan, facts).end == "short page"
    assert (result.progress.watermark_ms or 0) <= NOW_MS
    for found in page.deals:
        for product in (None, *(details.products if details else ())):
            verdict = evaluate(RULES, found, product, now_ms=NOW_MS)
            assert (verdict.state == "accepted") is (not verdict.failures)


def read_product_page(body: Any) -> ProductPage | None:
    """The products, or None if the body was refused as a whole."""
    if not isinstance(body, dict):
        return None
    try:
        return parse_products(body, domain_id=1, asins=("B000000001",))
    except MalformedReplyError:
        return None


@given(mutated(PRODUCT_BODY))
@fuzz
def test_product_pages_survive_anything(body: Any) -> None:
    """Each product is sane or counted."""
    page = read_product_page(body)
    if page is None:
        return

    dropped = sum(count for name, count in page.oddities.items() if name.startswith("product: "))
    assert len(page.products) + dropped == len(body["products"])
    for found in page.products:
        assert_sane(found)
        kept = storable(page.raws[found.asin])
        assert_storable(kept)
        stored = json.loads(json.dumps(kept, allow_nan=False))
        assert parse_product(stored, domain_id=1).rank == found.rank


def read_query(text: str) -> DealQuery | QueryError:
    """The query, or why it was refused."""
    try:
        return parse_query("fuzzed", text)
    except QueryError as error:
        return error


@given(mutated(QUERY))
@fuzz
def test_query_files_are_read_or_refused_with_a_reason(written: Any) -> None:
    """Nothing but a QueryError comes out, and what is accepted can be explained and sent."""
    query = read_query(json.dumps(written))
    if isinstance(query, QueryError):
        assert query.key
        assert query.reason
        return

    assert query.explain()
    assert query.page_selection(2)["page"] == 2
    assert query.selection_hash == parse_query("fuzzed", json.dumps(written)).selection_hash


@given(st.text(max_size=40) | st.sampled_from(("{", "[", "]" * 9_999, "[" * 9_999, "1e999999")))
@fuzz
def test_any_text_is_a_query_or_refused(text: str) -> None:
    """A file need not even be JSON."""
    found = read_query(text)

    assert isinstance(found, QueryError)
    assert found.reason
