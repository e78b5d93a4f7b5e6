"""What can happen to a product: prices fall and rise, offers sell out and come back."""

from random import Random
from typing import Final

from deploy.keepa_simulator import price_types as pt
from deploy.keepa_simulator.history import NO_OFFER, typical_price
from deploy.keepa_simulator.listing import Listing

# How often an event concerns a group of price types, for books and for everything else.
_BOOK_GROUPS: Final = (pt.USED, pt.NEW, pt.AMAZON, pt.COLLECTIBLE, pt.WAREHOUSE)
_BOOK_WEIGHTS: Final = (60, 22, 10, 5, 3)
_OTHER_GROUPS: Final = (
    pt.NEW,
    pt.AMAZON,
    pt.USED,
    pt.WAREHOUSE,
    pt.LIGHTNING_DEAL,
    pt.PRIME_EXCL,
    pt.REFURBISHED,
)
_OTHER_WEIGHTS: Final = (40, 28, 14, 8, 6, 2, 2)

_DROP_SHARE: Final = 0.70
_RISE_SHARE: Final = 0.18
_SOLD_OUT_SHARE: Final = 0.04
_LIGHTNING_MINUTES: Final = 360


def _new_price(rng: Random, listing: Listing, price_type: int) -> int:
    usual = typical_price(listing.facts, price_type)
    roll = rng.random()
    if roll < _DROP_SHARE:
        return max(1, round(usual * rng.uniform(0.08, 0.75)))
    if roll < _DROP_SHARE + _RISE_SHARE:
        return round(usual * rng.uniform(1.1, 2.0)) + 1
    if roll < _DROP_SHARE + _RISE_SHARE + _SOLD_OUT_SHARE:
        return NO_OFFER
    return usual


def _move_group(rng: Random, listing: Listing, group: int) -> None:
    """Changes the price that names *group*, and one of the offers behind it."""
    price = _new_price(rng, listing, group)
    if price == listing.current(group):
        price += 1
    listing.change(group, price)
    if len(pt.GROUP_TYPES[group]) > 1:
        follower = rng.choice(pt.GROUP_TYPES[group][1:])
        ratio = pt.PRICE_RATIO[follower] / pt.PRICE_RATIO[group]
        listing.change(follower, round(price * ratio) if price > 0 else NO_OFFER)


def _note_kind(rng: Random, listing: Listing, group: int) -> None:
    if group == pt.WAREHOUSE:
        on_sale = listing.current(group) > 0
        listing.warehouse_condition = rng.randint(2, 5) if on_sale else 0
    elif group == pt.LIGHTNING_DEAL:
        begin = listing.last_update
        listing.lightning = (begin, begin + _LIGHTNING_MINUTES)


def move_numbers(rng: Random, listing: Listing) -> None:
    """Changes rank, offer counts and reviews a little, as every update does."""
    if (rank := listing.current(pt.SALES)) > 0:
        listing.change(pt.SALES, max(1, round(rank * rng.uniform(0.6, 1.5))))
    if (count := listing.current(pt.COUNT_USED)) > 0:
        listing.change(pt.COUNT_USED, max(1, count + rng.randint(-1, 1)))
    if (count := listing.current(pt.COUNT_NEW)) > 0:
        listing.change(pt.COUNT_NEW, max(1, count + rng.randint(-1, 1)))
    if (reviews := listing.current(pt.COUNT_REVIEWS)) > 0:
        listing.change(pt.COUNT_REVIEWS, reviews + rng.randint(0, 2))


def sell_out(listing: Listing) -> None:
    """Removes all new and used offers as of the update that has just begun."""
    for group in (pt.AMAZON, pt.NEW, pt.USED):
        if listing.facts.has_offers(group):
            for price_type in pt.GROUP_TYPES[group]:
                listing.change(price_type, NO_OFFER)


def happen(rng: Random, listing: Listing) -> None:
    """Applies a random event to *listing*; its update has just begun."""
    book = listing.facts.is_book
    groups, weights = (_BOOK_GROUPS, _BOOK_WEIGHTS) if book else (_OTHER_GROUPS, _OTHER_WEIGHTS)
    offered = [group for group in groups if listing.facts.has_offers(group)]
    if offered:
        chances = [weights[groups.index(group)] for group in offered]
        (group,) = rng.choices(offered, chances)
        _move_group(rng, listing, group)
        _note_kind(rng, listing, group)
    move_numbers(rng, listing)
