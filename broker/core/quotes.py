"""Prices and offers: what a request is charged, and how large a batch it gets now.

An offer holds for all requests of the same shape, until what calls cost has changed.
"""

from math import floor
from typing import Final, NamedTuple, TypeAlias

from broker.core.budgets import ANY_ROOM, BudgetBook, Obstacle, Room
from broker.core.costs import CostBook
from broker.core.holds import Overruns
from broker.core.leases import LeaseRequest
from broker.core.ledger import Ledger

# Offers that are remembered; beyond this number all are made anew.
OFFERS_MAX: Final = 1_000


class Quote(NamedTuple):
    """What a request would be charged.

    `units` is the largest batch that can ever fit and `tokens` its price; `least_tokens`
    is the price of the smallest useful batch. `likely` and `worst` are what a call really
    costs, as multiples of its price. `proven`: enough calls have shown that.
    """

    units: int
    tokens: int
    least_tokens: int
    likely: float = 1.0
    worst: float = 1.0
    proven: bool = True

    def overrun(self, tokens: int) -> int:
        """Tokens by which a call that holds *tokens* may exceed them."""
        return floor(tokens * (self.worst - 1))

    @property
    def is_seen(self) -> bool:
        """Whether calls have shown anything of their cost: else it is a mere prior."""
        return self.proven or self.likely != 1

    def usable(self, tokens: int, others: Overruns) -> int:
        """What of *tokens* may be granted from while *others* may exceed their holds.

        A call that overruns may take the balance below zero, and Keepa refuses whatever
        reaches it after that. Overruns of proven costs are rare and independent: there
        must be enough left if one of them comes. Calls of unproven cost overrun together
        where the prior is wrong: there must be enough left if all of them do.
        """
        tokens -= others.unproven
        if not self.proven:
            return floor((tokens - others.proven) / self.worst)
        return min(tokens - others.proven, floor(tokens / self.worst))


class TooLarge(NamedTuple):
    """The request can never fit: there are never more than `most_tokens` for it.

    `least` is the quote of the smallest useful batch.
    """

    most_tokens: int
    least: Quote


# What an offer rests on beside the learned costs: operation, units, least units and prior of
# the request, the most tokens that there can ever be for it, and its debt beyond them.
Shape: TypeAlias = tuple[str, int, int, float, int, int]


class Batch(NamedTuple):
    """What to grant."""

    units: int
    tokens: int


class MustWait(NamedTuple):
    """The least that is useful lacks `missing_tokens`."""

    missing_tokens: int


class Quotes:
    """Prices from what calls have cost, limits from the bucket and the budgets."""

    def __init__(
        self,
        ledger: Ledger,
        costs: CostBook,
        budgets: BudgetBook,
        floor_tokens: int,
        horizon_ms: int,
    ) -> None:
        """Price nothing yet.

        Args:
            ledger: The books.
            costs: What calls have cost.
            budgets: Limits for groups of callers.
            floor_tokens: Tokens that are never granted.
            horizon_ms: Debt reaches as far as the refill of so long pays it back.
        """
        self._ledger, self._costs, self._budgets = ledger, costs, budgets
        self._floor_tokens, self._horizon_ms = floor_tokens, horizon_ms
        # What was offered by the costs of this version.
        self._offers: dict[Shape, Quote | TooLarge] = {}
        self._version = costs.version

    @property
    def debt_tokens(self) -> int:
        """How far below zero, or the floor, a lone call's price may take the balance."""
        bucket = self._ledger.bucket
        return floor(self._horizon_ms / bucket.period.ms * bucket.lump)

    def offer(self, request: LeaseRequest) -> Quote | TooLarge:
        """The price of *request* by what is known now."""
        most, debt = self._limits(request)
        if self._version != self._costs.version or len(self._offers) >= OFFERS_MAX:
            self._offers.clear()
            self._version = self._costs.version
        units, min_units, prior = request.units, request.min_units, request.tokens_per_unit
        shape = (request.operation, units, min_units, prior, most, debt)
        offer = self._offers.get(shape)
        if offer is None:
            offer = self._offers[shape] = self._price(request, most, debt)
        return offer

    def _limits(self, request: LeaseRequest) -> tuple[int, int]:
        """Most tokens that there can ever be for *request*, and its debt beyond them."""
        bucket = self._ledger.bucket
        most, debt = max(bucket.capacity, bucket.observed) - self._floor_tokens, self.debt_tokens
        if not self._budgets.exist:
            return most, debt
        # The likely cost of a call must fit its budgets; its price may exceed them.
        limit = self._budgets.limit(request.holder, request.operation, bucket.capacity)
        price = most + debt
        most = min(most, limit)
        return most, price - most

    def _price(self, request: LeaseRequest, most: int, debt: int) -> Quote | TooLarge:
        """The price where there are never more than *most* tokens, and *debt* when alone."""
        costs, least = self._costs, request.least
        operation, prior = request.operation, request.tokens_per_unit
        least_tokens = costs.estimate(operation, least, prior)
        fits = costs.affordable(operation, request.units, least, most, prior, debt)
        # No estimate locks an operation out: one unit fits a full bucket.
        floor_tokens = min(least_tokens, most) if least == 1 else least_tokens
        if most <= 0 or (fits is None and floor_tokens > most):
            return TooLarge(most, Quote(least, least_tokens, least_tokens))
        units = fits or least
        tokens = costs.estimate(operation, units, prior) if units > least else floor_tokens
        price = costs.price(operation, units, prior)
        # The batch may be cut down, and the cost of a smaller one may scatter more.
        risk = costs.risk(operation, units, least, prior)
        return Quote(units, tokens, floor_tokens, price.likely, risk.worst, risk.proven)

    def batch(
        self, request: LeaseRequest, quote: Quote, tokens: int, now_ms: int
    ) -> Batch | MustWait:
        """The largest batch that *tokens* cover now, within the budgets."""
        holds = self._ledger.holds
        if not holds.holds_leases:
            debt = self.debt_tokens
        else:
            debt = 0
            if holds.open_leases:
                tokens = quote.usable(tokens, holds.overruns)
        if not self._budgets.exist:
            return self._fit(request, quote, tokens, debt)
        room = Room(tokens, tokens + debt).within(self._room(request, now_ms))
        return self._fit_room(request, quote, room)

    def _room(self, request: LeaseRequest, now_ms: int) -> Room:
        capacity = self._ledger.bucket.capacity
        return self._budgets.room(request.holder, request.operation, capacity, now_ms)

    def _fit_room(self, request: LeaseRequest, quote: Quote, room: Room) -> Batch | MustWait:
        tokens = min(room)
        return self._fit(request, quote, tokens, room.price - tokens)

    def _fit(
        self, request: LeaseRequest, quote: Quote, tokens: int, debt: int
    ) -> Batch | MustWait:
        """The largest batch that *tokens* cover, with *debt* for a call that runs alone.

        Keepa admits every call above zero, whatever it costs. So *tokens* need to cover the
        likely cost of a lone call only; the price, which few calls exceed, may take *debt*
        tokens more.
        """
        if quote.tokens <= tokens:
            return Batch(quote.units, quote.tokens)
        operation, prior, least = request.operation, request.tokens_per_unit, request.least
        if debt:
            if tokens <= 0:
                return MustWait(1 - tokens)
            units = self._costs.affordable(operation, quote.units, least, tokens, prior, debt)
            least_fits = units is not None or quote.least_tokens <= tokens
        else:
            least_fits = quote.least_tokens <= tokens
            units = None
            if least_fits:
                units = self._costs.affordable(operation, quote.units, least, tokens, prior)
        if not least_fits:
            return MustWait(quote.least_tokens - tokens)
        if units is None or units == least:
            return Batch(least, quote.least_tokens)
        return Batch(units, self._costs.estimate(operation, units, prior))

    def largest_units(self, request: LeaseRequest, tokens: int) -> int:
        """The largest batch that *tokens* would cover; 0 if none."""
        prior = request.tokens_per_unit
        return self._costs.affordable(request.operation, request.units, 1, tokens, prior) or 0

    def obstacles(self, request: LeaseRequest, quote: Quote, now_ms: int) -> list[Obstacle]:
        """The budgets' limits that keep *request* from being granted; the worst first."""
        room = self._room(request, now_ms)
        if room == ANY_ROOM or isinstance(self._fit_room(request, quote, room), Batch):
            return []
        return self._budgets.obstacles(
            request.holder,
            request.operation,
            quote.least_tokens,
            self._ledger.bucket.capacity,
            now_ms,
        )

    def count_shadows(self, request: LeaseRequest, quote: Quote, now_ms: int) -> None:
        """*request* is granted: count it where a budget in shadow mode would have denied it."""
        capacity = self._ledger.bucket.capacity
        shadows = self._budgets.shadows(request.holder, request.operation, capacity, now_ms)
        for pot, room in shadows:
            if not isinstance(self._fit_room(request, quote, room), Batch):
                pot.would_deny += 1
