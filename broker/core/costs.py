"""What a call is likely to cost, learned per operation and batch size.

A call's cost is known only afterwards, and a batch is not a multiple of one
unit: 50 ASINs reserved at 2 tokens each have cost 386. So whole calls are
remembered, in bands of similar batch size, and a high quantile of them is
reserved.
"""

from bisect import bisect_left, insort
from collections import deque
from itertools import accumulate
from math import ceil, floor, sqrt
from typing import Final, NamedTuple

# Long enough to hold a tail, short enough to forget last week's prices.
SAMPLES_MAX: Final = 256
SAMPLE_AGE_MS_MAX: Final = 6 * 3_600_000
# Fewer whole calls than this prove less than the caller's prior.
SAMPLES_MIN: Final = 5
QUANTILE: Final = 0.995
# What a call of unknown cost may come to, as a multiple of what it is thought to: a
# product has one page of offers as a rule, and ten at most (keepa-api.md, section 3).
UNLEARNED_WORST: Final = 10.0
# How far beyond the dearest of n calls the next may go: this over the root of n,
# times the distance from the middle to the dearest. Few calls hardly show a tail.
TAIL_REACH: Final = 8.0
# This many calls in a row outside everything before them: the price has changed.
PRICE_CHANGE_CALLS: Final = 8
# This many calls show by themselves how their cost scatters. A tail of one call in forty
# is missing from every fifth set of as few as these, and from most smaller ones.
CALM_CALLS: Final = 64
# Rounding of stored ratios must not push an exact cost over the next integer.
EPSILON: Final = 1e-6
OPERATIONS_MAX: Final = 1_000


class Price(NamedTuple):
    """What a unit is charged, and how the real cost scatters around that.

    `ratio` is in tokens per unit of the batch; `likely` and `worst` are what a
    call costs in the middle, and at the worst that is plausible, as multiples
    of it. Both are exactly 1 if all calls have cost the same. `proven`: enough
    calls have shown that.
    """

    ratio: float
    likely: float = 1.0
    worst: float = 1.0
    proven: bool = True


class Risk(NamedTuple):
    """How far calls may exceed their price: as `worst` and `proven` of `Price`."""

    worst: float
    proven: bool


class LearnedCost(NamedTuple):
    """What *calls* calls with batches of a similar size have cost, in tokens per unit."""

    operation: str
    units_min: int
    units_max: int
    calls: int
    mean: float
    price: float


class Band:
    """Recent whole-call costs of one operation at similar batch sizes.

    Stored per unit of the call's own batch, so that within a band (sizes differ
    by less than two times) a cost scales to the size asked for.
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float]] = deque()
        self._sorted: list[float] = []
        self._calls = 0
        # As of the last call: asked for far more often than they change. Calm: enough calls
        # show by themselves how their cost scatters.
        self.price = Price(0.0)
        self.is_calm = False
        # Grows when either changes, and with every call until it is calm.
        self.version = 0

    def __len__(self) -> int:
        return len(self._sorted)

    @property
    def mean(self) -> float:
        """Mean of the costs that are remembered."""
        return sum(self._sorted) / len(self._sorted)

    def add(self, ratio: float, now_ms: int) -> None:
        """Remember a call that cost *ratio* tokens per unit."""
        if self._changes_nothing(ratio, now_ms):
            self._recent.popleft()
            self._recent.append((now_ms, ratio))
            self._calls += 1
            return
        self._recent.append((now_ms, ratio))
        insort(self._sorted, ratio)
        if len(self._recent) > SAMPLES_MAX:
            self._forget_oldest()
        self.age(now_ms)
        self._calls += 1
        if self._calls % PRICE_CHANGE_CALLS == 0 and self._sorted[0] < self._sorted[-1]:
            self._forget_old_price()
        known = self.price, self.is_calm
        self.price = self._price()
        self.is_calm = len(self._sorted) >= CALM_CALLS
        if not self.is_calm or known != (self.price, self.is_calm):
            self.version += 1

    def _changes_nothing(self, ratio: float, now_ms: int) -> bool:
        """Whether one more such call takes the place of one like it, and no other is too old."""
        recent, costs = self._recent, self._sorted
        return (
            len(recent) == SAMPLES_MAX
            and costs[0] == ratio == costs[-1]
            and now_ms - recent[1][0] <= SAMPLE_AGE_MS_MAX
        )

    def age(self, now_ms: int) -> None:
        """Forgets what is too old, but never the last few calls."""
        while len(self._recent) > SAMPLES_MIN and now_ms - self._recent[0][0] > SAMPLE_AGE_MS_MAX:
            self._forget_oldest()

    def _price(self) -> Price:
        """The high quantile as the charge, and the scatter around it."""
        costs, count = self._sorted, len(self._sorted)
        ratio, middle, dearest = costs[ceil(QUANTILE * count) - 1], costs[count // 2], costs[-1]
        if ratio <= 0:
            return Price(ratio)
        worst = dearest + (dearest - middle) * TAIL_REACH / sqrt(count)
        return Price(ratio, middle / ratio, worst / ratio)

    def _forget_oldest(self) -> None:
        _, ratio = self._recent.popleft()
        del self._sorted[bisect_left(self._sorted, ratio)]

    def _forget_old_price(self) -> None:
        """Drops all calls before the point where the price clearly changed.

        Clearly: everything since lies on one side of everything before. By
        chance that happens to one split in thousands.
        """
        ratios = [ratio for _, ratio in self._recent]
        since = zip(
            accumulate(reversed(ratios), min), accumulate(reversed(ratios), max), strict=True
        )
        low_since, high_since = zip(*reversed(list(since)), strict=True)
        before = zip(accumulate(ratios, min), accumulate(ratios, max), strict=True)
        for split, (low_before, high_before) in enumerate(before, start=1):
            if split > len(ratios) - PRICE_CHANGE_CALLS:
                return
            if split >= SAMPLES_MIN and (
                high_since[split] < low_before or low_since[split] > high_before
            ):
                self._recent = deque(list(self._recent)[split:])
                self._sorted = sorted(ratios[split:])
                return


class CostBook:
    """Learned costs of every operation that is in use."""

    def __init__(self) -> None:
        # The operation learned of longest ago comes first.
        self._bands: dict[str, dict[int, Band]] = {}
        # The caller that was the first to use an operation, and how many each has introduced.
        self._introducers: dict[str, str] = {}
        self._introduced: dict[str, int] = {}
        # Grows when any price may have changed.
        self.version = 0

    def __len__(self) -> int:
        return len(self._bands)

    def learn(
        self, operation: str, units: int, tokens: int, now_ms: int, *, caller: str = ""
    ) -> None:
        """Remember that a call of *caller* for *units* units cost *tokens*.

        Beyond `OPERATIONS_MAX` the caller that introduced the most operations loses the
        one that was learned of longest ago: made-up names push out none of others' costs.
        """
        assert units > 0
        assert tokens >= 0
        bands = self._bands.pop(operation, None)
        if bands is None:
            if len(self._bands) >= OPERATIONS_MAX:
                self._forget_one()
            bands = {}
            self._introducers[operation] = caller
            self._introduced[caller] = self._introduced.get(caller, 0) + 1
        self._bands[operation] = bands
        size = units.bit_length()
        band = bands.get(size)
        if band is None:
            band = bands[size] = Band()
        version = band.version
        band.add(tokens / units, now_ms)
        self.version += band.version != version

    def learned(self) -> list[LearnedCost]:
        """All that is known, by operation and size of the batch."""
        return [
            LearnedCost(
                operation, 1 << (size - 1), (1 << size) - 1, len(band), band.mean, band.price.ratio
            )
            for operation, bands in sorted(self._bands.items())
            for size, band in sorted(bands.items())
        ]

    def _forget_one(self) -> None:
        most = max(self._introduced.values())
        greediest = {name for name, number in self._introduced.items() if number == most}
        oldest = (name for name in self._bands if self._introducers[name] in greediest)
        operation = next(oldest)
        del self._bands[operation]
        caller = self._introducers.pop(operation)
        self._introduced[caller] -= 1
        if not self._introduced[caller]:
            del self._introduced[caller]

    def estimate(self, operation: str, units: int, prior: float) -> int:
        """Tokens to reserve for a call for *units* units; at least 1.

        Args:
            operation: Key of the cost.
            units: Size of the batch; positive.
            prior: Tokens per unit that the caller expects, used until learned.
        """
        return tokens_at(self.price(operation, units, prior).ratio, units)

    def affordable(
        self, operation: str, most: int, least: int, tokens: int, prior: float, debt: int = 0
    ) -> int | None:
        """The largest batch from *least* to *most* units that *tokens* cover.

        With *debt* they need to cover its likely cost only, and with the debt its price.
        """
        for band in range(most.bit_length(), least.bit_length() - 1, -1):
            price = self._price(operation, band, prior)
            largest = min(most, (1 << band) - 1)
            if price.ratio > 0:
                covered = float(tokens + debt)
                if debt and price.likely > 0:
                    covered = min(covered, tokens / price.likely)
                largest = floor(min(largest, (covered + EPSILON) / price.ratio))
            if largest >= max(least, 1 << (band - 1)) and tokens >= 1:
                return largest
        return None

    def price(self, operation: str, units: int, prior: float) -> Price:
        """Price per unit of a call for *units* units; arguments as for `estimate`."""
        return self._price(operation, units.bit_length(), prior)

    def risk(self, operation: str, most: int, least: int, prior: float) -> Risk:
        """The worst risk of all batches from *least* to *most* units."""
        bands = range(least.bit_length(), most.bit_length() + 1)
        prices = [self._price(operation, band, prior) for band in bands]
        return Risk(max(p.worst for p in prices), all(p.proven for p in prices))

    def _price(self, operation: str, band: int, prior: float) -> Price:
        bands = self._bands.get(operation)
        if not bands:
            return Price(prior, worst=UNLEARNED_WORST, proven=False)
        own = bands.get(band)
        if own is not None and own.is_calm:
            return own.price
        if own is None or len(own) < SAMPLES_MIN:
            # Too few calls of this size: the nearest size that is known, if dearer.
            own = bands[min(bands, key=lambda b: (abs(b - band), b))]
            price = own.price
            if price.ratio < prior:
                price = Price(prior, worst=price.worst)
        else:
            price = own.price
        if len(own) < SAMPLES_MIN:
            return price._replace(worst=UNLEARNED_WORST, proven=False)
        # Few calls prove little, even by costing the same, where any size scatters.
        known = (band.price for band in bands.values() if len(band) >= SAMPLES_MIN)
        if not own.is_calm and any(price.worst > 1 for price in known):
            worst = max(price.worst, UNLEARNED_WORST * price.likely)
            return price._replace(worst=worst, proven=False)
        return price


def tokens_at(ratio: float, units: int) -> int:
    """Tokens to reserve for *units* units at *ratio* tokens each; at least 1."""
    return max(1, ceil(units * ratio - EPSILON))
