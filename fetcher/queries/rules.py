"""Rules: data from a query file that accept or reject a deal, with every reason.

Rule 1: unknown is an outcome of its own, never zero and never a silent pass or failure.
Rule 2: a verdict names every rule against the deal, not only the first.
Rule 3: a verdict that details can't change is made without buying them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fetcher.queries.conditions import Condition, Facts, limit_words, read_condition
from fetcher.queries.enrichment import Enrichment
from fetcher.queries.profit import ProfitCosts, ProfitEstimate, estimate_profit
from fetcher.queries.reader import BadKeyError
from fetcher.replies.deals import Deal
from fetcher.replies.products import Product
from fetcher.replies.units import PRICE_TYPES, is_price, kind_words

State = Literal["accepted", "rejected", "pending"]
Stage = Literal["deal", "product"]
Outcome = Literal["failed", "unknown"]

# To be raised when a rule's meaning changes: stored deals are then judged again.
MEANING_REVISION: Final = 2


@dataclass(frozen=True, slots=True)
class RuleFailure:
    """One rule against a deal.

    ``failed``: the value is known and beyond the limit. ``unknown``: it isn't known.
    """

    rule: str
    outcome: Outcome
    limit: str
    value: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one query's rules for one deal.

    ``pending`` means that no known value rejects it and that its ``failures``, all unknown,
    wait for the product's details. ``profit`` is the estimate with its inputs, once there
    are details.
    """

    state: State
    stage: Stage
    failures: tuple[RuleFailure, ...]
    rule_version: str
    profit: ProfitEstimate | None


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The rules of one query, in the order written.

    ``version`` names the rules and their meaning: 12 hex digits that change whenever a
    stored verdict could.
    """

    conditions: tuple[Condition, ...]
    costs: ProfitCosts
    version: str

    def words(self, domain_id: int) -> tuple[str, ...]:
        """Returns each rule in words, with amounts in the currency of the site."""
        return tuple(
            f"{rule.name} {limit_words(rule.name, rule.limit, domain_id)} ({rule.unknown_words})"
            for rule in self.conditions
        )


def read_rules(
    value: object, *, enrichment: Enrichment | None, costs: ProfitCosts | None = None
) -> RuleSet:
    """Reads the "rules" of a query file.

    Raises:
        BadKeyError: an unknown rule, an unreadable limit, or a rule on product details
            in a query that doesn't buy them.
    """
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise BadKeyError("rules", 'write an object: {"price": {"max": 5000}}')
    enriched = enrichment is not None
    conditions = tuple(read_condition(str(name), limits) for name, limits in value.items())
    for rule in conditions:
        if rule.needs_product and not enriched:
            reason = 'needs product details; add "enrichment": true or remove the rule'
            raise BadKeyError(f"rules.{rule.name}", reason)
        if rule.on_unknown == "pending" and not enriched:
            reason = 'nothing to wait for; add "enrichment": true or write pass or reject'
            raise BadKeyError(f"rules.{rule.name}.unknown", reason)
    costs = costs or ProfitCosts()
    amounts = [costs.inbound_per_kg_minor, costs.other_minor]
    meaning = [MEANING_REVISION, value, amounts, enriched]
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return RuleSet(conditions, costs, hashlib.sha256(text.encode()).hexdigest()[:12])


def check_price_rules(ruleset: RuleSet, price_type: int) -> None:
    """Rejects rules on money for a *price_type* that is a rank, a rating or a count.

    Raises:
        BadKeyError: such a rule, and what to use instead.
    """
    check_price_conditions(ruleset.conditions, price_type, path="rules")


def check_price_conditions(conditions: Iterable[Condition], price_type: int, *, path: str) -> None:
    """Rejects *conditions* on money for a *price_type* that is a rank, a rating or a count.

    Raises:
        BadKeyError: Such a condition, under *path*, and what to use instead.
    """
    if is_price(price_type):
        return
    for rule in conditions:
        if rule.needs_price:
            reason = (
                f"price type {price_type} ({PRICE_TYPES[price_type]}) is"
                f" {kind_words(price_type)}, no price; use drop_percent, or remove the rule"
            )
            raise BadKeyError(f"{path}.{rule.name}", reason)


def evaluate(
    ruleset: RuleSet, deal: Deal, product: Product | None = None, *, now_ms: int
) -> Verdict:
    """Judges *deal*, with the details of its *product* if they have been bought.

    Ages count up to *now_ms*, the server time of the reply in Unix ms.
    """
    profit = None if product is None else estimate_profit(deal, product, ruleset.costs)
    facts = Facts(deal, product, profit, now_ms)
    failures: list[RuleFailure] = []
    waiting: list[RuleFailure] = []
    for rule in ruleset.conditions:
        value = rule.value(facts)
        if value is not None and rule.accepts(value):
            continue
        if value is not None:
            failures.append(RuleFailure(rule.name, "failed", rule.limit, rule.shown(value)))
            continue
        against = RuleFailure(rule.name, "unknown", rule.limit, None)
        if product is None and (rule.needs_product or rule.on_unknown == "pending"):
            waiting.append(against)
        elif rule.on_unknown != "pass":
            failures.append(against)
    stage: Stage = "deal" if product is None else "product"
    if failures:
        return Verdict("rejected", stage, tuple(failures), ruleset.version, profit)
    state: State = "pending" if waiting else "accepted"
    return Verdict(state, stage, tuple(waiting), ruleset.version, profit)


@dataclass(frozen=True, slots=True)
class RuleCount:
    """How many rejected deals one rule was against, by outcome."""

    rule: str
    failed: int
    unknown: int


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Verdicts by state, and the rejected ones by rule, most frequent first.

    A deal counts for each rule against it: the rules add up to more than the deals.
    """

    accepted: int
    pending: int
    rejected: int
    rules: tuple[RuleCount, ...]

    def words(self) -> str:
        """Returns one line for a log: "3 accepted, 0 pending, 9 rejected: rank 8 (2 unknown)"."""
        line = f"{self.accepted} accepted, {self.pending} pending, {self.rejected} rejected"
        parts = [
            f"{rule.rule} {rule.failed + rule.unknown}"
            + (f" ({rule.unknown} unknown)" if rule.unknown else "")
            for rule in self.rules
        ]
        return f"{line}: {', '.join(parts)}" if parts else line
