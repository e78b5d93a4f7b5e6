"""Details of products: what is wanted, who asks for it, what came of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

from psycopg.types.json import Jsonb

from fetcher.postgres.database import Connection, instant, unix_ms
from fetcher.postgres.deals import as_jsonb
from fetcher.replies.products import Product

KNOWN: Final[LiteralString] = """
SELECT asin, known_by, last_update, reply_time, raw
  FROM products WHERE domain_id = %s AND asin = ANY(%s) AND reply_time IS NOT NULL
"""

# What is being asked for, or was given up, is left alone; an answer stays until the next.
# Whoever wants a new one must have seen the last: it may have come in just now.
WANT: Final[LiteralString] = """
INSERT INTO products (domain_id, asin, state, operation, parameters, unit_tokens)
VALUES (%s, %s, 'wanted', %s, %s, %s)
ON CONFLICT (domain_id, asin) DO UPDATE SET
    state = 'wanted', operation = EXCLUDED.operation, parameters = EXCLUDED.parameters,
    unit_tokens = EXCLUDED.unit_tokens, wanted_at = now(), attempts = 0, not_before = now()
WHERE products.state IN ('known', 'no_data') AND products.reply_time IS NOT DISTINCT FROM %s
"""

# One call can only ask for products of one site with the same parameters.
NEXT: Final[LiteralString] = """
SELECT domain_id, operation, parameters, unit_tokens
  FROM products
 WHERE state IN ('wanted', 'claimed') AND not_before <= now()
   AND (state = 'wanted' OR claim_expires < now())
 ORDER BY wanted_at
 LIMIT 1
"""

COUNT: Final[LiteralString] = """
SELECT count(*) FROM (
    SELECT FROM products
     WHERE state IN ('wanted', 'claimed') AND not_before <= now()
       AND (state = 'wanted' OR claim_expires < now())
       AND domain_id = %s AND operation = %s AND parameters = %s
     LIMIT %s) AS wanted
"""

CLAIM: Final[LiteralString] = """
WITH next AS (
    SELECT domain_id, asin FROM products
     WHERE state IN ('wanted', 'claimed') AND not_before <= now()
       AND (state = 'wanted' OR claim_expires < now())
       AND domain_id = %(domain_id)s AND operation = %(operation)s
       AND parameters = %(parameters)s
     ORDER BY wanted_at, asin
     LIMIT %(units)s
       FOR UPDATE SKIP LOCKED)
UPDATE products p
   SET attempts = p.attempts + (p.state = 'claimed')::integer, state = 'claimed',
       fence = p.fence + 1, holder = %(holder)s,
       claim_expires = now() + %(ttl_s)s * interval '1 second'
  FROM next
 WHERE p.domain_id = next.domain_id AND p.asin = next.asin
RETURNING p.asin, p.fence, p.attempts
"""

# What is locked is being written by the holder itself; waiting for it could deadlock.
RENEW: Final[LiteralString] = """
WITH mine AS (
    SELECT domain_id, asin FROM products
     WHERE holder = %s AND state = 'claimed'
       FOR UPDATE SKIP LOCKED)
UPDATE products p SET claim_expires = now() + %s * interval '1 second'
  FROM mine
 WHERE p.domain_id = mine.domain_id AND p.asin = mine.asin
"""

RELEASE: Final[LiteralString] = """
UPDATE products
   SET state = %s, error = %s, attempts = attempts + %s, holder = NULL, claim_expires = NULL,
       not_before = now() + %s * interval '1 second'
 WHERE domain_id = %s AND asin = %s AND state = 'claimed' AND fence = %s
"""

# An answer is paid for and true whoever holds the claim by now; a newer one stays.
STORE: Final[LiteralString] = """
UPDATE products
   SET state = %s, holder = NULL, claim_expires = NULL, attempts = 0, error = %s,
       known_by = parameters, raw = %s, last_update = %s, reply_time = %s
 WHERE domain_id = %s AND asin = %s
   AND (reply_time IS NULL OR reply_time <= %s)
"""


@dataclass(frozen=True, slots=True)
class KnownProduct:
    """The last answer about a product; times in Unix ms."""

    parameters: Mapping[str, int]
    last_update_ms: int | None
    reply_time_ms: int
    raw: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Request:
    """What a product call asks for, and its believed price per product."""

    domain_id: int
    operation: str
    parameters: Mapping[str, int]
    unit_tokens: int


@dataclass(frozen=True, slots=True)
class ProductClaim:
    """The right to ask for one product."""

    domain_id: int
    asin: str
    fence: int
    attempts: int


def known_products(
    connection: Connection, domain_id: int, asins: Sequence[str]
) -> dict[str, KnownProduct]:
    """What is known of *asins*, by ASIN."""
    return {
        asin: KnownProduct(known_by, unix_ms(last_update), unix_ms(reply_time) or 0, raw)
        for asin, known_by, last_update, reply_time, raw in connection.execute(
            KNOWN, (domain_id, list(asins))
        )
    }


def want_products(
    connection: Connection, request: Request, wanted: Mapping[str, int | None]
) -> None:
    """Have details bought of the ASINs in *wanted*.

    Each with the reply time, in Unix ms, of the last answer known to the caller.
    """
    parameters = Jsonb(dict(request.parameters))
    rows = [
        (
            request.domain_id,
            asin,
            request.operation,
            parameters,
            request.unit_tokens,
            instant(wanted[asin]),
        )
        for asin in sorted(wanted)
    ]
    if rows:
        with connection.pipeline(), connection.cursor() as cursor:
            cursor.executemany(WANT, rows)


def next_request(connection: Connection) -> Request | None:
    """The call that would be made now, without claiming anything."""
    row = connection.execute(NEXT).fetchone()
    return None if row is None else Request(*row)


def count_wanted(connection: Connection, request: Request, *, most: int) -> int:
    """How many products wait for such a call, counted up to *most*."""
    row = connection.execute(COUNT, (*_kind(request), most)).fetchone()
    return 0 if row is None else int(row[0])


def claim_products(
    connection: Connection, request: Request, *, units: int, holder: str, ttl_s: float
) -> list[ProductClaim]:
    """Claim up to *units* products for one call."""
    domain_id, operation, parameters = _kind(request)
    rows = connection.execute(
        CLAIM,
        {
            "domain_id": domain_id,
            "operation": operation,
            "parameters": parameters,
            "units": units,
            "holder": holder,
            "ttl_s": ttl_s,
        },
    )
    return sorted(
        (ProductClaim(request.domain_id, *row) for row in rows), key=lambda claim: claim.asin
    )


def renew_products(connection: Connection, *, holder: str, ttl_s: float) -> None:
    """Extend every claim of a living *holder*."""
    connection.execute(RENEW, (holder, ttl_s))


def release_products(
    connection: Connection, claims: Iterable[ProductClaim], *, delay_s: float = 0.0
) -> None:
    """Give products back unharmed."""
    rows = [("wanted", None, 0, delay_s, *_key(claim)) for claim in claims]
    _execute_all(connection, RELEASE, rows)


def fail_products(
    connection: Connection,
    claims: Iterable[ProductClaim],
    error: str,
    *,
    attempts_max: int,
    delay_s: float,
) -> None:
    """Count a failed try; after *attempts_max* of them a product is set aside."""
    rows = [
        (
            "dead" if claim.attempts + 1 >= attempts_max else "wanted",
            error,
            1,
            delay_s,
            *_key(claim),
        )
        for claim in claims
    ]
    _execute_all(connection, RELEASE, rows)


def store_products(
    connection: Connection, products: Iterable[Product], *, reply_time_ms: int
) -> None:
    """Keep what Keepa answered at *reply_time_ms*; "no data" is an answer too."""
    reply_time = instant(reply_time_ms)
    rows = [
        (
            "known" if product.no_data is None else "no_data",
            product.no_data,
            as_jsonb(product.raw),
            instant(product.last_update_ms),
            reply_time,
            product.domain_id,
            product.asin,
            reply_time,
        )
        for product in sorted(products, key=lambda product: product.asin)
    ]
    _execute_all(connection, STORE, rows)


def _kind(request: Request) -> tuple[int, str, Jsonb]:
    return request.domain_id, request.operation, Jsonb(dict(request.parameters))


def _key(claim: ProductClaim) -> tuple[Any, ...]:
    return claim.domain_id, claim.asin, claim.fence


def _execute_all(
    connection: Connection, statement: LiteralString, rows: Sequence[tuple[Any, ...]]
) -> None:
    if rows:
        with connection.pipeline(), connection.cursor() as cursor:
            cursor.executemany(statement, rows)
