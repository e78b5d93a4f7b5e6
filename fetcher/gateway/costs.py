"""What a call to Keepa is expected to cost until the broker has learned it.

Pure. A price is only the first guess: the broker replaces it by what replies report. The
operations of deals and products are those of the project's own fetchers, so that both learn
from each other.

Sources: keepa-api.md, section 3, and the official documentation for the rest: /lightningdeal
costs 500 for the list and 1 for one ASIN, /topseller 50, /graphimage 1. The cost of
/tracking is a guess.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

DEAL_TOKENS: Final = 5.0
QUERY_TOKENS: Final = 10.0
SEARCH_TOKENS: Final = 10.0
LIST_TOKENS: Final = 50.0
LIGHTNING_LIST_TOKENS: Final = 500.0
STOREFRONT_TOKENS: Final = 9.0
OFFER_PAGE_TOKENS: Final = 6.0
OFFERS_PER_PAGE: Final = 10
BUY_BOX_TOKENS: Final = 2.0
STOCK_TOKENS: Final = 2.0
# Keepa refuses more in one call, and charges nothing for the refusal.
ITEMS_MAX: Final = 100
OFFERS: Final = range(20, 101)
# Finder results per page; costs are learned for each of these sizes.
PAGE_SIZES: Final = (50, 100, 500, 1_000, 5_000, 10_000)
PAGE_SIZE: Final = 50
SELECTION_LENGTH_MAX: Final = 100_000

Parameters = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Price:
    """The key of the learned cost, the size of the call, and the first guess.

    *tokens_per_unit* is in tokens; a unit is a page, an ASIN or a seller.
    """

    operation: str
    units: int
    tokens_per_unit: float

    @property
    def tokens(self) -> int:
        """The expected cost of the whole call."""
        return round(self.units * self.tokens_per_unit)


def price(endpoint: str, parameters: Parameters, body: bytes = b"") -> Price:
    """Returns the price of a call.

    Args:
        endpoint: The path without slashes around it, such as "product".
        parameters: Those of the query string.
        body: The body of a POST, which may hold the selection.
    """
    if endpoint == "query":
        return _query(parameters, body)
    if endpoint in BY_PARAMETERS:
        return BY_PARAMETERS[endpoint](parameters)
    # One token also for endpoints that are new: the first reply corrects it.
    return Price(endpoint, 1, FIXED.get(endpoint, 1.0))


def _product(parameters: Parameters) -> Price:
    # The parts and their order are those of `fetcher.replies.products`.
    offers = _number(parameters, "offers", OFFERS)
    buy_box, rating = _is_on(parameters, "buybox"), _is_on(parameters, "rating")
    stock, update = bool(offers) and _is_on(parameters, "stock"), _updates(parameters)
    tokens = 1.0
    if offers:
        tokens = offers // OFFERS_PER_PAGE * OFFER_PAGE_TOKENS
    elif buy_box:
        tokens += BUY_BOX_TOKENS
    tokens += rating + STOCK_TOKENS * stock + update
    extras = [f"offers={offers}"] if offers else []
    flags = {"buybox": buy_box, "rating": rating, "stock": stock, "update": update}
    extras += [f"{name}=1" for name, wanted in flags.items() if wanted]
    units = min(_items(parameters, "asin") or _items(parameters, "code") or 1, ITEMS_MAX)
    return Price("product?" + "&".join(extras) if extras else "product", units, tokens)


def _query(parameters: Parameters, body: bytes) -> Price:
    text: str | bytes = body or parameters.get("selection", "")
    size: object = None
    if len(text) <= SELECTION_LENGTH_MAX:
        try:
            selection = json.loads(text)
            size = selection.get("perPage") if isinstance(selection, dict) else None
            wanted = PAGE_SIZE if size is None else int(str(size))
        except (ValueError, RecursionError):
            # Keepa refuses it, at no cost.
            wanted = PAGE_SIZE
    else:
        wanted = PAGE_SIZE
    band = next((most for most in PAGE_SIZES if wanted <= most), PAGE_SIZES[-1])
    return Price(f"query?perPage={band}", 1, QUERY_TOKENS + band / 100)


def _lightning_deals(parameters: Parameters) -> Price:
    if parameters.get("asin"):
        return Price("lightningdeal?asin", 1, 1.0)
    return Price("lightningdeal", 1, LIGHTNING_LIST_TOKENS)


def _seller(parameters: Parameters) -> Price:
    units = min(_items(parameters, "seller") or 1, ITEMS_MAX)
    if _is_on(parameters, "storefront"):
        return Price("seller?storefront=1", units, 1 + STOREFRONT_TOKENS)
    return Price("seller", units, 1.0)


def _items(parameters: Parameters, name: str) -> int:
    return sum(bool(part.strip()) for part in parameters.get(name, "").split(","))


def _is_on(parameters: Parameters, name: str) -> bool:
    return parameters.get(name, "").lower() in {"1", "true"}


def _updates(parameters: Parameters) -> bool:
    """Whether products older than some hours are updated: a negative number never does."""
    text = parameters.get("update", "")
    return text.isascii() and text.isdigit()


def _number(parameters: Parameters, name: str, allowed: range) -> int:
    text = parameters.get(name, "")
    # A number of many digits takes long to convert.
    number = int(text) if text.isascii() and text.isdigit() and len(text) < len("1000000") else 0
    return number if number in allowed else 0


FIXED: Final = {
    "deal": DEAL_TOKENS,
    "search": SEARCH_TOKENS,
    "bestsellers": LIST_TOKENS,
    "topseller": LIST_TOKENS,
}
BY_PARAMETERS: Final[Mapping[str, Callable[[Parameters], Price]]] = {
    "product": _product,
    "seller": _seller,
    "lightningdeal": _lightning_deals,
}
