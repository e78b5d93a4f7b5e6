"""Enrichment: which deals are worth the tokens of a product call, and what it asks for."""

from dataclasses import dataclass
from typing import Final

from fetcher.queries.reader import DURATION_UNITS_MS, Section

HOUR_MS: Final = DURATION_UNITS_MS["h"]
DAY_MS: Final = DURATION_UNITS_MS["d"]

OFFERS_LEAST: Final = 20
OFFERS_MOST: Final = 100
OFFERS_PER_PAGE: Final = 10
TOKENS_PER_OFFER_PAGE: Final = 6
STATS_DAYS_MOST: Final = 3_650
PRODUCTS_PER_CALL: Final = 100


@dataclass(frozen=True, slots=True)
class Enrichment:
    """The details that a query wants of the products behind its deals.

    ``refresh_ms`` is how long details last while the product keeps changing. Details of an
    unchanged product are never bought again.
    """

    stats_days: int = 90
    offers: int = 0
    buy_box: bool = False
    rating: bool = False
    # Days of price history that come with the details, at no cost; 0 for none.
    history_days: int = 0
    refresh_ms: int = 12 * HOUR_MS

    @property
    def tokens_per_product(self) -> int:
        """Expected cost of one product until the broker has learned it."""
        base = 1
        if self.offers:
            base = self.offers // OFFERS_PER_PAGE * TOKENS_PER_OFFER_PAGE
        elif self.buy_box:
            base += 2
        return base + self.rating

    def is_due(
        self,
        *,
        deal_update_ms: int | None,
        product_update_ms: int | None,
        enriched_ms: int | None,
        now_ms: int,
    ) -> bool:
        """Returns whether a product's details should be bought (again); all times Unix ms.

        Args:
            deal_update_ms: The product's last change according to the deal.
            product_update_ms: Its last change according to the stored details.
            enriched_ms: When those details were bought; None if never.
            now_ms: The current time.
        """
        if enriched_ms is None:
            return True
        known = (deal_update_ms, product_update_ms)
        if None not in known and (deal_update_ms or 0) <= (product_update_ms or 0):
            return False
        return now_ms - enriched_ms >= self.refresh_ms


def read_enrichment(value: object) -> Enrichment | None:
    """Reads the "enrichment" of a query file: true, false, or an object.

    Raises:
        BadKeyError: naming the key and what to write.
    """
    if value is None or value is False:
        return None
    section = Section({} if value is True else value, "enrichment")
    section.allow_only(("stats_days", "offers", "buy_box", "rating", "history", "refresh"))
    default = Enrichment()
    offers = section.whole("offers", least=0, most=OFFERS_MOST) or 0
    return Enrichment(
        stats_days=section.whole("stats_days", least=1, most=STATS_DAYS_MOST)
        or default.stats_days,
        offers=max(offers, OFFERS_LEAST) if offers else 0,
        buy_box=section.flag("buy_box") or False,
        rating=section.flag("rating") or False,
        history_days=section.whole("history", least=1, most=STATS_DAYS_MOST) or 0,
        refresh_ms=section.duration_ms("refresh", least_ms=HOUR_MS, most_ms=30 * DAY_MS)
        or default.refresh_ms,
    )
