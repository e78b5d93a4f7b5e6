"""Deals appear, change and vanish in the catalogue, and their stamps only grow."""

from statistics import median, quantiles

import pytest

from deploy.keepa_simulator.catalogue import Catalogue
from deploy.keepa_simulator.deal_row import deal_fields
from deploy.keepa_simulator.keepa_time import even_keepa_minutes

START_MS = 1_757_873_538_842
HOUR_MS = 3_600_000


def catalogue(**changes: float) -> Catalogue:
    """A catalogue of 4,000 products, 1,000 of them deals."""
    options = {"seed": 1, "domain": 1, "products": 4_000, "deals": 1_000, "speed": 1.0}
    return Catalogue(start_ms=START_MS, **(options | changes))  # type: ignore[arg-type]  # ints but speed


@pytest.fixture(scope="module")
def at_start() -> Catalogue:
    """A catalogue in its state at the start."""
    return catalogue()


def test_deals_are_there_at_once(at_start: Catalogue) -> None:
    """The start has as many deals as any other time."""
    assert len(at_start.deals) == 1_000


def test_ages_are_as_recorded(at_start: Catalogue) -> None:
    """Median about 1.6 h, 95th percentile about 12.6 h, none above 22.3 h."""
    now = even_keepa_minutes(START_MS)
    ages_h = [(now - deal.last_update) / 60 for deal in at_start.deals]

    assert 1.1 < median(ages_h) < 2.1
    assert 9 < quantiles(ages_h, n=20)[-1] < 15
    assert max(ages_h) < 22.4
    assert -0.1 < min(ages_h) < 0.1


def test_equal_seeds_give_equal_deals(at_start: Catalogue) -> None:
    """The same seed, domain and start lead to the same rows, another seed to others."""
    rows = [deal_fields(deal, 2) for deal in at_start.deals[:20]]

    assert [deal_fields(deal, 2) for deal in catalogue().deals[:20]] == rows
    assert [deal_fields(deal, 2) for deal in catalogue(seed=2).deals[:20]] != rows


def test_stamps_are_even_and_only_grow() -> None:
    """Each update of a product has a newer, even lastUpdate that is close to the clock."""
    living = catalogue(speed=60)
    newest: dict[str, int] = {}
    changed = 0
    for step in range(1, 121):
        now_ms = START_MS + step * 10_000
        living.advance(now_ms)
        for deal in living.deals:
            before = newest.get(deal.facts.asin, deal.last_update)
            changed += deal.last_update > before
            newest[deal.facts.asin] = deal.last_update

            assert deal.last_update >= before
            assert deal.last_update % 2 == 0
            assert deal.last_update <= even_keepa_minutes(now_ms) + 4

    assert changed > 100


def test_stamps_never_repeat_for_a_product() -> None:
    """Even when few products change very often, a change shows as a newer lastUpdate."""
    living = catalogue(products=20, deals=10, speed=600)
    states: dict[tuple[str, int], object] = {}
    for step in range(1, 200):
        living.advance(START_MS + step * 3_000)
        for deal in living.deals:
            row = deal_fields(deal, 1)

            assert states.setdefault((deal.facts.asin, deal.last_update), row) == row


def test_number_of_deals_stays(at_start: Catalogue) -> None:
    """Deals come and go at the same rate."""
    living = catalogue()
    before = {deal.facts.asin for deal in living.deals}
    living.advance(START_MS + 6 * HOUR_MS)
    after = {deal.facts.asin for deal in living.deals}

    assert 700 < len(after) < 1_300
    assert len(after - before) > 300
    assert len(before - after) > 300


def test_speed_makes_more_happen() -> None:
    """At sixty times the speed, a minute brings about an hour's new deals."""
    slow, fast = catalogue(), catalogue(speed=60)
    slow.advance(START_MS + HOUR_MS)
    fast.advance(START_MS + HOUR_MS // 60)
    at_start = {deal.facts.asin for deal in catalogue().deals}
    arisen = [len({deal.facts.asin for deal in it.deals} - at_start) for it in (slow, fast)]

    assert 0.7 < arisen[0] / arisen[1] < 1.4


def test_products_are_found_by_asin(at_start: Catalogue) -> None:
    """Every product is found by its ASIN, and no other ASIN finds one."""
    asins = [at_start.facts(number).asin for number in range(4_000)]

    assert len(set(asins)) == 4_000
    assert all(found is not None for found in map(at_start.find, asins))
    assert at_start.find("B0ZZZZZZZZ") is None
    assert at_start.find(asins[0].lower() + "!") is None


def test_asins_are_the_same_on_every_site(at_start: Catalogue) -> None:
    """A product has one ASIN and a price of its own on each site."""
    german = catalogue(domain=3)

    assert german.facts(7).asin == at_start.facts(7).asin
    assert german.facts(7).list_price != at_start.facts(7).list_price


def test_what_was_a_deal_keeps_its_history() -> None:
    """A price change stays in the history after the deal has vanished."""
    living = catalogue()
    gone = {deal.facts.number: deal.history(1) for deal in living.deals}
    living.advance(START_MS + 2 * HOUR_MS)
    vanished = [number for number in gone if not living.is_deal(number)]
    kept = [living.listing(number).history(1)[: len(gone[number])] for number in vanished]

    assert len(vanished) > 200
    assert kept == [gone[number] for number in vanished]


def test_a_forced_update_moves_the_stamp_alone(at_start: Catalogue) -> None:
    """A forced update changes a product's stamp, not its prices."""
    living = catalogue()
    listing = next(
        it for it in map(living.listing, range(4_000)) if not living.is_deal(it.facts.number)
    )
    prices = [listing.current(price_type) for price_type in range(36)]
    living.refresh(listing, START_MS)
    again = living.find(listing.facts.asin)

    assert again is not None
    assert again.last_update == even_keepa_minutes(START_MS)
    assert [again.current(price_type) for price_type in range(36)] == prices
