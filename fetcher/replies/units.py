"""Keepa's units and code tables.

Sources: the official clients (keepacom/api_backend, keepacom/php_api) and recorded
replies. Times are Keepa minutes there and Unix milliseconds (UTC) everywhere else.
"""

from dataclasses import dataclass
from typing import Final

KEEPA_EPOCH_MINUTES: Final = 21_564_000
MS_PER_MINUTE: Final = 60_000

# Later than any real date (the year 2201); anything above is noise, not time.
LATEST_KEEPA_MINUTES: Final = 100_000_000

ROWS_PER_PAGE: Final = 150
# Keepa serves at most this many rows of a selection, however many match.
MOST_ROWS: Final = 10_000
PAGES_MAX: Final = -(-MOST_ROWS // ROWS_PER_PAGE)

TOKENS_PER_DEAL_PAGE: Final = 5

# Keepa answers the same selection from a cache for about this long.
CACHE_MS: Final = 120_000

# Date ranges, by index: the period over which a drop is measured.
DATE_RANGES: Final = ("24 hours", "7 days", "31 days", "90 days")

DOMAINS: Final = {
    1: "amazon.com",
    2: "amazon.co.uk",
    3: "amazon.de",
    4: "amazon.fr",
    5: "amazon.co.jp",
    6: "amazon.ca",
    8: "amazon.it",
    9: "amazon.es",
    10: "amazon.in",
    11: "amazon.com.mx",
    12: "amazon.com.br",
}


@dataclass(frozen=True, slots=True)
class Currency:
    """A currency by its ISO 4217 code; ``digits`` are the decimals of its minor unit."""

    code: str
    digits: int = 2


# Keepa's prices are integers in the smallest unit of the site's currency.
CURRENCIES: Final = {
    1: Currency("USD"),
    2: Currency("GBP"),
    3: Currency("EUR"),
    4: Currency("EUR"),
    # The sen went out of use in 1953: 620 is ¥620.
    5: Currency("JPY", digits=0),
    6: Currency("CAD"),
    8: Currency("EUR"),
    9: Currency("EUR"),
    10: Currency("INR"),
    11: Currency("MXN"),
    12: Currency("BRL"),
}

AMAZON: Final = 0
NEW: Final = 1
SALES_RANK: Final = 3
COUNT_NEW: Final = 11
COUNT_USED: Final = 12
RATING: Final = 16
COUNT_REVIEWS: Final = 17
BUY_BOX: Final = 18

PRICE_TYPES: Final = (
    "AMAZON",
    "NEW",
    "USED",
    "SALES",
    "LISTPRICE",
    "COLLECTIBLE",
    "REFURBISHED",
    "NEW_FBM_SHIPPING",
    "LIGHTNING_DEAL",
    "WAREHOUSE",
    "NEW_FBA",
    "COUNT_NEW",
    "COUNT_USED",
    "COUNT_REFURBISHED",
    "COUNT_COLLECTIBLE",
    "EXTRA_INFO_UPDATES",
    "RATING",
    "COUNT_REVIEWS",
    "BUY_BOX_SHIPPING",
    "USED_NEW_SHIPPING",
    "USED_VERY_GOOD_SHIPPING",
    "USED_GOOD_SHIPPING",
    "USED_ACCEPTABLE_SHIPPING",
    "COLLECTIBLE_NEW_SHIPPING",
    "COLLECTIBLE_VERY_GOOD_SHIPPING",
    "COLLECTIBLE_GOOD_SHIPPING",
    "COLLECTIBLE_ACCEPTABLE_SHIPPING",
    "REFURBISHED_SHIPPING",
    "EBAY_NEW_SHIPPING",
    "EBAY_USED_SHIPPING",
    "TRADE_IN",
    "RENT",
    "BUY_BOX_USED_SHIPPING",
    "PRIME_EXCL",
)

# Price types with values that are no amounts of money, by kind.
RANK_TYPES: Final = frozenset({SALES_RANK})
RATING_TYPES: Final = frozenset({RATING})
# Numbers of offers, of updates and of reviews.
COUNT_TYPES: Final = frozenset({COUNT_NEW, COUNT_USED, 13, 14, 15, COUNT_REVIEWS})

# The real order of each sort type; none sorts by last update. The official clients agree,
# and recorded pages of type 4 are ordered by percent without exception.
SORT_MEANINGS: Final = {
    0: "undocumented order",
    1: "deal age, newest first",
    2: "absolute drop, largest first",
    3: "sales rank, best first",
    4: "percent drop, largest first",
    -2: "absolute drop, smallest first",
    -3: "sales rank, worst first",
    -4: "percent drop, smallest first",
}
NEWEST_FIRST: Final = 1


def minutes_to_ms(keepa_minutes: int) -> int:
    """Returns a time in Keepa minutes as Unix milliseconds."""
    return (keepa_minutes + KEEPA_EPOCH_MINUTES) * MS_PER_MINUTE


def ms_to_minutes(unix_ms: int) -> int:
    """Returns the Keepa minute of *unix_ms* (Unix milliseconds)."""
    return unix_ms // MS_PER_MINUTE - KEEPA_EPOCH_MINUTES


def is_price(price_type: int) -> bool:
    """Returns whether values of *price_type* are money: no rank, rating or count."""
    return price_type not in RANK_TYPES | RATING_TYPES | COUNT_TYPES


def kind_words(price_type: int) -> str:
    """Returns the kind of *price_type*: "a price", "a sales rank", "a rating", "a count"."""
    if price_type in RANK_TYPES:
        return "a sales rank"
    if price_type in RATING_TYPES:
        return "a rating"
    return "a count" if price_type in COUNT_TYPES else "a price"


def currency_code(domain_id: int) -> str:
    """Returns the ISO 4217 code of the site's currency; "???" for an unknown site."""
    currency = CURRENCIES.get(domain_id)
    return "???" if currency is None else currency.code


def money_words(amount_minor: int, domain_id: int) -> str:
    """Returns *amount_minor* for people, with its currency: "12.99 USD", "620 JPY".

    For an unknown site the amount stays in minor units.
    """
    currency = CURRENCIES.get(domain_id)
    if currency is None:
        return f"{amount_minor} minor units"
    sign, whole = "-" if amount_minor < 0 else "", 10**currency.digits
    amount = str(abs(amount_minor) // whole)
    if currency.digits:
        amount += f".{abs(amount_minor) % whole:0{currency.digits}}"
    return f"{sign}{amount} {currency.code}"


def span_words(span_s: float) -> str:
    """Returns *span_s* seconds in the largest unit of which it has two: "90 s", "3 min"."""
    for unit, unit_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if span_s >= 2 * unit_s:
            return f"{span_s // unit_s:.0f} {unit}"
    return f"{max(0.0, span_s):.0f} s"


def value_words(value: int, *, price_type: int, domain_id: int) -> str:
    """Returns a *value* of *price_type* by its kind: an amount, rank, rating or count."""
    if is_price(price_type):
        return money_words(value, domain_id)
    if price_type in RANK_TYPES:
        return f"rank {value}"
    if price_type in RATING_TYPES:
        return f"{value / 10:.1f} of 5 stars"
    return str(value)
