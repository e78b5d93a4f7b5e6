"""The marketplace offers of a product, for calls with ``offers=``."""

from typing import Any, Final

from deploy.keepa_simulator import price_types as pt
from deploy.keepa_simulator.listing import Listing
from deploy.keepa_simulator.product_row import Details
from deploy.keepa_simulator.product_stats import seller_id

_PER_PAGE: Final = 10
# Most products have few offers; one in this many has dozens, as measured costs show.
_CROWDED_EVERY: Final = 9
_CROWD: Final = 28
_NEW: Final = 1
_USED_GOOD: Final = 4
_AMAZON_SELLER: Final = "ATVPDKIKX0DER"


def offer_count(listing: Listing) -> int:
    """Number of current offers, new and used."""
    own = max(0, listing.current(pt.COUNT_NEW)) + max(0, listing.current(pt.COUNT_USED))
    crowd = _CROWD if listing.facts.words[6] % _CROWDED_EVERY == 0 else 0
    return min(own, _PER_PAGE) + crowd


def offer_pages(listing: Listing, offers: int) -> int:
    """Number of pages of ten for a call with ``offers=`` *offers*."""
    return -(-min(offer_count(listing), offers) // _PER_PAGE)


def _offer(listing: Listing, place: int, wanted: Details) -> dict[str, Any]:
    facts = listing.facts
    used = place % 3 == 2 and facts.has_offers(pt.USED)  # noqa: PLR2004 - every third offer
    lowest = listing.current(pt.USED if used else pt.NEW)
    price = max(lowest, 1) + place * 37
    amazon = place == 0 and listing.current(pt.AMAZON) > 0
    fba = amazon or (facts.words[3] + place) % 2 == 0
    offer: dict[str, Any] = {
        "offerId": place + 1,
        "lastSeen": listing.last_update,
        "sellerId": _AMAZON_SELLER if amazon else seller_id(facts.words[3] + place),
        "offerCSV": [listing.last_update, price, 0 if fba else 399],
        "condition": _USED_GOOD if used else _NEW,
        "conditionComment": "Light signs of use" if used else "",
        "isPrime": fba,
        "isMAP": False,
        "isShippable": True,
        "isAddonItem": False,
        "isPreorder": False,
        "isWarehouseDeal": False,
        "isScam": False,
        "shipsFromChina": False,
        "isAmazon": amazon,
        "isFBA": fba,
        "isPrimeExcl": False,
        "minOrderQty": 1,
        "coupon": None,
        "couponHistory": None,
        "stockCSV": None,
    }
    if wanted.stock:
        offer["stockCSV"] = [listing.last_update, 1 + (facts.words[2] + place) % 30]
    return offer


def add_offers(product: dict[str, Any], listing: Listing, wanted: Details) -> None:
    """Adds the requested number of offers, and their totals, to *product*."""
    count = min(offer_count(listing), wanted.offers)
    offers = [_offer(listing, place, wanted) for place in range(count)]
    product["offers"] = offers
    product["offersSuccessful"] = True
    product["liveOffersOrder"] = list(range(count))
    product["buyBoxSellerIdHistory"] = _buy_box_history(listing)
    if (stats := product.get("stats")) is not None:
        stats["retrievedOfferCount"] = count
        stats["offerCountFBA"] = sum(offer["isFBA"] for offer in offers)
        stats["offerCountFBM"] = count - stats["offerCountFBA"]


def _buy_box_history(listing: Listing) -> list[str]:
    """Sellers in the buy box with their start times; "-1" is an empty buy box."""
    history: list[str] = []
    for minute, price in listing.history(pt.BUY_BOX_SHIPPING):
        owner = seller_id(listing.facts.words[6]) if price >= 0 else "-1"
        history += [str(minute), owner]
    return history
