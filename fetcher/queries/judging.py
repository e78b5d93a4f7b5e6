"""Judging deals for one query, and choosing the products that deserve details.

Rule 1: a deal is judged alone first, then with its product's details if they are known.
Rule 2: details are bought for a deal that no known value rejects, and only if they are
        missing, answer a smaller request, or are out of date.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fetcher.queries.query import DealQuery
from fetcher.queries.rules import Verdict, evaluate
from fetcher.replies.deals import Deal
from fetcher.replies.products import Product, product_operation, product_parameters


@dataclass(frozen=True, slots=True)
class KnownProduct:
    """Details bought before, and the parameters of their call.

    ``last_update_ms`` is the product's last change according to these details,
    ``reply_time_ms`` is Keepa's clock when it served them; both Unix ms.
    """

    parameters: Mapping[str, int]
    last_update_ms: int | None
    reply_time_ms: int
    product: Product


@dataclass(frozen=True, slots=True)
class DetailsRequest:
    """The product call that a query wants, with its expected price per product."""

    domain_id: int
    operation: str
    parameters: Mapping[str, int]
    unit_tokens: int


@dataclass(frozen=True, slots=True)
class JudgedDeal:
    """A verdict on *deal* as served at *reply_time_ms*, Keepa's clock in Unix ms.

    The deal's drop and average are those of the query's date range. ``product`` has the
    details that the verdict rests on.
    """

    deal: Deal
    verdict: Verdict
    reply_time_ms: int
    product: Product | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """Verdicts on some deals, and the ASINs for which details should be bought.

    ``wanted`` holds the time of the last answer about each ASIN, in Unix ms.
    """

    verdicts: tuple[JudgedDeal, ...]
    wanted: Mapping[str, int | None]


def judge_deals(
    query: DealQuery,
    deals: Iterable[Deal],
    known: Mapping[str, KnownProduct],
    *,
    reply_time_ms: int,
) -> Judgement:
    """Judges *deals* as served at *reply_time_ms*, with details if they are *known*."""
    verdicts: list[JudgedDeal] = []
    wanted: dict[str, int | None] = {}
    for deal in deals:
        details = None if query.enrichment is None else known.get(deal.asin)
        alone = evaluate(query.rules, deal, now_ms=reply_time_ms)
        verdicts.append(JudgedDeal(deal, alone, reply_time_ms))
        if details is not None:
            informed = evaluate(query.rules, deal, details.product, now_ms=reply_time_ms)
            verdicts.append(JudgedDeal(deal, informed, reply_time_ms, details.product))
        if alone.state != "rejected" and _is_due(query, deal, details, reply_time_ms):
            wanted[deal.asin] = None if details is None else details.reply_time_ms
    return Judgement(tuple(verdicts), wanted)


def request_of(query: DealQuery) -> DetailsRequest | None:
    """Returns the product call that *query* wants for its deals."""
    if query.enrichment is None:
        return None
    return DetailsRequest(
        domain_id=query.domain_id,
        operation=product_operation(query.enrichment),
        parameters=product_parameters(query.enrichment),
        unit_tokens=query.enrichment.tokens_per_product,
    )


def _is_due(query: DealQuery, deal: Deal, known: KnownProduct | None, now_ms: int) -> bool:
    if query.enrichment is None:
        return False
    # The stored details may come from another query that asked for less.
    wanted = product_parameters(query.enrichment).items()
    if known is not None and not wanted <= known.parameters.items():
        return True
    return query.enrichment.is_due(
        deal_update_ms=deal.last_update_ms,
        product_update_ms=None if known is None else known.last_update_ms,
        enriched_ms=None if known is None else known.reply_time_ms,
        now_ms=now_ms,
    )
