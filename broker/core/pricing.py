"""What a request is charged, and how large a batch given tokens cover."""

from math import floor
from typing import NamedTuple

from broker.core.costs import CostBook
from broker.core.leases import LeaseRequest


class Quote(NamedTuple):
    """What a request would be charged.

    `units` is the largest batch that can ever fit and `tokens` its price;
    `least_tokens` is the price of the smallest useful batch. `likely` and
    `worst` are what a call really costs, as multiples of its price.
    """

    units: int
    tokens: int
    least_tokens: int
    likely: float = 1.0
    worst: float = 1.0

    def overrun(self, tokens: int) -> int:
        """Tokens by which a call that holds *tokens* may exceed them."""
        return floor(tokens * (self.worst - 1))

    def usable(self, tokens: int, overrun: int) -> int:
        """What of *tokens* may be granted from while other calls are in flight.

        A call that overruns may take the balance below zero, and whatever reaches
        Keepa after that is refused. So there must be enough left if one does:
        this one at its worst, or one of the others by *overrun* tokens.
        """
        return min(tokens - overrun, floor(tokens / self.worst))


class Batch(NamedTuple):
    """What to grant."""

    units: int
    tokens: int


def quote_for(costs: CostBook, request: LeaseRequest, most: int, debt: int = 0) -> Quote | None:
    """Price *request* when there are never more than *most* tokens, and *debt* for a lone call.

    Returns:
        None if even the least that is useful can never fit.
    """
    operation, prior, least = request.operation, request.tokens_per_unit, request.least
    least_tokens = costs.estimate(operation, least, prior)
    if least == 1:
        # No estimate locks an operation out: one unit fits a full bucket.
        least_tokens = min(least_tokens, most)
    fits = costs.affordable(operation, request.units, least, most, prior, debt)
    if most <= 0 or (fits is None and least_tokens > most):
        return None
    units = fits or least
    tokens = costs.estimate(operation, units, prior) if units > least else least_tokens
    price = costs.price(operation, units, prior)
    # The batch may be cut down, and the cost of a smaller one may scatter more.
    worst = costs.worst(operation, units, least, prior)
    return Quote(units, tokens, least_tokens, price.likely, worst)


def least_quote(costs: CostBook, request: LeaseRequest) -> Quote:
    """Price of the smallest useful batch, whether it can ever fit or not."""
    tokens = costs.estimate(request.operation, request.least, request.tokens_per_unit)
    return Quote(request.least, tokens, tokens)


def fit_alone(
    costs: CostBook, request: LeaseRequest, quote: Quote, tokens: int, debt: int
) -> Batch | None:
    """The largest batch for a call beside which no other is open.

    Keepa admits every call above zero, whatever it costs. So *tokens* need to cover the
    likely cost only; the price, which few calls exceed, may take *debt* tokens more.
    """
    operation, prior = request.operation, request.tokens_per_unit
    if tokens <= 0:
        return None
    units = costs.affordable(operation, quote.units, request.least, tokens, prior, debt)
    if units is not None and units > request.least:
        return Batch(units, costs.estimate(operation, units, prior))
    if units is None and quote.least_tokens > tokens:
        return None
    return Batch(request.least, quote.least_tokens)


def fit(costs: CostBook, request: LeaseRequest, quote: Quote, tokens: int) -> Batch | None:
    """The largest batch that *tokens* cover now; None if they do not cover the least."""
    if quote.tokens <= tokens:
        return Batch(quote.units, quote.tokens)
    if quote.least_tokens > tokens:
        return None
    operation, prior, least = request.operation, request.tokens_per_unit, request.least
    units = costs.affordable(operation, quote.units, least, tokens, prior)
    if units is None or units == least:
        return Batch(least, quote.least_tokens)
    return Batch(units, costs.estimate(operation, units, prior))
