"""Small builders of Keepa's rows and of what the fetcher makes of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from fetcher.replies.deals import Deal, DealPage, parse_deal
from fetcher.replies.products import Product, parse_product
from fetcher.replies.units import ms_to_minutes

PRICE_TYPES = 34
DATE_RANGES = 4
NOW_MS = 1_757_873_520_000
MINUTE_MS = 60_000

RECORDINGS = Path(__file__).parents[3] / "shared" / "keepa-recordings"


def recording(name: str) -> dict[str, Any]:
    """A recorded reply; the test is skipped where the recordings are not at hand."""
    path = RECORDINGS / name
    if not path.exists():
        pytest.skip(f"no recording {name}")
    return cast("dict[str, Any]", json.loads(path.read_text()))


def deal_row(asin: str = "B000000001", **fields: object) -> dict[str, Any]:
    """A row as Keepa serves it: a used copy for 2000 that cost 5000 on average."""
    current = [-1] * PRICE_TYPES
    current[2], current[3], current[16], current[17] = 2_000, 50_000, 45, 68
    averages = [[-1] * PRICE_TYPES for _ in range(DATE_RANGES)]
    drops = [[0] * PRICE_TYPES for _ in range(DATE_RANGES)]
    percents = [[0] * PRICE_TYPES for _ in range(DATE_RANGES)]
    averages[3][2], drops[3][2], percents[3][2] = 5_000, 3_000, 60
    row: dict[str, Any] = {
        "asin": asin,
        "title": "A title",
        "rootCat": 283155,
        "categories": [4367],
        "image": [65, 46, 106, 112, 103],
        "current": current,
        "currentSince": [ms_to_minutes(NOW_MS)] * PRICE_TYPES,
        "avg": averages,
        "delta": drops,
        "deltaPercent": percents,
        "deltaLast": [0] * PRICE_TYPES,
        "lastUpdate": ms_to_minutes(NOW_MS),
        "creationDate": ms_to_minutes(NOW_MS) - 60,
        "lightningStart": 0,
        "lightningEnd": 0,
        "warehouseCondition": 0,
    }
    return row | fields


def deal(asin: str = "B000000001", **fields: object) -> Deal:
    """A deal parsed from deal_row()."""
    return parse_deal(deal_row(asin, **fields), domain_id=1, price_type=2, date_range=3)


def deal_body(rows: Sequence[object], **fields: object) -> dict[str, Any]:
    """A /deal body with *rows*."""
    deals = {"dr": list(rows), "categoryIds": [], "categoryNames": [], "categoryCount": []}
    return {"deals": deals, "dealsCached": False} | fields


def deal_page(
    deals: Sequence[Deal],
    *,
    counts: Mapping[int, int] | None = None,
    cached: bool = False,
    row_count: int | None = None,
) -> DealPage:
    """A page of *deals* as the parser makes it."""
    return DealPage(
        deals=tuple(deals),
        row_count=len(deals) if row_count is None else row_count,
        oddities={},
        category_counts=counts or {},
        cached=cached,
    )


def product_row(asin: str = "B000000001", **fields: object) -> dict[str, Any]:
    """A product as Keepa serves it: sold at 4000, with fees."""
    current, average = [-1] * 36, [-1] * 36
    current[1], current[3], current[18] = 4_200, 20_000, 4_000
    average[1], average[3], average[18] = 4_400, 25_000, 4_500
    row: dict[str, Any] = {
        "asin": asin,
        "productType": 0,
        "title": "A title",
        "brand": "Acme",
        "rootCategory": 283155,
        "monthlySold": 50,
        "referralFeePercentage": 15.01,
        "fbaFees": {"pickAndPackFee": 400},
        "packageWeight": 500,
        "availabilityAmazon": -1,
        "lastUpdate": ms_to_minutes(NOW_MS),
        "stats": {"current": current, "avg90": average, "totalOfferCount": 7},
    }
    return row | fields


def product(asin: str = "B000000001", **fields: object) -> Product:
    """A product parsed from product_row()."""
    return parse_product(product_row(asin, **fields), domain_id=1)
