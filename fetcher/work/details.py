"""Buying details of accepted deals: as many at once as the broker affords."""

import time
from dataclasses import dataclass
from functools import partial

import structlog

from fetcher.broker_client import Lease, LeaseLostError, Priority
from fetcher.errors import KeepaResponseError, KeepaThrottledError, KeepaUnavailableError
from fetcher.keepa import Keepa, Reply
from fetcher.postgres.database import Connection
from fetcher.postgres.products import (
    ProductClaim,
    Request,
    claim_products,
    count_wanted,
    fail_products,
    next_request,
    release_products,
    store_products,
)
from fetcher.queries.enrichment import PRODUCTS_PER_CALL
from fetcher.replies.products import ProductPage, parse_products
from fetcher.replies.record import MalformedReplyError
from fetcher.tracing import tracer
from fetcher.work.outage import KeyRefusedError, Outage
from fetcher.work.paid_call import leased_call
from fetcher.work.reevaluation import judge_again
from fetcher.work.shared import StoppedError, Workplace

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Products that are being asked for together."""

    request: Request
    claims: tuple[ProductClaim, ...]

    @property
    def asins(self) -> tuple[str, ...]:
        """What the call asks for."""
        return tuple(claim.asin for claim in self.claims)


class EnrichmentWork:
    """The buyer of details of one process; one thread runs it."""

    def __init__(self, workplace: Workplace, keepa: Keepa) -> None:
        self._workplace = workplace
        self._keepa = keepa
        self._outage = Outage(workplace)
        self._in_hand: tuple[Batch, Lease] | None = None

    def step(self) -> bool:
        """Buy one batch if anything is wanted; False means that nothing was."""
        request = self._workplace.persist(next_request)
        if request is None:
            return False
        units = self._workplace.persist(
            partial(count_wanted, request=request, most=PRODUCTS_PER_CALL)
        )
        if units == 0:
            return False
        with (
            tracer.start_as_current_span("products"),
            self._workplace.broker.lease(
                request.operation,
                units=units,
                min_units=1,
                tokens_per_unit=request.unit_tokens,
                priority=Priority.LOW,
            ) as lease,
        ):
            return self._claim_and_buy(request, lease)

    def give_back(self) -> None:
        """Return the products that a call is still out for; its cost is unknown."""
        if (held := self._in_hand) is not None:
            batch, lease = held
            lease.settle_unsaid()
            self._workplace.persist(partial(release_products, claims=batch.claims))

    def _claim_and_buy(self, request: Request, lease: Lease) -> bool:
        # One try only: tokens must not stay held while Postgres is away.
        with self._workplace.database.connection() as connection:
            claims = claim_products(
                connection,
                request,
                units=lease.units,
                holder=self._workplace.holder,
                ttl_s=self._workplace.limits.claim_ttl_s,
            )
        if not claims:
            return False
        batch = Batch(request, tuple(claims))
        self._in_hand = (batch, lease)
        try:
            self._buy(batch, lease)
        except (StoppedError, KeyRefusedError):
            raise
        except Exception as exc:
            # A mistake of ours: the heartbeat would keep the products for ever.
            self._fail(batch.claims, f"unexpected {type(exc).__name__}")
            raise
        finally:
            self._in_hand = None
        return True

    def _buy(self, batch: Batch, lease: Lease) -> None:
        request = batch.request
        call = partial(
            self._keepa.products,
            batch.asins,
            domain_id=request.domain_id,
            parameters=request.parameters,
        )
        try:
            self._store(batch, leased_call(lease, call, units=len(batch.claims)))
            self._outage.over()
        except (LeaseLostError, KeepaThrottledError) as exc:
            log.info("products put back", products=len(batch.claims), reason=str(exc))
            self._release(batch)
        except KeepaUnavailableError as exc:
            if exc.sent:
                self._fail(batch.claims, str(exc))
            else:
                self._release(batch)
            self._outage.pause(exc)
        except KeepaResponseError as exc:
            if exc.concerns_key:
                self._release(batch)
                raise KeyRefusedError(exc) from None
            self._fail(batch.claims, str(exc))
        except MalformedReplyError as exc:
            self._fail(batch.claims, str(exc))

    def _store(self, batch: Batch, reply: Reply) -> None:
        page = parse_products(reply.body, domain_id=batch.request.domain_id, asins=batch.asins)
        envelope = reply.envelope
        server_ms = int(time.time() * 1000) if envelope is None else envelope.timestamp_ms
        commit = partial(self._commit, batch=batch, page=page, server_ms=server_ms)
        with tracer.start_as_current_span("write"):
            self._workplace.persist(commit)
        log.info(
            "products read",
            products=len(page.products),
            no_data=sum(product.no_data is not None for product in page.products),
            missing=len(page.missing),
            tokens=0 if envelope is None else envelope.tokens_consumed,
        )

    def _commit(
        self, connection: Connection, *, batch: Batch, page: ProductPage, server_ms: int
    ) -> None:
        asked = set(batch.asins)
        answered = [product for product in page.products if product.asin in asked]
        store_products(connection, answered, reply_time_ms=server_ms)
        missing = [claim for claim in batch.claims if claim.asin in page.missing]
        self._count_failure(connection, missing, "the reply left it out")
        queries = self._workplace.folder.book.queries
        judge_again(connection, queries, batch.request.domain_id, [p.asin for p in answered])

    def _fail(self, claims: tuple[ProductClaim, ...], error: str) -> None:
        log.warning("products failed", products=len(claims), error=error)
        self._workplace.persist(partial(self._count_failure, claims=claims, error=error))

    def _count_failure(
        self,
        connection: Connection,
        claims: tuple[ProductClaim, ...] | list[ProductClaim],
        error: str,
    ) -> None:
        limits = self._workplace.limits
        most = max((claim.attempts for claim in claims), default=0)
        fail_products(
            connection,
            claims,
            error,
            attempts_max=limits.attempts_max,
            delay_s=limits.retry_delay(most),
        )

    def _release(self, batch: Batch) -> None:
        self._workplace.persist(partial(release_products, claims=batch.claims))
