"""Replies of Keepa, made up as needed."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from fetcher.queries.query import DealQuery, parse_query
from fetcher.replies.deals import DealPage, parse_deal_page
from fetcher.replies.units import ms_to_minutes
from fetcher.work.page_commit import PageReply

DOMAIN, PRICE_TYPE, DATE_RANGE = 1, 2, 3
PRICE_TYPES = 34
DATE_RANGES = 4
# Noon of a day in November.
NOON_MS = 1_763_899_200_000
MINUTE_MS = 60_000


def asin(number: int) -> str:
    """A well-formed ASIN."""
    return f"B{number:09d}"


def row(number: int, **changes: Any) -> dict[str, Any]:
    """One row of a /deal reply; *price*, *created_ms* and *updated_ms* may be given."""
    price = changes.pop("price", 1000)
    created_ms = changes.pop("created_ms", NOON_MS - number * MINUTE_MS)
    updated_ms = changes.pop("updated_ms", created_ms)
    current = [-1] * PRICE_TYPES
    current[PRICE_TYPE] = price
    current[3] = 5000 + number
    return {
        "asin": asin(number),
        "title": f"Product {number}",
        "rootCat": 283155,
        "categories": [283155],
        "current": current,
        "currentSince": [ms_to_minutes(created_ms)] * PRICE_TYPES,
        "delta": [[500] * PRICE_TYPES] * DATE_RANGES,
        "deltaPercent": [[40] * PRICE_TYPES] * DATE_RANGES,
        "avg": [[price + 500] * PRICE_TYPES] * DATE_RANGES,
        "deltaLast": [0] * PRICE_TYPES,
        "lastUpdate": ms_to_minutes(updated_ms),
        "creationDate": ms_to_minutes(created_ms),
        **changes,
    }


def body(rows: Iterable[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
    """A /deal reply without its envelope."""
    return {
        "deals": {"dr": list(rows), "categoryIds": [], "categoryNames": [], "categoryCount": []},
        **fields,
    }


def page(rows: Iterable[Mapping[str, Any]], **fields: Any) -> DealPage:
    """A parsed /deal reply."""
    return parse_deal_page(
        body(rows, **fields), domain_id=DOMAIN, price_type=PRICE_TYPE, date_range=DATE_RANGE
    )


def reply(
    rows: Iterable[Mapping[str, Any]],
    server_ms: int = NOON_MS,
    *,
    price_type: int = PRICE_TYPE,
    date_range: int = DATE_RANGE,
) -> PageReply:
    """A parsed and paid reply served at *server_ms*."""
    parsed = parse_deal_page(
        body(rows), domain_id=DOMAIN, price_type=price_type, date_range=date_range
    )
    return PageReply(parsed, server_ms=server_ms, tokens=5)


def query_text(*, price_type: int = PRICE_TYPE, date_range: int = DATE_RANGE, **head: Any) -> str:
    """A query file on some price type and date range."""
    selection = {
        "page": 0,
        "domainId": DOMAIN,
        "priceTypes": [price_type],
        "dateRange": date_range,
        "sortType": 1,
    }
    return json.dumps({"selection": selection, **head})


def query(**head: Any) -> DealQuery:
    """A query named "used"."""
    return parse_query("used", query_text(**head))
