"""Buying details of accepted deals: as many per call as the broker grants."""

import time
from collections.abc import Mapping, Sequence
from functools import partial

import structlog

from fetcher.broker_client import Priority
from fetcher.keepa import Keepa, Reply
from fetcher.postgres.claims import PRODUCT_WORK, Claim, bury_claims, lock_claims
from fetcher.postgres.database import Connection
from fetcher.postgres.deals import lock_listings
from fetcher.postgres.products import (
    ProductClaim,
    claim_products,
    count_wanted,
    next_request,
    store_products,
)
from fetcher.queries.enrichment import PRODUCTS_PER_CALL
from fetcher.queries.judging import DetailsRequest
from fetcher.replies.products import ProductPage, parse_products
from fetcher.tracing import tracer
from fetcher.work.paid_call import Job, PaidCalls, Stored, Want, odd
from fetcher.work.shared import Workplace
from fetcher.work.verdicts import judge_again

log = structlog.get_logger(__name__)


class ProductsJob(Job):
    """Claimed products that are asked for together."""

    noun = "products"
    table = PRODUCT_WORK

    def __init__(
        self, request: DetailsRequest, claims: Sequence[ProductClaim], keepa: Keepa
    ) -> None:
        self._request = request
        self._claims = tuple(claims)
        self._keepa = keepa

    @property
    def claims(self) -> Sequence[ProductClaim]:
        """One claim per product."""
        return self._claims

    @property
    def about(self) -> Mapping[str, str | int]:
        """The number of products, and their site."""
        return {"products": len(self._claims), "domain": self._request.domain_id}

    @property
    def doing(self) -> str:
        """The number of products, in words."""
        return f"buying details of {len(self._claims)} products"

    def without(self, claims: Sequence[Claim]) -> "ProductsJob | None":
        """Returns the job for the other products."""
        left = [claim for claim in self._claims if claim not in claims]
        return ProductsJob(self._request, left, self._keepa) if left else None

    def call(self) -> Reply:
        """Fetches all of them."""
        return self._keepa.products(
            [claim.asin for claim in self._claims],
            domain_id=self._request.domain_id,
            parameters=self._request.parameters,
        )

    def store(self, reply: Reply, workplace: Workplace) -> Stored:
        """Writes the details, and judges their deals again."""
        asins = tuple(claim.asin for claim in self._claims)
        page = parse_products(reply.body, domain_id=self._request.domain_id, asins=asins)
        envelope = reply.envelope
        server_ms = int(time.time() * 1000) if envelope is None else envelope.server_time_ms
        commit = partial(self._commit, page=page, server_ms=server_ms, workplace=workplace)
        with tracer.start_as_current_span("write"):
            lost = workplace.persist(commit, grace_s=workplace.limits.write_s)
        log.info(
            "products read",
            products=len(page.products),
            no_data=sum(product.no_data is not None for product in page.products),
            missing=len(page.missing),
            tokens=0 if envelope is None else envelope.tokens_consumed,
            **odd(page.oddities),
        )
        missing = [claim for claim in self._claims if claim.asin in page.missing]
        return Stored(lost=lost, unanswered=[claim for claim in missing if claim not in lost])

    def bury(self, connection: Connection, claims: Sequence[Claim], error: str) -> Sequence[Claim]:
        """Sets *claims* aside, and leaves the others of the job."""
        return bury_claims(connection, PRODUCT_WORK, claims, error)

    def _commit(
        self, connection: Connection, *, page: ProductPage, server_ms: int, workplace: Workplace
    ) -> Sequence[Claim]:
        asked = {claim.asin for claim in self._claims}
        lock_listings(connection, self._request.domain_id, list(asked))
        lost = lock_claims(connection, PRODUCT_WORK, self._claims)
        answered = [product for product in page.products if product.asin in asked]
        store_products(connection, self._request, answered, page.raws, reply_time_ms=server_ms)
        queries = workplace.folder.book.queries
        judge_again(connection, queries, self._request.domain_id, [p.asin for p in answered])
        return lost


class EnrichmentWork:
    """The buyer of details of one process; the threads that run it take turns."""

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace

    def step(self, calls: PaidCalls) -> bool:
        """Buys one batch by *calls*; returns False if nothing was wanted."""
        take_over = self._workplace.may_take_over
        request = self._workplace.persist(partial(next_request, take_over=take_over))
        if request is None:
            return False
        units = self._workplace.persist(
            partial(count_wanted, request=request, most=PRODUCTS_PER_CALL, take_over=take_over)
        )
        if units == 0:
            return False
        return calls.make(
            Want(
                span="products",
                operation=request.operation,
                units=units,
                min_units=1,
                tokens_per_unit=request.unit_tokens,
                priority=Priority.LOW,
                words=f"{units} products",
                claim=partial(self._claim, request, calls.keepa),
            )
        )

    def _claim(
        self, request: DetailsRequest, keepa: Keepa, connection: Connection, units: int
    ) -> ProductsJob | None:
        claims = claim_products(
            connection,
            request,
            units=units,
            holder=self._workplace.holder,
            ttl_s=self._workplace.limits.claim_ttl_s,
            take_over=self._workplace.may_take_over,
        )
        return ProductsJob(request, claims, keepa) if claims else None
