"""Details of products: which are wanted, which process fetches them, what Keepa answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from fetcher.postgres.claims import PRODUCT_WORK, claim_statement
from fetcher.postgres.database import Connection, execute_each, instant, unix_ms
from fetcher.postgres.deals import as_jsonb
from fetcher.postgres.history import write_points
from fetcher.postgres.records import PRODUCT, to_jsonb
from fetcher.queries.judging import DetailsRequest, KnownProduct
from fetcher.queries.query import DealQuery
from fetcher.replies.history import parse_history, without_history
from fetcher.replies.products import FACTS_REVISION, Product, parse_product

# The details as they were parsed when they came in. Only those that another revision of the
# parser has read are parsed again: for each deal of each page that would be too slow.
KNOWN: Final[LiteralString] = """
SELECT asin, known_by, last_update, reply_time,
       CASE WHEN facts_revision = %(revision)s THEN facts END,
       CASE WHEN facts_revision IS DISTINCT FROM %(revision)s THEN raw END
  FROM products
 WHERE domain_id = %(domain_id)s AND asin = ANY(%(asins)s) AND reply_time IS NOT NULL
"""

# A product that is being fetched, or was given up, stays as it is; an answer stays until the
# next. A caller that wants a new answer must have read the last: it may have come just now.
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

CLAIM: Final = claim_statement(
    PRODUCT_WORK, CANDIDATES, "w.domain_id, w.asin, w.fence, w.attempts"
)

# An answer is paid for and true, even if another process holds the claim by now. It replaces
# no newer answer, and answers no request that has changed meanwhile.
STORE: Final[LiteralString] = """
UPDATE products
   SET state = %s, holder = NULL, claim_expires = NULL, attempts = 0, error = %s,
       known_by = parameters, raw = %s, facts = %s, facts_revision = %s,
       last_update = %s, reply_time = %s
 WHERE domain_id = %s AND asin = %s AND parameters = %s
   AND (reply_time IS NULL OR reply_time <= %s)
"""


@dataclass(frozen=True, slots=True)
class ProductClaim:
    """The right to fetch one product; see `claims`."""

    domain_id: int
    asin: str
    fence: int
    attempts: int

    @property
    def key(self) -> tuple[int, str]:
        """Its row in the table of products."""
        return self.domain_id, self.asin


def known_products(
    connection: Connection, query: DealQuery, asins: Sequence[str]
) -> dict[str, KnownProduct]:
    """Returns the stored details of *asins*, by ASIN; none if *query* wants no details."""
    if query.enrichment is None:
        return {}
    values = {
        "revision": FACTS_REVISION,
        "domain_id": query.domain_id,
        "asins": list(asins),
    }
    return {
        asin: KnownProduct(
            parameters=known_by,
            last_update_ms=unix_ms(last_update),
            reply_time_ms=unix_ms(reply_time) or 0,
            product=PRODUCT.validate_python(facts)
            if raw is None
            else parse_product(raw, domain_id=query.domain_id),
        )
        for asin, known_by, last_update, reply_time, facts, raw in connection.execute(
            KNOWN, values
        )
    }


def want_products(
    connection: Connection, request: DetailsRequest, wanted: Mapping[str, int | None]
) -> None:
    """Marks the ASINs in *wanted* for buying their details.

    The values are the reply times, in Unix ms, of the last answers that the caller has read.
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
    execute_each(connection, WANT, rows)


def next_request(connection: Connection, *, take_over: bool = True) -> DetailsRequest | None:
    """Returns the call that would be made now, without claiming anything."""
    with connection.cursor(row_factory=class_row(DetailsRequest)) as cursor:
        return cursor.execute(NEXT, {"take_over": take_over}).fetchone()


def count_wanted(
    connection: Connection, request: DetailsRequest, *, most: int, take_over: bool = True
) -> int:
    """Counts the products that wait for such a call, up to *most*."""
    values = _asked(request) | {"units": most, "take_over": take_over}
    row = connection.execute(COUNT, values).fetchone()
    return 0 if row is None else int(row[0])


def claim_products(
    connection: Connection,
    request: DetailsRequest,
    *,
    units: int,
    holder: str,
    ttl_s: float,
    take_over: bool = True,
) -> list[ProductClaim]:
    """Claims up to *units* products for one call, for *ttl_s* seconds; in order of ASIN.

    With *take_over* also products with expired claims.
    """
    values = _asked(request) | {
        "units": units,
        "holder": holder,
        "ttl_s": ttl_s,
        "take_over": take_over,
    }
    with connection.cursor(row_factory=class_row(ProductClaim)) as cursor:
        return sorted(cursor.execute(CLAIM, values), key=lambda claim: claim.asin)


def store_products(
    connection: Connection,
    request: DetailsRequest,
    products: Sequence[Product],
    raws: Mapping[str, Mapping[str, object]],
    *,
    reply_time_ms: int,
) -> None:
    """Stores Keepa's answer to *request* at *reply_time_ms*, with its *raws* by ASIN.

    "No data" is an answer too. Price histories are stored apart.
    """
    reply_time = instant(reply_time_ms)
    parameters = Jsonb(dict(request.parameters))
    rows = [
        (
            "known" if product.no_data is None else "no_data",
            product.no_data,
            as_jsonb(without_history(raws[product.asin])),
            to_jsonb(PRODUCT, product),
            FACTS_REVISION,
            instant(product.last_update_ms),
            reply_time,
            product.domain_id,
            product.asin,
            parameters,
            reply_time,
        )
        for product in sorted(products, key=lambda product: product.asin)
    ]
    execute_each(connection, STORE, rows)
    points = [
        point
        for product in sorted(products, key=lambda product: product.asin)
        for point in parse_history(raws[product.asin], domain_id=product.domain_id)
    ]
    write_points(connection, points, source="product")


def _asked(request: DetailsRequest) -> dict[str, Any]:
    return {
        "domain_id": request.domain_id,
        "operation": request.operation,
        "parameters": Jsonb(dict(request.parameters)),
    }
