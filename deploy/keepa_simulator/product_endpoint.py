"""GET or POST /product: up to 100 products per call, for one token each or more."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from deploy.keepa_simulator import price_types as pt
from deploy.keepa_simulator.catalogue import Catalogue
from deploy.keepa_simulator.exchange import Answer, Query, RequestError
from deploy.keepa_simulator.keepa_time import DAY_MINUTES, even_keepa_minutes
from deploy.keepa_simulator.listing import Listing
from deploy.keepa_simulator.offers import add_offers, offer_pages
from deploy.keepa_simulator.product_row import (
    Details,
    ean_of,
    invalid_product,
    product_fields,
)
from deploy.keepa_simulator.product_stats import StatsWanted
from deploy.keepa_simulator.selection import DOMAINS

_PRODUCTS_MAX: Final = 100
_BASE_COST: Final = 1
# Offers replace the base cost: this much per page of ten offers found, at least 5.
_OFFER_PAGE_COST: Final = 6
_OFFER_COST_MIN: Final = 5
_OFFERS_ALLOWED: Final = range(20, 101)
_BUY_BOX_COST: Final = 2
_STOCK_COST: Final = 2
# Fresh ratings and a forced update cost "up to" this at Keepa; here they cost all of it.
_RATING_COST: Final = 1
_UPDATE_COST: Final = 1
_EAN_LENGTH: Final = 13


def _is_on(query: Query, name: str) -> bool:
    return query.parameters.get(name, "0").lower() in ("1", "true")


def _stats(query: Query, now: int) -> StatsWanted | None:
    """``stats`` is a number of days, or two dates with a comma between them."""
    text = query.parameters.get("stats")
    if not text:
        return None
    if "," not in text:
        return StatsWanted(now - query.integer("stats") * DAY_MINUTES, now)
    try:
        start, end = (datetime.fromisoformat(part).replace(tzinfo=UTC) for part in text.split(","))
    except ValueError:
        raise RequestError(400, "stats must be days or two dates") from None
    return StatsWanted(
        even_keepa_minutes(start.timestamp() * 1000), even_keepa_minutes(end.timestamp() * 1000)
    )


def _details(query: Query) -> Details:
    domain = query.integer("domain")
    if domain not in DOMAINS:
        raise RequestError(405, "domain is out of range")
    offers = query.integer("offers", 0)
    if offers and offers not in _OFFERS_ALLOWED:
        raise RequestError(405, "offers must be between 20 and 100")
    stock = _is_on(query, "stock")
    if stock and not offers:
        raise RequestError(400, "stock needs offers")
    now = even_keepa_minutes(query.now_ms)
    return Details(
        domain=domain,
        now=now,
        history=query.parameters.get("history", "1").lower() not in ("0", "false"),
        days=query.integer("days", 0) or None,
        stats=_stats(query, now),
        offers=offers,
        buybox=_is_on(query, "buybox"),
        rating=_is_on(query, "rating"),
        stock=stock,
    )


def product_cost(listing: Listing | None, wanted: Details, *, update: bool) -> int:
    """Tokens for one product of a call; an unknown ASIN costs the base.

    Args:
        listing: The product, None if there is none.
        wanted: The options of the call.
        update: Whether the call updated the product.
    """
    if listing is None:
        return _BASE_COST
    cost = _BASE_COST
    if wanted.offers:
        cost = max(_OFFER_COST_MIN, _OFFER_PAGE_COST * offer_pages(listing, wanted.offers))
    if wanted.rating and listing.current(pt.RATING) >= 0:
        cost += _RATING_COST
    return (
        cost + _BUY_BOX_COST * wanted.buybox + _STOCK_COST * wanted.stock + _UPDATE_COST * update
    )


class ProductEndpoint:
    """Answers /product.

    Args:
        catalogue: Returns the catalogue of a domain.
    """

    def __init__(self, catalogue: Callable[[int], Catalogue]) -> None:
        self._catalogue = catalogue

    def answer(self, query: Query) -> Answer:
        """The products that ``asin`` or ``code`` names.

        Raises:
            RequestError: A parameter is missing or malformed.
        """
        wanted = _details(query)
        catalogue = self._catalogue(wanted.domain)
        catalogue.advance(query.now_ms)
        products, cost = [], 0
        for asin, listing in self._asked_for(query, catalogue):
            update = listing is not None and self._update(query, catalogue, listing)
            cost += product_cost(listing, wanted, update=update)
            products.append(self._product(asin, listing, wanted))
        asins = [product["asin"] for product in products]
        return Answer({"products": products}, cost, asins=asins)

    def _asked_for(self, query: Query, catalogue: Catalogue) -> list[tuple[str, Listing | None]]:
        if "code" in query.parameters:
            codes = query.items("code", most=_PRODUCTS_MAX)
            found = [self._by_code(catalogue, code) for code in codes]
            return [(listing.facts.asin, listing) for listing in found if listing]
        asins = query.items("asin", most=_PRODUCTS_MAX)
        return [(asin, catalogue.find(asin)) for asin in asins]

    def _by_code(self, catalogue: Catalogue, code: str) -> Listing | None:
        if len(code) != _EAN_LENGTH or not code.isdigit():
            return None
        number = int(code[1:12])
        if number >= catalogue.products or ean_of(number) != code:
            return None
        return catalogue.listing(number)

    def _update(self, query: Query, catalogue: Catalogue, listing: Listing) -> bool:
        """Updates a product if its last update is older than ``update`` hours."""
        hours = query.integer("update", -1)
        age = even_keepa_minutes(query.now_ms) - listing.last_update
        if hours < 0 or age <= hours * 60:
            return False
        catalogue.refresh(listing, query.now_ms)
        return True

    def _product(self, asin: str, listing: Listing | None, wanted: Details) -> dict[str, Any]:
        if listing is None:
            return invalid_product(asin, wanted)
        product = product_fields(listing, wanted)
        if wanted.offers:
            add_offers(product, listing, wanted)
        return product
