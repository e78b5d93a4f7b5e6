"""From the rows of a reply to verdicts, and to the products worth knowing more about."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fetcher.postgres.products import KnownProduct, Request
from fetcher.postgres.verdicts import JudgedDeal
from fetcher.queries.query import DealQuery
from fetcher.queries.rules import evaluate
from fetcher.replies.deals import Deal
from fetcher.replies.products import Product, parse_product, product_operation, product_parameters


@dataclass(frozen=True, slots=True)
class Judgement:
    """Verdicts on some deals, and the ASINs whose details should be bought.

    Each of those with the time of the last answer about it, in Unix ms.
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
    """Judge *deals* as served at *reply_time_ms*, with details where they are *known*."""
    verdicts: list[JudgedDeal] = []
    wanted: dict[str, int | None] = {}
    for deal in deals:
        details = known.get(deal.asin)
        product = None if details is None else parse_product(details.raw, domain_id=deal.domain_id)
        judged = judge_deal(query, deal, product, reply_time_ms=reply_time_ms)
        verdicts += judged
        if judged[0].verdict.state != "rejected" and _is_due(query, deal, details, reply_time_ms):
            wanted[deal.asin] = None if details is None else details.reply_time_ms
    return Judgement(tuple(verdicts), wanted)


def judge_deal(
    query: DealQuery, deal: Deal, product: Product | None, *, reply_time_ms: int
) -> list[JudgedDeal]:
    """The verdict on the deal alone, then the one with its product if that is known."""
    stages = [None] if product is None or query.enrichment is None else [None, product]
    return [
        JudgedDeal(
            deal.domain_id,
            deal.asin,
            evaluate(query.rules, deal, details, now_ms=reply_time_ms),
            reply_time_ms,
        )
        for details in stages
    ]


def request_of(query: DealQuery) -> Request | None:
    """The product call that *query* wants for its deals."""
    if query.enrichment is None:
        return None
    return Request(
        domain_id=query.domain_id,
        operation=product_operation(query.enrichment),
        parameters=product_parameters(query.enrichment),
        unit_tokens=query.enrichment.tokens_per_product,
    )


def _is_due(query: DealQuery, deal: Deal, known: KnownProduct | None, now_ms: int) -> bool:
    if query.enrichment is None:
        return False
    # Another query may have asked for less than this one wants to know.
    wanted = product_parameters(query.enrichment).items()
    if known is not None and not wanted <= known.parameters.items():
        return True
    return query.enrichment.is_due(
        deal_update_ms=deal.last_update_ms,
        product_update_ms=None if known is None else known.last_update_ms,
        enriched_ms=None if known is None else known.reply_time_ms,
        now_ms=now_ms,
    )
