"""When details are bought, and when they have been paid for already."""

from fetcher.queries.enrichment import DAY_MS, HOUR_MS, Enrichment, read_enrichment
from tests.fetcher.builders import NOW_MS

WANTED = Enrichment(refresh_ms=12 * HOUR_MS)


def due(*, deal: int | None, product: int | None, enriched: int | None) -> bool:
    """Whether details are due at NOW_MS; times are hours before it."""
    times = [None if hours is None else NOW_MS - hours * HOUR_MS for hours in (deal, product)]
    return WANTED.is_due(
        deal_update_ms=times[0],
        product_update_ms=times[1],
        enriched_ms=None if enriched is None else NOW_MS - enriched * HOUR_MS,
        now_ms=NOW_MS,
    )


def test_a_product_never_seen_is_due() -> None:
    """Without details there is nothing to reuse."""
    assert due(deal=1, product=None, enriched=None)


def test_an_unchanged_product_is_never_paid_for_twice() -> None:
    """However old the details, they still hold if the product has not changed since."""
    assert not due(deal=50, product=50, enriched=49)


def test_a_changed_product_is_due_once_its_details_have_aged() -> None:
    """Prices change all the time; details are bought again after the refresh time."""
    assert not due(deal=1, product=12, enriched=11)
    assert due(deal=1, product=13, enriched=12)


def test_without_update_times_age_alone_decides() -> None:
    """Without a sign of a change, details are bought after the refresh time."""
    assert not due(deal=None, product=1, enriched=11)
    assert due(deal=1, product=None, enriched=12)


def test_reads_the_keys_of_a_query_file() -> None:
    """True, false, nothing and an object are all understood."""
    assert read_enrichment(None) is read_enrichment(value=False) is None
    assert read_enrichment(value=True) == Enrichment()
    assert read_enrichment({"offers": "5", "refresh": "2d"}) == Enrichment(
        offers=20, refresh_ms=2 * DAY_MS
    )


def test_the_buy_box_costs_two_tokens_more() -> None:
    """Before anything is learned, the price list is the estimate."""
    assert Enrichment(buy_box=True).tokens_per_product == 3
