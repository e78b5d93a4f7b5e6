"""What a request can be offered: at which price, and within which limits."""

from typing import NamedTuple

from broker.core.budgets import BudgetBook
from broker.core.costs import CostBook
from broker.core.leases import LeaseRequest
from broker.core.ledger import Ledger
from broker.core.pricing import Batch, Quote, fit, least_quote, quote_for
from broker.core.waitlist import Waiting


class Offers(NamedTuple):
    """Prices from what calls have cost, limits from the bucket and the budgets.

    `spare_tokens` is what allowed debt adds to a full bucket, or, if negative,
    what the floor takes from it.
    """

    ledger: Ledger
    costs: CostBook
    budgets: BudgetBook
    spare_tokens: int

    def first_quote(self, request: LeaseRequest) -> Quote:
        """Price of a request that is new; what can never fit is found out at the head."""
        quote = quote_for(self.costs, request, self.most_tokens(request))
        return quote or least_quote(self.costs, request)

    def requote(self, waiting: Waiting) -> bool:
        """Price a request at what is known by now; False if it can never fit."""
        request = waiting.request
        quote = quote_for(self.costs, request, self.most_tokens(request))
        waiting.quote = quote or waiting.quote
        return quote is not None

    def most_tokens(self, request: LeaseRequest) -> int:
        """Most tokens that *request* can ever be granted."""
        bucket = self.ledger.bucket
        most = max(bucket.capacity, bucket.observed) + self.spare_tokens
        if not self.budgets:
            return most
        limit = self.budgets.limit(request.holder, request.operation, bucket.capacity)
        return min(most, limit)

    def batch(self, waiting: Waiting, tokens: int, now_ms: int) -> Batch | None:
        """The largest batch that *tokens* cover now; None if they do not cover the least."""
        request, quote, ledger = waiting.request, waiting.quote, self.ledger
        if ledger.open_leases:
            tokens = quote.usable(tokens, ledger.overrun_tokens)
        if self.budgets:
            capacity = ledger.bucket.capacity
            room = self.budgets.room(request.holder, request.operation, capacity, now_ms)
            tokens = tokens if room is None else min(tokens, room)
        return fit(self.costs, request, quote, tokens)

    def largest_units(self, request: LeaseRequest, tokens: int) -> int:
        """The largest batch that *tokens* would cover; 0 if none."""
        prior = request.tokens_per_unit
        return self.costs.affordable(request.operation, request.units, 1, tokens, prior) or 0

    def budget_free_ms(self, waiting: Waiting, now_ms: int) -> int | None:
        """When the request's budgets have room for it; None if nobody can tell."""
        request, least_tokens = waiting.request, waiting.quote.least_tokens
        capacity = self.ledger.bucket.capacity
        return self.budgets.free_at_ms(
            request.holder, request.operation, least_tokens, capacity, now_ms
        )

    def later_by_budget(self, waiting: Waiting, eta_ms: int | None, now_ms: int) -> int | None:
        """*eta_ms*, or the delay until the budgets have room; None if nobody can tell."""
        free_ms = self.budget_free_ms(waiting, now_ms)
        if eta_ms is None or free_ms is None:
            return None
        return max(eta_ms, free_ms - now_ms)
