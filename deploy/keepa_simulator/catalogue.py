"""The living catalogue of one Amazon site: which products are deals now, and why.

Events come at a set rate. Each picks a product, mostly one that was no deal, and changes
its prices. The product is then a deal until its lifetime passes without an update. Stamps
follow the server's clock: *speed* brings more events per minute and shorter lifetimes, but
a deal that changed a minute ago is stamped a minute ago. Events before the start came at
speed 1, so the ages at the start match the recordings.
"""

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from random import Random
from typing import Final

from deploy.keepa_simulator.asins import number_of
from deploy.keepa_simulator.events import happen, move_numbers, sell_out
from deploy.keepa_simulator.facts import Facts, Printer
from deploy.keepa_simulator.keepa_time import HOUR_MINUTES, MINUTE_MS, even_keepa_minutes
from deploy.keepa_simulator.listing import Listing

_HOUR_MS: Final = HOUR_MINUTES * MINUTE_MS
# The age of a deal's last update is a mix of two exponentials with these means. It fits
# the recordings: median 1.6 h, 95th percentile 12.6 h, maximum 22.3 h.
_AGE_MEANS_H: Final = (1.3, 6.0)
_AGE_SHARE_SHORT: Final = 0.62
_AGE_MAX_H: Final = 22.3
# Share of the events that fall on a product that is a deal already.
_CHANGE_SHARE: Final = 0.2
# Half of those leave the prices and their creationDate as they were: rank and counts move,
# and lastUpdate is newer.
_LOOK_SHARE: Final = 0.5
# Mean time from the last price change to the last update, where the price had changed.
_LOOK_AFTER_MEAN_H: Final = 1.5
# At the start, some deals have one price back after being sold out for this long.
_SOLD_OUT_SHARE: Final = 0.03
_SOLD_OUT_FOR_H: Final = 1.0
# A stamp runs ahead of the server's clock this often, by 2 or 4 minutes.
_AHEAD_SHARE: Final = 0.02
_PICKS_MAX: Final = 8


def _life_means_h() -> tuple[tuple[float, float], float]:
    """Lifetimes that lead to the ages above, and the events per hour and deal."""
    short, long = _AGE_MEANS_H
    # In a steady state each component is as frequent as its arrivals times its mean age.
    weights = (_AGE_SHARE_SHORT / short, (1 - _AGE_SHARE_SHORT) / long)
    events_per_hour = sum(weights)
    changed_per_hour = _CHANGE_SHARE * events_per_hour
    means = tuple(1 / (1 / mean - changed_per_hour) for mean in _AGE_MEANS_H)
    return (means[0], means[1]), events_per_hour


_LIFE_MEANS_H, _EVENTS_PER_HOUR_AND_DEAL = _life_means_h()
_ARRIVAL_SHARE_SHORT: Final = _AGE_SHARE_SHORT / _AGE_MEANS_H[0] / _EVENTS_PER_HOUR_AND_DEAL


class Catalogue:
    """The products and deals of one domain.

    Args:
        seed: Equal seeds, domains and start times give equal catalogues.
        domain: Keepa's number of the Amazon site.
        products: Number of products.
        deals: Approximate number of current deals.
        speed: Speed-up of events after the start.
        start_ms: Unix milliseconds at which the simulator starts.
    """

    def __init__(
        self,
        *,
        seed: int,
        domain: int,
        products: int,
        deals: int,
        speed: float,
        start_ms: int,
    ) -> None:
        self.domain = domain
        self.products = products
        self.anchor = even_keepa_minutes(start_ms)
        # Products that have become deals, or changed as such.
        self.events = 0
        self._rng = Random(f"{seed}/{domain}")  # noqa: S311 - nothing secret is drawn
        self._printer = Printer(seed, domain, products)
        self._speed = speed
        self._mean_gap_ms = _HOUR_MS / (_EVENTS_PER_HOUR_AND_DEAL * deals * speed)
        self._live: dict[int, Listing] = {}
        # The number of each deal's last event: a deal ends with its last event only.
        self._serials: dict[int, int] = {}
        self._numbers: list[int] = []
        self._places: dict[int, int] = {}
        # Former deals, the oldest first; their number is limited.
        self._former: OrderedDict[int, Listing] = OrderedDict()
        self._former_max = 2 * deals
        self._ends: list[tuple[float, int, int]] = []
        self._next_event_ms = start_ms + self._gap_ms()
        self._begin(deals, start_ms)

    def advance(self, now_ms: float) -> None:
        """Runs every event that is due by *now_ms* (Unix milliseconds)."""
        while min(self._next_event_ms, self._next_end_ms) <= now_ms:
            if self._next_end_ms < self._next_event_ms:
                self._end_one()
            else:
                self._event(self._next_event_ms)
                self._next_event_ms += self._gap_ms()

    @property
    def deals(self) -> list[Listing]:
        """The products that are deals as of the last `advance`."""
        return list(self._live.values())

    def facts(self, number: int) -> Facts:
        """The facts of product *number*."""
        return self._printer.facts(number)

    def listing(self, number: int) -> Listing:
        """Product *number* with its history, whether or not it is a deal."""
        known = self._live.get(number) or self._former.get(number)
        return known or self._untouched(number)

    def everything(self) -> Iterator[Listing]:
        """All products, by number; safe while another thread runs events."""
        return (self.listing(number) for number in range(self.products))

    def find(self, asin: str) -> Listing | None:
        """The product with this ASIN, or None."""
        number = number_of(asin)
        if number is None or number >= self.products or self.facts(number).asin != asin:
            return None
        return self.listing(number)

    def refresh(self, listing: Listing, now_ms: float) -> None:
        """Updates a product now, as ``update`` asks for; its prices stay as they are."""
        number, stamp = listing.facts.number, even_keepa_minutes(now_ms)
        if listing.last_update < stamp:
            listing.touch(stamp)
            if number not in self._live:
                self._keep_former(number, listing)

    def is_deal(self, number: int) -> bool:
        """Whether product *number* is a deal as of the last `advance`."""
        return number in self._live

    @property
    def _next_end_ms(self) -> float:
        return self._ends[0][0] if self._ends else float("inf")

    def _untouched(self, number: int) -> Listing:
        facts = self.facts(number)
        # Last seen in the two days before the greatest age of a deal.
        age = round(_AGE_MAX_H + 1) * HOUR_MINUTES + facts.words[4] % (48 * HOUR_MINUTES)
        return Listing(facts, self.anchor, (self.anchor - age) & ~1)

    def _gap_ms(self) -> float:
        return self._rng.expovariate(1) * self._mean_gap_ms

    def _begin(self, deals: int, start_ms: int) -> None:
        """Draws a steady state. Exponential lifetimes are memoryless, so no past is replayed."""
        rng = self._rng
        for number in rng.sample(range(self.products), deals):
            short = rng.random() < _AGE_SHARE_SHORT
            age_h = _AGE_MAX_H
            while age_h >= _AGE_MAX_H:
                age_h = rng.expovariate(1 / _AGE_MEANS_H[not short])
            rest_h = min(rng.expovariate(1 / _LIFE_MEANS_H[not short]), _AGE_MAX_H - age_h)
            listing = self._untouched(number)
            self._recall(listing, start_ms, age_h)
            serial = self._add(number, listing)
            self._ends.append((start_ms + rest_h * _HOUR_MS / self._speed, number, serial))
        heapify(self._ends)

    def _recall(self, listing: Listing, start_ms: int, age_h: float) -> None:
        """Gives *listing* a change before the start and the last update *age_h* ago."""
        changed_h = age_h
        if self._rng.random() < _LOOK_SHARE:
            earlier_h = age_h + self._rng.expovariate(1 / _LOOK_AFTER_MEAN_H)
            changed_h = min(earlier_h, _AGE_MAX_H)
        if self._rng.random() < _SOLD_OUT_SHARE:
            listing.touch(self._stamp(start_ms - (changed_h + _SOLD_OUT_FOR_H) * _HOUR_MS))
            sell_out(listing)
        listing.touch(self._stamp(start_ms - changed_h * _HOUR_MS))
        happen(self._rng, listing)
        seen = self._stamp(start_ms - age_h * _HOUR_MS)
        if seen > listing.last_update:
            listing.touch(seen)
            move_numbers(self._rng, listing)

    def _stamp(self, at_ms: float) -> int:
        ahead = self._rng.choice((2, 4)) if self._rng.random() < _AHEAD_SHARE else 0
        return even_keepa_minutes(at_ms) + ahead

    def _event(self, at_ms: float) -> None:
        stamp = self._stamp(at_ms)
        for _ in range(_PICKS_MAX):
            number = self._pick()
            listing = self.listing(number)
            # At any speed, no product gets the same stamp twice.
            if listing.last_update < stamp:
                break
        else:
            return
        listing.touch(stamp)
        if number in self._live and self._rng.random() < _LOOK_SHARE:
            move_numbers(self._rng, listing)
        else:
            happen(self._rng, listing)
        serial = self._add(number, listing)
        life_h = min(self._rng.expovariate(1 / self._life_mean_h()), _AGE_MAX_H)
        heappush(self._ends, (at_ms + life_h * _HOUR_MS / self._speed, number, serial))

    def _life_mean_h(self) -> float:
        return _LIFE_MEANS_H[self._rng.random() >= _ARRIVAL_SHARE_SHORT]

    def _pick(self) -> int:
        if self._numbers and self._rng.random() < _CHANGE_SHARE:
            return self._rng.choice(self._numbers)
        return self._rng.randrange(self.products)

    def _add(self, number: int, listing: Listing) -> int:
        """Makes *listing* a deal; returns the number of the event that did."""
        self.events += 1
        self._former.pop(number, None)
        if number not in self._live:
            self._places[number] = len(self._numbers)
            self._numbers.append(number)
        self._live[number] = listing
        self._serials[number] = self.events
        return self.events

    def _end_one(self) -> None:
        _, number, serial = heappop(self._ends)
        if self._serials.get(number) != serial:
            return
        del self._serials[number]
        listing = self._live.pop(number)
        listing.shrink()
        # The last number moves to the freed place, so picking stays O(1).
        place, last = self._places.pop(number), self._numbers.pop()
        if last != number:
            self._numbers[place] = last
            self._places[last] = place
        self._keep_former(number, listing)

    def _keep_former(self, number: int, listing: Listing) -> None:
        self._former[number] = listing
        if len(self._former) > self._former_max:
            self._former.popitem(last=False)
