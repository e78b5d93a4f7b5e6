"""GET /seller, /topseller and /lightningdeal: merchants, and deals that end within hours.

Fields are those that the official Java client reads; the merchants have no offers here.
"""

from collections.abc import Callable
from itertools import islice
from random import Random
from typing import Any, Final

from deploy.keepa_simulator.catalogue import Catalogue
from deploy.keepa_simulator.exchange import Answer, Query, RequestError
from deploy.keepa_simulator.keepa_time import even_keepa_minutes
from deploy.keepa_simulator.listing import Listing
from deploy.keepa_simulator.selection import DOMAINS

_SELLERS_MAX: Final = 100
_SELLER_COST: Final = 1
_STOREFRONT_COST: Final = 9
_TOP_COST: Final = 50
_TOP_SELLERS: Final = 1_000
_LIGHTNING_COST: Final = 1
_LIGHTNING_LIST_COST: Final = 500
_STOREFRONT_ASINS: Final = 50
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def _domain(query: Query) -> int:
    domain = query.integer("domain")
    if domain not in DOMAINS:
        raise RequestError(405, "domain is out of range")
    return domain


class Sellers:
    """Answers the three endpoints.

    Args:
        catalogue: Returns the catalogue of a domain.
    """

    def __init__(self, catalogue: Callable[[int], Catalogue]) -> None:
        self._catalogue = catalogue

    def lookup(self, query: Query) -> Answer:
        """The merchants with the ids in ``seller``; a storefront costs more.

        Raises:
            RequestError: A parameter is missing or malformed.
        """
        domain = _domain(query)
        ids = query.items("seller", most=_SELLERS_MAX)
        storefront = query.integer("storefront", 0) > 0
        cost = _SELLER_COST + _STOREFRONT_COST * storefront
        sellers = {name: self._seller(name, domain, query, storefront=storefront) for name in ids}
        return Answer({"sellers": sellers}, cost * len(ids))

    def top(self, query: Query) -> Answer:
        """The merchants with the most ratings.

        Raises:
            RequestError: The domain is missing or out of range.
        """
        rng = Random(_domain(query))  # noqa: S311 - nothing secret is drawn
        ids = ["A" + "".join(rng.choices(_LETTERS, k=13)) for _ in range(_TOP_SELLERS)]
        return Answer({"sellerIdList": ids}, _TOP_COST)

    def lightning_deals(self, query: Query) -> Answer:
        """The lightning deal of ``asin``, or without it all of them.

        Raises:
            RequestError: A parameter is missing or malformed.
        """
        domain = _domain(query)
        catalogue = self._catalogue(domain)
        catalogue.advance(query.now_ms)
        asin = query.parameters.get("asin")
        if asin:
            listing = catalogue.find(asin)
            found = [listing] if listing is not None else []
        else:
            found = [it for it in catalogue.everything() if it.lightning[1]]
        deals = [_lightning_deal(listing, domain) for listing in found]
        return Answer({"lightningDeals": deals}, _LIGHTNING_COST if asin else _LIGHTNING_LIST_COST)

    def _seller(self, name: str, domain: int, query: Query, *, storefront: bool) -> dict[str, Any]:
        now = even_keepa_minutes(query.now_ms)
        seller: dict[str, Any] = {
            "domainId": domain,
            "sellerId": name,
            "sellerName": f"Shop {name[:6]}",
            "currentRating": 97,
            "currentRatingCount": 1_234,
            "hasFBA": True,
            "isScammer": False,
            "lastUpdate": now,
            "trackedSince": now - 500_000,
        }
        if storefront:
            everything = islice(self._catalogue(domain).everything(), _STOREFRONT_ASINS)
            asins = [listing.facts.asin for listing in everything]
            seller |= {"asinList": asins, "asinListLastSeen": [now] * len(asins)}
        return seller


def _lightning_deal(listing: Listing, domain: int) -> dict[str, Any]:
    begin, end = listing.lightning
    return {
        "domainId": domain,
        "asin": listing.facts.asin,
        "title": listing.facts.title,
        "startTime": begin,
        "endTime": end,
        "dealState": "AVAILABLE" if end else "EXPIRED",
        "lastUpdate": listing.last_update,
    }
