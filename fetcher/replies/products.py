"""Reading products from a /product reply.

Rule 1: a bad product never costs its batch another one.
Rule 2: "Keepa has no data" is an answer, not a failed call.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fetcher.queries.enrichment import Enrichment
from fetcher.replies.deals import ASIN, RATING_MAX
from fetcher.replies.record import MalformedReplyError, Record
from fetcher.replies.units import (
    AMAZON,
    BUY_BOX,
    COUNT_NEW,
    COUNT_REVIEWS,
    COUNT_USED,
    NEW,
    RATING,
    SALES_RANK,
)

# Product types for which Keepa has no offers: inaccessible, invalid, variation parent.
TYPES_WITHOUT_DATA: Final = {3: "inaccessible", 4: "invalid", 5: "variation parent"}
BASIS_POINTS_PER_PERCENT: Final = 100
REFERRAL_PERCENT_MAX: Final = 100
AVAILABLE_NOT: Final = -1

# To be raised when a field of Product is added or read differently: stored details are
# then read again from the row as served.
FACTS_REVISION: Final = 1

Number = int | float


@dataclass(frozen=True, slots=True)
class Product:
    """Details of one product; None is "unknown".

    Prices in minor units, weight in grams, rating 0 to 50, the referral fee in basis
    points (hundredths of a percent), times in Unix milliseconds. ``no_data`` is the reason
    if Keepa has no data on it.
    """

    domain_id: int
    asin: str
    no_data: str | None
    title: str | None
    brand: str | None
    root_category: int | None
    monthly_sold: int | None
    referral_bp: int | None
    fba_fee_minor: int | None
    weight_g: int | None
    amazon_minor: int | None
    amazon_offers: bool | None
    new_minor: int | None
    new_average_90_minor: int | None
    buy_box_minor: int | None
    buy_box_average_90_minor: int | None
    buy_box_is_amazon: bool | None
    rank: int | None
    rank_average_90: int | None
    rank_drops_90: int | None
    rating: int | None
    reviews: int | None
    new_offers: int | None
    used_offers: int | None
    total_offers: int | None
    fba_offers: int | None
    fbm_offers: int | None
    sellers: int | None
    last_update_ms: int | None


@dataclass(frozen=True, slots=True)
class ProductPage:
    """The products of one call, and the counts of their oddities by name.

    ``raws`` are their rows as served, by ASIN and without any guarantee; ``missing`` are
    the ASINs that the reply left out.
    """

    products: tuple[Product, ...]
    raws: Mapping[str, Mapping[str, object]]
    missing: tuple[str, ...]
    oddities: Mapping[str, int]


def product_parameters(enrichment: Enrichment) -> Mapping[str, int]:
    """Returns the parameters of a product call besides the domain and the ASINs."""
    asked = {"stats": enrichment.stats_days, "history": 0}
    if enrichment.history_days:
        asked |= {"history": 1, "days": enrichment.history_days}
    if enrichment.offers:
        asked["offers"] = enrichment.offers
    elif enrichment.buy_box:
        asked["buybox"] = 1
    if enrichment.rating:
        asked["rating"] = 1
    return asked


def product_operation(enrichment: Enrichment) -> str:
    """Returns the name under which the broker learns the cost of such a call."""
    free = ("stats", "history", "days")
    asked = product_parameters(enrichment).items()
    extras = "&".join(f"{name}={value}" for name, value in asked if name not in free)
    return f"product?{extras}" if extras else "product"


def parse_products(
    body: Mapping[str, object], *, domain_id: int, asins: tuple[str, ...] = ()
) -> ProductPage:
    """Reads the body of a /product reply to a call for *asins*.

    Raises:
        MalformedReplyError: it has no list of products.
    """
    rows = body.get("products")
    if not isinstance(rows, list):
        raise MalformedReplyError("the reply has no 'products' list")
    oddities: Counter[str] = Counter()
    found: dict[str, Product] = {}
    raws: dict[str, Mapping[str, object]] = {}
    for row in rows:
        if not isinstance(row, Mapping) or not _asin(row):
            oddities["product: names no asin"] += 1
            continue
        product = _read_product(row, domain_id, oddities)
        if product.asin in found:
            oddities["product: same asin twice"] += 1
        found[product.asin] = product
        raws[product.asin] = row
    missing = tuple(asin for asin in asins if asin not in found)
    return ProductPage(tuple(found.values()), raws, missing, dict(oddities))


def parse_product(row: Mapping[str, object], *, domain_id: int) -> Product:
    """Reads one product, for instance a stored raw one that is judged again.

    Raises:
        MalformedReplyError: it names no ASIN.
    """
    if not _asin(row):
        raise MalformedReplyError("the product names no asin")
    return _read_product(row, domain_id, Counter())


def _asin(row: Mapping[str, object]) -> bool:
    asin = row.get("asin")
    return isinstance(asin, str) and ASIN.match(asin) is not None


def _read_product(row: Mapping[str, object], domain_id: int, oddities: Counter[str]) -> Product:
    record = Record(row, oddities)
    # Here -1 is a real "no".
    availability = record.signed("availabilityAmazon")
    rating = record.count("stats", "current", RATING)
    # The price with shipping is in either of two fields.
    buy_box_minor = record.count("stats", "current", BUY_BOX)
    buy_box_price = record.count("stats", "buyBoxPrice")
    if buy_box_minor is None and buy_box_price is not None:
        buy_box_minor = buy_box_price + (record.count("stats", "buyBoxShipping") or 0)
    return Product(
        domain_id=domain_id,
        asin=str(row["asin"]),
        no_data=TYPES_WITHOUT_DATA.get(record.count("productType") or 0),
        title=record.text("title"),
        brand=record.text("brand"),
        root_category=record.positive("rootCategory", limit=2**63 - 2),
        monthly_sold=record.count("monthlySold"),
        referral_bp=_referral_bp(record),
        fba_fee_minor=record.count("fbaFees", "pickAndPackFee"),
        weight_g=record.positive("packageWeight") or record.positive("itemWeight"),
        amazon_minor=record.count("stats", "current", AMAZON),
        amazon_offers=None if availability is None else availability != AVAILABLE_NOT,
        new_minor=record.count("stats", "current", NEW),
        new_average_90_minor=record.count("stats", "avg90", NEW),
        buy_box_minor=buy_box_minor,
        buy_box_average_90_minor=record.count("stats", "avg90", BUY_BOX),
        buy_box_is_amazon=record.flag("stats", "buyBoxIsAmazon"),
        rank=record.positive("stats", "current", SALES_RANK),
        rank_average_90=record.positive("stats", "avg90", SALES_RANK),
        rank_drops_90=record.count("stats", "salesRankDrops90"),
        rating=rating if rating is None or rating <= RATING_MAX else None,
        reviews=record.count("stats", "current", COUNT_REVIEWS),
        new_offers=record.count("stats", "current", COUNT_NEW),
        used_offers=record.count("stats", "current", COUNT_USED),
        total_offers=record.count("stats", "totalOfferCount"),
        fba_offers=record.count("stats", "offerCountFBA"),
        fbm_offers=record.count("stats", "offerCountFBM"),
        sellers=_sellers(record),
        last_update_ms=record.time_ms("lastUpdate"),
    )


def _referral_bp(record: Record) -> int | None:
    """Returns the referral fee, from Keepa's exact field or its rounded predecessor."""
    for name in ("referralFeePercentage", "referralFeePercent"):
        percent = record.value(name)
        if percent is None or isinstance(percent, bool):
            continue
        if isinstance(percent, Number) and 0 <= percent <= REFERRAL_PERCENT_MAX:
            return round(percent * BASIS_POINTS_PER_PERCENT)
        if not isinstance(percent, Number) or percent not in (-1, -2):
            record.note(name, "absurd number")
    return None


def _sellers(record: Record) -> int | None:
    """Counts the sellers that may win the buy box, over all conditions."""
    counts = record.value("buyBoxEligibleOfferCounts")
    if not isinstance(counts, list) or not counts:
        return None
    known = [record.count("buyBoxEligibleOfferCounts", index) for index in range(len(counts))]
    return (
        sum(count for count in known if count is not None)
        if any(count is not None for count in known)
        else None
    )
