"""Databases as version 0.1 left them: one row for each product, whatever its price type.

Query "used" asks for used prices over 90 days and "new" for new ones; "fresh" asks for used
prices over 24 hours and "ranks" for sales ranks. Row n was last written by "used" if n is
even, else by "new"; every tenth row was judged by the other of the two as well, every
twentieth by "fresh". Every hundredth row was last written by "ranks".
"""

import json
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psycopg
import yoyo
from psycopg.types.json import Jsonb

from fetcher.postgres.schema import MIGRATIONS
from tests.fetcher.keepa_pages import NOON_MS, row

FIRST: Final = "0001"
# price type, date range
QUERIES: Final = {"used": (2, 3), "new": (1, 3), "fresh": (2, 0), "ranks": (3, 3)}

SCAN: Final = """
INSERT INTO scans (query, selection_hash, selection, sort_type, kind, background, plan, state)
VALUES (%s, 'hash', %s, 1, 'full', false, '{}', 'completed')
"""

# Prices by type: used 1000 + n, new 2000 + n; the placeholders stand for them in the row.
DEALS: Final = """
INSERT INTO deals (domain_id, asin, price_type, date_range, title, root_category, categories,
                   price_minor, average_minor, drop_minor, drop_percent, rank, rating, reviews,
                   last_update, creation_time, price_since, raw, reply_time)
SELECT 1, 'B' || lpad(n::text, 9, '0'), type, 3, 'Product ' || n, 283155, '{283155}',
       CASE type WHEN 2 THEN 1000 + n WHEN 1 THEN 2000 + n ELSE 5000 END,
       3000 + n, CASE type WHEN 2 THEN 2000 ELSE 1000 END, 40, 5000, 45, 60,
       %(noon)s, %(noon)s, %(noon)s,
       replace(replace(replace(%(raw)s, '"@used"', (1000 + n)::text),
                       '"@new"', (2000 + n)::text),
               '@asin', 'B' || lpad(n::text, 9, '0'))::jsonb,
       %(noon)s
  FROM (SELECT n, CASE WHEN n %% 100 = 99 THEN 3 ELSE 2 - n %% 2 END AS type
          FROM generate_series(%(first)s::int, %(last)s::int) n) numbered
"""

# (query, the rows that it has judged)
JUDGED: Final = (
    ("used", "price_type = 2 OR n % 10 = 1"),
    ("new", "price_type = 1 OR n % 10 = 2"),
    ("fresh", "n % 20 = 4"),
    ("ranks", "price_type = 3"),
)

VERDICTS: Final = """
INSERT INTO verdicts (query, domain_id, asin, stage, state, failures, rule_version, reply_time,
                      scan_id)
SELECT %(query)s, domain_id, asin, %(stage)s, 'accepted', '[]', 'a version', reply_time,
       CASE WHEN n % 3 > 0 THEN (SELECT id FROM scans WHERE query = %(query)s) END
  FROM (SELECT *, substr(asin, 2)::int AS n FROM deals) d
 WHERE
"""

PRODUCTS: Final = """
INSERT INTO products (domain_id, asin, state, operation, parameters, unit_tokens, known_by, raw,
                      last_update, reply_time)
SELECT domain_id, asin, 'known', 'product', '{"stats": 90, "history": 0}', 1,
       '{"stats": 90, "history": 0}', jsonb_build_object('asin', asin), last_update, reply_time
  FROM deals WHERE substr(asin, 2)::int % 20 = 0
"""


def apply_migrations(database_url: str, *numbers: str, again: bool = False) -> None:
    """Applies the migrations with these *numbers*; *again* as if they had not been recorded."""
    url = urlunsplit(urlsplit(database_url)._replace(scheme="postgresql+psycopg"))
    backend = yoyo.get_backend(url)
    try:
        migrations = yoyo.read_migrations(str(MIGRATIONS)).filter(
            lambda migration: migration.id.startswith(numbers)
        )
        if again:
            backend.unmark_migrations(migrations)
        backend.apply_migrations(backend.to_apply(migrations))
    finally:
        backend.connection.close()


def fill_first_schema(database_url: str, rows: int, *, batch: int = 50_000) -> None:
    """Makes tables of version 0.1 with so many *rows* of deals, and what belongs to them."""
    apply_migrations(database_url, FIRST)
    template = row(0, title="@asin and what it is called", asin="@asin")
    template["current"] = ["@new" if t == 1 else "@used" if t == 2 else -1 for t in range(34)]
    template["current"][3] = 5000
    with psycopg.connect(database_url, autocommit=True) as connection:
        noon = connection.execute("SELECT to_timestamp(%s)", (NOON_MS / 1000,)).fetchone()
        assert noon is not None
        for name, (price_type, date_range) in QUERIES.items():
            selection = {"priceTypes": [str(price_type)], "dateRange": date_range}
            connection.execute(SCAN, (name, Jsonb(selection)))
        for first in range(0, rows, batch):
            connection.execute(
                DEALS,
                {
                    "first": first,
                    "last": min(first + batch, rows) - 1,
                    "noon": noon[0],
                    "raw": json.dumps(template),
                },
            )
        for query, judged in JUDGED:
            statement = VERDICTS.replace("%", "%%").replace("%%(", "%(") + judged.replace(
                "%", "%%"
            )
            connection.execute(statement.encode(), {"query": query, "stage": "deal"})
        connection.execute(PRODUCTS)
        connection.execute("ANALYZE")
