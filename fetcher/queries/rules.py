"""Rules: data from a query file that accept or reject a deal, with every reason.

Rule 1: unknown is an outcome of its own, never zero and never a silent pass or failure.
Rule 2: a verdict names every rule that stands against the deal, not the first one only.
Rule 3: what the details can't change is decided without buying them.
"""

import hashlib
import json
from collections import Counter
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

# Raise it when a rule's meaning changes, so that stored deals are judged again.
MEANING_REVISION: Final = 2


@dataclass(frozen=True, slots=True)
class RuleFailure:
    """One rule that stands against a deal.

    ``failed``: the value is known and beyond the limit. ``unknown``: it isn't known.
    """

    rule: str
    outcome: Outcome
    limit: str
    value: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules of one query say of one deal.

    ``pending`` means that nothing known speaks against it and that its ``failures``,
    all unknown, wait for the product's details. ``profit`` is the estimate with its inputs, once
    there are details.
    """

    state: State
    stage: Stage
    failures: tuple[RuleFailure, ...]
    rule_version: str
    profit: ProfitEstimate | None


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The rules of one query, in the order written.

    ``version`` names rules and their meaning together: 12 hex digits that change
    whenever a stored verdict could.
    """

    conditions: tuple[Condition, ...]
    costs: ProfitCosts
    enriched: bool
    version: str

    def words(self, domain_id: int) -> tuple[str, ...]:
        """Each rule in words, amounts in the currency of the site."""
        return tuple(
            f"{rule.name} {limit_words(rule.name, rule.limit, domain_id)} ({rule.unknown_words})"
            for rule in self.conditions
        )


def read_rules(
    value: object, *, enrichment: Enrichment | None, costs: ProfitCosts | None = None
) -> RuleSet:
    """The "rules" of a query file.

    Raises:
        BadKeyError: an unknown rule, a limit that can't be understood, or a rule on
            product details in a query that doesn't buy them.
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
    return RuleSet(conditions, costs, enriched, _version(value, costs, enriched=enriched))


def check_price_rules(ruleset: RuleSet, price_type: int) -> None:
    """Refuse rules on money for a *price_type* that is a rank, a rating or a count.

    Raises:
        BadKeyError: such a rule, with what can be asked instead.
    """
    if is_price(price_type):
        return
    for rule in ruleset.conditions:
        if rule.needs_price:
            reason = (
                f"price type {price_type} ({PRICE_TYPES[price_type]}) is"
                f" {kind_words(price_type)}, no price; use drop_percent, or remove the rule"
            )
            raise BadKeyError(f"rules.{rule.name}", reason)


def _version(rules: Mapping[str, object], costs: ProfitCosts, *, enriched: bool) -> str:
    amounts = [costs.inbound_per_kg_minor, costs.other_minor]
    meaning = [MEANING_REVISION, rules, amounts, enriched]
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def evaluate(
    ruleset: RuleSet, deal: Deal, product: Product | None = None, *, now_ms: int
) -> Verdict:
    """Judge *deal*, with the details of its *product* if they have been bought.

    Ages are counted to *now_ms*, the server time of the reply in Unix ms.
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
        if _may_become_known(rule, product):
            waiting.append(against)
        elif rule.on_unknown != "pass":
            failures.append(against)
    stage: Stage = "deal" if product is None else "product"
    if failures:
        return Verdict("rejected", stage, tuple(failures), ruleset.version, profit)
    state: State = "pending" if waiting else "accepted"
    return Verdict(state, stage, tuple(waiting), ruleset.version, profit)


def _may_become_known(rule: Condition, product: Product | None) -> bool:
    return product is None and (rule.needs_product or rule.on_unknown == "pending")


@dataclass(frozen=True, slots=True)
class RuleCount:
    """How many of a set of rejected deals one rule stood against, by outcome."""

    rule: str
    failed: int
    unknown: int


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A set of verdicts by state, and the rejected ones by rule, most frequent first.

    A deal counts for each rule against it, so the rules add up to more than the deals.
    """

    accepted: int
    pending: int
    rejected: int
    rules: tuple[RuleCount, ...]

    def words(self) -> str:
        """One line for a log: "3 accepted, 0 pending, 9 rejected: rank 8 (2 unknown)"."""
        line = f"{self.accepted} accepted, {self.pending} pending, {self.rejected} rejected"
        parts = [
            f"{rule.rule} {rule.failed + rule.unknown}"
            + (f" ({rule.unknown} unknown)" if rule.unknown else "")
            for rule in self.rules
        ]
        return f"{line}: {', '.join(parts)}" if parts else line


def break_down(verdicts: Iterable[Verdict]) -> Breakdown:
    """Count *verdicts* by state and by the rules against the rejected ones."""
    states: Counter[State] = Counter()
    against: dict[str, Counter[Outcome]] = {}
    for verdict in verdicts:
        states[verdict.state] += 1
        if verdict.state == "rejected":
            for failure in verdict.failures:
                against.setdefault(failure.rule, Counter())[failure.outcome] += 1
    rules = [RuleCount(name, n["failed"], n["unknown"]) for name, n in against.items()]
    rules.sort(key=lambda rule: (-rule.failed - rule.unknown, rule.rule))
    return Breakdown(states["accepted"], states["pending"], states["rejected"], tuple(rules))
