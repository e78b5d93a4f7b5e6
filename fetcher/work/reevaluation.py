"""Judging stored deals again, without spending a token.

After details have arrived, and after the rules of a query have changed.
"""

from collections import ChainMap
from collections.abc import Iterable, Sequence
from typing import Final

from fetcher.postgres.database import Connection
from fetcher.postgres.products import known_products, want_products
from fetcher.postgres.stored_deals import StoredDeal, deals_judged_by, outdated_deals
from fetcher.postgres.verdicts import delete_outdated, upsert_verdicts
from fetcher.queries.query import DealQuery
from fetcher.replies.deals import Deal, parse_deal
from fetcher.replies.record import MalformedReplyError
from fetcher.work.judging import judge_deals, request_of

BATCH: Final = 500


def judge_again(
    connection: Connection, queries: Iterable[DealQuery], domain_id: int, asins: Sequence[str]
) -> None:
    """Judge stored deals anew for every query that has a verdict on them."""
    for query in queries:
        if query.domain_id == domain_id and query.enrichment is not None:
            stored = deals_judged_by(connection, query.name, domain_id, asins)
            _judge(connection, query, stored)


def judge_outdated(connection: Connection, query: DealQuery) -> int:
    """Judge up to BATCH deals whose verdict rests on older rules; returns how many there were."""
    stored = outdated_deals(
        connection, query.name, query.domain_id, query.rules.version, limit=BATCH
    )
    _judge(connection, query, stored)
    return len(stored)


def _judge(connection: Connection, query: DealQuery, stored: Sequence[StoredDeal]) -> None:
    asins = [row.asin for row in stored]
    request = request_of(query)
    known = {} if request is None else known_products(connection, query.domain_id, asins)
    judgements = [
        judge_deals(query, [deal], known, reply_time_ms=row.reply_time_ms)
        for row in stored
        if (deal := _deal(query, row)) is not None
    ]
    # All products before all verdicts, as a page's commit does: no waiting in a circle.
    if request is not None:
        want_products(connection, request, ChainMap(*(dict(j.wanted) for j in judgements)))
    verdicts = [verdict for judgement in judgements for verdict in judgement.verdicts]
    upsert_verdicts(connection, query.name, verdicts, scan_id=None)
    delete_outdated(connection, query.name, query.domain_id, asins, query.rules.version)


def _deal(query: DealQuery, row: StoredDeal) -> Deal | None:
    try:
        return parse_deal(
            row.raw,
            domain_id=query.domain_id,
            price_type=query.price_type,
            date_range=query.date_range,
        )
    except MalformedReplyError:
        # Only rows that named a product were ever stored.
        return None
