"""GET /category and /search: the category tree, and products by the words of their title."""

from collections.abc import Callable
from itertools import islice
from typing import Any, Final

from deploy.keepa_simulator.catalogue import Catalogue
from deploy.keepa_simulator.exchange import Answer, Query, RequestError
from deploy.keepa_simulator.keepa_time import even_keepa_minutes
from deploy.keepa_simulator.product_row import Details, product_fields
from deploy.keepa_simulator.selection import DOMAINS
from deploy.keepa_simulator.taxonomy import (
    CATEGORIES,
    CUMULATIVE_SHARES,
    ROOT_IDS,
    Category,
    path_to_root,
    share_of,
)

_CATEGORY_COST: Final = 1
_SEARCH_COST: Final = 10
_CATEGORIES_MAX: Final = 10
# Asking for this category gives all roots.
_ALL_ROOTS: Final = 0
_RESULTS_PER_PAGE: Final = 10
_PAGES_MAX: Final = 10
_TERM_MIN: Final = 3


def _domain(query: Query) -> int:
    domain = query.integer("domain")
    if domain not in DOMAINS:
        raise RequestError(405, "domain is out of range")
    return domain


def _category_fields(node: Category, domain: int, products: int) -> dict[str, Any]:
    """A node as Keepa writes it; the number of products is an estimate."""
    count = int(products * share_of(node) / CUMULATIVE_SHARES[-1])
    return {
        "domainId": domain,
        "catId": node.id,
        "name": node.name,
        "contextFreeName": node.name,
        "children": list(node.children) or None,
        "parent": node.parent,
        "highestRank": 2_000_000,
        "lowestRank": 1,
        "productCount": count,
        "isBrowseNode": True,
        "matched": False,
    }


class Categories:
    """Answers /category and /search.

    Args:
        catalogue: Returns the catalogue of a domain.
    """

    def __init__(self, catalogue: Callable[[int], Catalogue]) -> None:
        self._catalogue = catalogue

    def lookup(self, query: Query) -> Answer:
        """The categories with the ids in ``category``; unknown ones are left out.

        Raises:
            RequestError: A parameter is missing or malformed.
        """
        domain = _domain(query)
        try:
            ids = [int(part) for part in query.items("category", most=_CATEGORIES_MAX)]
        except ValueError:
            raise RequestError(400, "category must be a number") from None
        if ids == [_ALL_ROOTS]:
            ids = [root for root in ROOT_IDS if root in CATEGORIES]
        nodes = [CATEGORIES[number] for number in ids if number in CATEGORIES]
        parents = None
        if query.integer("parents", 0):
            parents = self._map(domain, [it for node in nodes for it in path_to_root(node.id)])
        fields = {"categories": self._map(domain, nodes), "categoryParents": parents}
        return Answer(fields, _CATEGORY_COST)

    def search(self, query: Query) -> Answer:
        """Categories (``type=category``) or products with all words of ``term`` in their name.

        Raises:
            RequestError: A parameter is missing, malformed or out of range.
        """
        domain = _domain(query)
        words = query.parameters.get("term", "").lower().split()
        if len("".join(words)) < _TERM_MIN:
            raise RequestError(400, f"term needs {_TERM_MIN} characters")
        if query.parameters.get("type") == "category":
            nodes = [
                node
                for node in CATEGORIES.values()
                if all(word in node.name.lower() for word in words)
            ]
            found = self._map(domain, nodes)
            return Answer(
                {"categories": {name: it | {"matched": True} for name, it in found.items()}},
                _SEARCH_COST,
            )
        return self._products(query, domain, words)

    def _products(self, query: Query, domain: int, words: list[str]) -> Answer:
        page = query.integer("page", 0)
        if not 0 <= page < _PAGES_MAX:
            raise RequestError(405, "page is out of range")
        matches = (
            listing
            for listing in self._catalogue(domain).everything()
            if all(word in listing.facts.title.lower() for word in words)
        )
        first = page * _RESULTS_PER_PAGE
        found = list(islice(matches, first, first + _RESULTS_PER_PAGE))
        asins = [listing.facts.asin for listing in found]
        if query.integer("asins-only", 0):
            return Answer({"asinList": asins}, _SEARCH_COST, asins=asins)
        wanted = Details(domain=domain, now=even_keepa_minutes(query.now_ms))
        products = [product_fields(listing, wanted) for listing in found]
        return Answer({"products": products}, _SEARCH_COST, asins=asins)

    def _map(self, domain: int, nodes: list[Category]) -> dict[str, dict[str, Any]]:
        products = self._catalogue(domain).products
        return {str(node.id): _category_fields(node, domain, products) for node in nodes}
