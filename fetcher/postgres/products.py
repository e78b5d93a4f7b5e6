"""Details of products: what is wanted, who asks for it, what came of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

from psycopg.types.json import Jsonb

from fetcher.postgres.claims import PRODUCT_WORK, claim_statement
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
NEXT: Final[LiteralString] = f"""
SELECT w.domain_id, w.operation, w.parameters, w.unit_tokens
  FROM products w
 WHERE {PRODUCT_WORK.is_open}
 ORDER BY w.wanted_at
 LIMIT 1
"""  # noqa: S608 - every part is a constant

CANDIDATES: Final[LiteralString] = f"""
SELECT w.domain_id, w.asin
  FROM products w
 WHERE {PRODUCT_WORK.is_open}
   AND w.domain_id = %(domain_id)s AND w.operation = %(operation)s
   AND w.parameters = %(parameters)s
 ORDER BY w.wanted_at, w.asin
 LIMIT %(units)s
"""  # noqa: S608 - every part is a constant

COUNT: Final[LiteralString] = f"SELECT count(*) FROM ({CANDIDATES}) AS wanted"  # noqa: S608 - as above

CLAIM: Final = claim_statement(PRODUCT_WORK, CANDIDATES, "w.asin, w.fence, w.attempts")

# An answer is paid for and true whichever process holds the claim by now; a newer one stays.
# So does a question that has changed meanwhile: this is not its answer.
STORE: Final[LiteralString] = """
UPDATE products
   SET state = %s, holder = NULL, claim_expires = NULL, attempts = 0, error = %s,
       known_by = parameters, raw = %s, last_update = %s, reply_time = %s
 WHERE domain_id = %s AND asin = %s AND parameters = %s
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
    """The right to ask for one product; see `claims`."""

    domain_id: int
    asin: str
    fence: int
    attempts: int

    @property
    def key(self) -> tuple[int, str]:
        """Its row in the table of products."""
        return self.domain_id, self.asin


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


def next_request(connection: Connection, *, take_over: bool = True) -> Request | None:
    """The call that would be made now, without claiming anything."""
    row = connection.execute(NEXT, {"take_over": take_over}).fetchone()
    return None if row is None else Request(*row)


def count_wanted(
    connection: Connection, request: Request, *, most: int, take_over: bool = True
) -> int:
    """How many products wait for such a call, counted up to *most*."""
    values = _asked(request) | {"units": most, "take_over": take_over}
    row = connection.execute(COUNT, values).fetchone()
    return 0 if row is None else int(row[0])


def claim_products(
    connection: Connection,
    request: Request,
    *,
    units: int,
    holder: str,
    ttl_s: float,
    take_over: bool = True,
) -> list[ProductClaim]:
    """Claim up to *units* products for one call, for *ttl_s* seconds; in order of ASIN.

    With *take_over* also products whose claim has expired.
    """
    values = _asked(request) | {
        "units": units,
        "holder": holder,
        "ttl_s": ttl_s,
        "take_over": take_over,
    }
    rows = connection.execute(CLAIM, values)
    return sorted(
        (ProductClaim(request.domain_id, *row) for row in rows), key=lambda claim: claim.asin
    )


def store_products(
    connection: Connection, request: Request, products: Iterable[Product], *, reply_time_ms: int
) -> None:
    """Keep what Keepa answered to *request* at *reply_time_ms*; "no data" is an answer too."""
    reply_time = instant(reply_time_ms)
    parameters = Jsonb(dict(request.parameters))
    rows = [
        (
            "known" if product.no_data is None else "no_data",
            product.no_data,
            as_jsonb(product.raw),
            instant(product.last_update_ms),
            reply_time,
            product.domain_id,
            product.asin,
            parameters,
            reply_time,
        )
        for product in sorted(products, key=lambda product: product.asin)
    ]
    _execute_all(connection, STORE, rows)


def _asked(request: Request) -> dict[str, Any]:
    return {
        "domain_id": request.domain_id,
        "operation": request.operation,
        "parameters": Jsonb(dict(request.parameters)),
    }


def _execute_all(
    connection: Connection, statement: LiteralString, rows: Sequence[tuple[Any, ...]]
) -> None:
    if rows:
        with connection.pipeline(), connection.cursor() as cursor:
            cursor.executemany(statement, rows)
