"""Conversions of the pure modules' values to jsonb and back."""

from typing import Any, Final

from psycopg.types.json import Jsonb
from pydantic import TypeAdapter

from fetcher.queries.profit import ProfitEstimate
from fetcher.queries.rules import RuleFailure
from fetcher.replies.products import Product
from fetcher.scans.intervals import Yield
from fetcher.scans.page_facts import PageFacts
from fetcher.scans.plan import Gap, ScanPlan

PLAN: Final = TypeAdapter(ScanPlan)
FACTS: Final = TypeAdapter(PageFacts)
GAPS: Final = TypeAdapter(tuple[Gap, ...])
FAILURES: Final = TypeAdapter(tuple[RuleFailure, ...])
YIELD: Final = TypeAdapter(Yield)
PRODUCT: Final = TypeAdapter(Product)
PROFIT: Final = TypeAdapter(ProfitEstimate)


def to_jsonb(adapter: TypeAdapter[Any], value: object) -> Jsonb:
    """Returns *value* as a jsonb parameter."""
    return Jsonb(adapter.dump_python(value, mode="json"))
