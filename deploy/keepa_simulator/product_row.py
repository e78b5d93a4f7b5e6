"""A product as Keepa writes it in a /product reply."""

from dataclasses import dataclass
from typing import Any, Final

from deploy.keepa_simulator import price_types as pt
from deploy.keepa_simulator.deal_row import image_name
from deploy.keepa_simulator.history import History
from deploy.keepa_simulator.keepa_time import DAY_MINUTES
from deploy.keepa_simulator.listing import Listing
from deploy.keepa_simulator.product_stats import StatsWanted, product_stats
from deploy.keepa_simulator.taxonomy import CATEGORIES, ROOT_NAMES, UNKNOWN_ROOT, path_to_root

_STANDARD: Final = 0
_INVALID: Final = 4
# The first group needs the offers of a product, the second its buy box.
_NEEDS_OFFERS: Final = frozenset(
    (
        pt.NEW_FBM_SHIPPING,
        pt.NEW_FBA,
        *range(pt.USED_NEW_SHIPPING, pt.REFURBISHED_SHIPPING + 1),
        pt.BUY_BOX_USED_SHIPPING,
    )
)
_NEEDS_BUY_BOX: Final = frozenset((pt.BUY_BOX_SHIPPING, pt.BUY_BOX_USED_SHIPPING))
_FREE_SHIPPING_FROM: Final = 2_500
_SHIPPING: Final = 399


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """The options of a call for each product.

    Args:
        domain: Keepa's number of the Amazon site.
        now: The server's clock in Keepa minutes.
        history: Whether to include the price histories.
        days: Length of the histories in days; None is all.
        stats: The interval of the statistics, or None for no statistics.
        offers: Maximum number of offers to include.
        buybox: Whether to include the seller in the buy box.
        rating: Whether to refresh the ratings.
        stock: Whether to include the stock of offers.
    """

    domain: int
    now: int
    history: bool = True
    days: int | None = None
    stats: StatsWanted | None = None
    offers: int = 0
    buybox: bool = False
    rating: bool = False
    stock: bool = False


def invalid_product(asin: str, wanted: Details) -> dict[str, Any]:
    """Keepa's reply for an unknown ASIN."""
    return {
        "asin": asin,
        "csv": None,
        "domainId": wanted.domain,
        "lastUpdate": 0,
        "productType": _INVALID,
        "title": None,
        "trackingSince": 0,
    }


def _shipping(price: int) -> int:
    if price < 0:
        return -1
    return 0 if price >= _FREE_SHIPPING_FROM else min(_SHIPPING, price - 1)


def _flat(history: History, *, shipping: bool) -> list[int]:
    if not shipping:
        return [item for pair in history for item in pair]
    flat = []
    for minute, total in history:
        postage = _shipping(total)
        flat += [minute, total - max(0, postage), postage]
    return flat


def _recent(history: History, days: int | None, now: int) -> History:
    """The part of *history* in the last *days*, and the value at their start."""
    if days is None:
        return history
    start = now - days * DAY_MINUTES
    older = [pair for pair in history if pair[0] < start]
    return older[-1:] + [pair for pair in history if pair[0] >= start]


def csv_of(listing: Listing, wanted: Details) -> list[list[int] | None] | None:
    """The price histories by price type; a type without data is None."""
    if not wanted.history:
        return None
    hidden = set() if wanted.offers else set(_NEEDS_OFFERS)
    hidden -= _NEEDS_BUY_BOX
    if not (wanted.buybox or wanted.offers):
        hidden |= _NEEDS_BUY_BOX
    lists: list[list[int] | None] = []
    for type_ in range(pt.PRODUCT_TYPES):
        history = [] if type_ in hidden else listing.history(type_)
        kept = _recent(history, wanted.days, wanted.now)
        lists.append(_flat(kept, shipping=type_ in pt.WITH_SHIPPING) or None)
    return lists


def _category_tree(listing: Listing) -> list[dict[str, Any]]:
    root = listing.facts.root
    if root == UNKNOWN_ROOT:
        return [{"catId": root, "name": ROOT_NAMES[root]}]
    leaf = listing.facts.categories[-1]
    nodes = [*reversed(path_to_root(leaf)), CATEGORIES[leaf]]
    return [{"catId": node.id, "name": node.name} for node in nodes]


def ean_of(number: int) -> str:
    """The product's 13-digit code; its last digit is a check digit."""
    digits = f"2{number:011d}"
    total = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(digits))
    return f"{digits}{-total % 10}"


def _dimensions(listing: Listing) -> dict[str, Any]:
    """Weights in grams, lengths in millimetres; a package is a little larger than its item."""
    octets = listing.facts.octets
    item = {"Height": 8 + octets[8], "Length": 60 + octets[9], "Width": 40 + octets[10] // 2}
    weight = 50 + octets[11] * 12
    return {
        **{f"item{name}": length for name, length in item.items()},
        **{f"package{name}": length + 12 for name, length in item.items()},
        "itemWeight": weight,
        "packageWeight": weight + 60,
        "packageQuantity": 1,
        "numberOfItems": 1,
        "numberOfPages": 80 + octets[12] * 3 if listing.facts.is_book else -1,
    }


def _money(listing: Listing) -> dict[str, Any]:
    octets = listing.facts.octets
    return {
        "fbaFees": {"lastUpdate": listing.last_update, "pickAndPackFee": 306 + octets[11] * 3},
        "referralFeePercent": 15,
        "referralFeePercentage": 15.0 if listing.facts.is_book else 15.01,
        "competitivePriceThreshold": round(listing.facts.list_price * 0.9),
        "coupon": None,
        "couponHistory": None,
        "promotions": None,
        "deals": None,
    }


def _ranks(listing: Listing) -> dict[str, Any]:
    root = listing.facts.root
    history = listing.history(pt.SALES)
    return {
        "salesRankReference": root if history else -1,
        "salesRankReferenceHistory": [listing.tracking_since, root],
        "salesRanks": {str(root): _flat(history, shipping=False)} if history else None,
        "salesRankDisplayGroup": f"{ROOT_NAMES[root].split()[0].lower()}_display_on_website",
        "rootCategory": root,
        "categories": list(listing.facts.categories),
        "categoryTree": _category_tree(listing),
        "websiteDisplayGroup": ROOT_NAMES[root].split()[0].lower(),
        "websiteDisplayGroupName": ROOT_NAMES[root],
    }


def _sales(listing: Listing) -> dict[str, Any]:
    """``monthlySold``, for well-selling products only."""
    rank = listing.current(pt.SALES)
    if not 0 < rank < 50_000:  # noqa: PLR2004 - about where Amazon begins to show it
        return {}
    sold = 50 * max(1, 20_000 // rank)
    return {"monthlySold": sold, "monthlySoldHistory": [listing.last_update, sold]}


def _stamps(listing: Listing) -> dict[str, Any]:
    changes = (listing.figures(type_).since for type_ in (pt.AMAZON, pt.NEW, pt.USED))
    return {
        "lastUpdate": listing.last_update,
        "lastPriceChange": max(changes),
        "lastRatingUpdate": listing.last_update,
        "lastSoldUpdate": listing.last_update,
        "lastEbayUpdate": 0,
        "listedSince": listing.tracking_since,
        "trackingSince": listing.tracking_since,
        "publicationDate": 20_150_401 if listing.facts.is_book else 0,
        "releaseDate": 0,
        "primeDealEndTime": 0,
    }


def _reviews(listing: Listing) -> dict[str, Any]:
    counts = _flat(listing.history(pt.COUNT_REVIEWS), shipping=False)
    return {
        "hasReviews": bool(counts),
        "reviews": {
            "lastUpdate": listing.last_update,
            "ratingCount": counts,
            "reviewCount": counts,
        }
        if counts
        else None,
    }


_ABSENT: Final = [
    "activeIngredients",
    "audienceRating",
    "brandStoreUrl",
    "ebayListingIds",
    "frequentlyBoughtTogether",
    "ingredients",
    "itemTypeKeyword",
    "liveOffersOrder",
    "parentAsinHistory",
    "productBenefit",
    "recommendedUsesForProduct",
    "safetyWarning",
    "specialIngredients",
    "targetAudienceKeyword",
    "unitCount",
    "upcList",
    "urlSlug",
]


def product_fields(listing: Listing, wanted: Details) -> dict[str, Any]:
    """The fields of a product without its offers; stamps are Keepa minutes."""
    facts = listing.facts
    fields: dict[str, Any] = {
        **dict.fromkeys(_ABSENT),
        **facts.attributes,
        **_dimensions(listing),
        **_money(listing),
        **_ranks(listing),
        **_sales(listing),
        **_stamps(listing),
        **_reviews(listing),
        "asin": facts.asin,
        "availabilityAmazon": 0 if listing.current(pt.AMAZON) >= 0 else -1,
        "buyBoxEligibleOfferCounts": [max(0, listing.current(pt.COUNT_NEW)), *[0] * 7],
        "buyBoxSellerIdHistory": None,
        "csv": csv_of(listing, wanted),
        "domainId": wanted.domain,
        "eanList": [ean_of(facts.number)],
        "g": facts.number % 10_000,
        "imagesCSV": image_name(facts.number),
        "isAdultProduct": facts.is_adult,
        "isEligibleForSuperSaverShipping": facts.list_price >= _FREE_SHIPPING_FROM,
        "isEligibleForTradeIn": facts.has_offers(pt.TRADE_IN),
        "isHeatSensitive": False,
        "isRedirectASIN": False,
        "isSNS": facts.octets[13] > 200,  # noqa: PLR2004 - one product in five
        # Each language with its kind, unlike what a selection asks for.
        "languages": [["English", "Published"]] if facts.is_book else None,
        "launchpad": False,
        "offersSuccessful": False,
        "parentAsin": facts.parent_asin,
        "productType": _STANDARD,
        "title": facts.title,
    }
    if wanted.stats is not None:
        fields["stats"] = product_stats(
            listing, wanted.stats, wanted.now, buybox=wanted.buybox or wanted.offers > 0
        )
    return fields
