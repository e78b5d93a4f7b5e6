"""What a request can be offered: at which price, and within which limits."""

from typing import NamedTuple

from broker.core.budgets import BudgetBook
from broker.core.costs import CostBook
from broker.core.leases import LeaseRequest
from broker.core.ledger import Ledger
from broker.core.pricing import Batch, Quote, fit, fit_alone, least_quote, quote_for
from broker.core.waitlist import Waiting


class Offers(NamedTuple):
    """Prices from what calls have cost, limits from the bucket and the budgets.

    `floor_tokens` are never granted. Debt reaches as far as the refill of `horizon_ms`
    pays it back; None stands for one tick.
    """

    ledger: Ledger
    costs: CostBook
    budgets: BudgetBook
    floor_tokens: int
    horizon_ms: int | None

    @property
    def debt_tokens(self) -> int:
        """How far below zero, or the floor, a lone call's price may take the balance."""
        return self.ledger.bucket.refill_within(self.horizon_ms)

    def first_quote(self, request: LeaseRequest) -> Quote:
        """Price of a request that is new; what can never fit is found out at the head."""
        quote = quote_for(self.costs, request, *self._limits(request))
        return quote or least_quote(self.costs, request)

    def requote(self, waiting: Waiting) -> bool:
        """Price a request at what is known by now; False if it can never fit."""
        request = waiting.request
        quote = quote_for(self.costs, request, *self._limits(request))
        waiting.quote = quote or waiting.quote
        return quote is not None

    def most_tokens(self, request: LeaseRequest) -> int:
        """Most tokens that there can ever be for *request*."""
        return self._limits(request)[0]

    def _limits(self, request: LeaseRequest) -> tuple[int, int]:
        """Most tokens that there can ever be for *request*, and its debt beyond them."""
        bucket = self.ledger.bucket
        most = max(bucket.capacity, bucket.observed) - self.floor_tokens
        if not self.budgets:
            return most, self.debt_tokens
        limit = self.budgets.limit(request.holder, request.operation, bucket.capacity)
        most = min(most, limit)
        return most, min(self.debt_tokens, limit - most)

    def batch(self, waiting: Waiting, tokens: int, now_ms: int) -> Batch | None:
        """The largest batch that *tokens* cover now; None if they do not cover the least."""
        request, quote, ledger = waiting.request, waiting.quote, self.ledger
        if ledger.open_leases:
            tokens = quote.usable(tokens, ledger.holds.overrun_tokens)
        debt = 0 if ledger.holds.holds_leases else self.debt_tokens
        if self.budgets:
            capacity = ledger.bucket.capacity
            room = self.budgets.room(request.holder, request.operation, capacity, now_ms)
            if room is not None:
                tokens = min(tokens, room)
                debt = min(debt, room - tokens)
        if debt:
            return fit_alone(self.costs, request, quote, tokens, debt)
        return fit(self.costs, request, quote, tokens)

    def largest_units(self, request: LeaseRequest, tokens: int) -> int:
        """The largest batch that *tokens* would cover; 0 if none."""
        prior = request.tokens_per_unit
        return self.costs.affordable(request.operation, request.units, 1, tokens, prior) or 0

    def budget_free_ms(self, waiting: Waiting, now_ms: int) -> int | None:
        """When the request's budgets have room for it; None if unknown."""
        request, least_tokens = waiting.request, waiting.quote.least_tokens
        capacity = self.ledger.bucket.capacity
        return self.budgets.free_at_ms(
            request.holder, request.operation, least_tokens, capacity, now_ms
        )

    def later_by_budget(self, waiting: Waiting, eta_ms: int | None, now_ms: int) -> int | None:
        """*eta_ms*, or the delay until the budgets have room; None if unknown."""
        free_ms = self.budget_free_ms(waiting, now_ms)
        if eta_ms is None or free_ms is None:
            return None
        return max(eta_ms, free_ms - now_ms)
