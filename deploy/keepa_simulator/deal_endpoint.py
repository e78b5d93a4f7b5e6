"""GET or POST /deal: pages of deals, cached as Keepa caches them."""

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from deploy.keepa_simulator.catalogue import Catalogue
from deploy.keepa_simulator.deal_query import answer
from deploy.keepa_simulator.deal_row import row_text
from deploy.keepa_simulator.exchange import Answer, Query, RequestError, Written
from deploy.keepa_simulator.keepa_time import even_keepa_minutes
from deploy.keepa_simulator.listing import RowText
from deploy.keepa_simulator.selection import Selection, SelectionError, parse_selection
from deploy.keepa_simulator.taxonomy import ROOT_NAMES

# The price of a page, also of an empty one past the end.
PAGE_COST: Final = 5
# Maximum number of cached selections.
_CACHED_MAX: Final = 64
_NO_ORDER: Final = 0


@dataclass(frozen=True, slots=True)
class _CachedPage:
    """A cached page; it shares the texts of the rows with the catalogue."""

    read_at_ms: int
    category_counts: dict[int, int]
    rows: list[tuple[int, str, int, int]]
    texts: list[RowText]

    def written(self) -> Written:
        """The ``deals`` object of the reply."""
        roots = list(self.category_counts)
        counts = json.dumps(list(self.category_counts.values()))
        names = json.dumps([ROOT_NAMES[root] for root in roots])
        rows = ", ".join(
            f"{head}{creation_date}{tail}"
            for (_, _, _, creation_date), (head, tail) in zip(self.rows, self.texts, strict=True)
        )
        return Written(
            f'{{"categoryCount": {counts}, "categoryIds": {json.dumps(roots)}, '
            f'"categoryNames": {names}, "dr": [{rows}], "drDateIndex": []}}'
        )


class DealEndpoint:
    """Answers selections.

    The cache holds a reply per selection and page, so page 0 may be fresh while page 1 is
    not. (Inferred: recorded pages a minute apart overlap, so Keepa doesn't keep one result
    for all pages.)

    Args:
        catalogue: Returns the catalogue of a domain.
        cache_ms: Lifetime of a cached reply.
    """

    def __init__(self, catalogue: Callable[[int], Catalogue], cache_ms: int) -> None:
        self._catalogue = catalogue
        self._cache_ms = cache_ms
        self._pages: OrderedDict[Selection, _CachedPage] = OrderedDict()

    def answer(self, query: Query, *, ignore_order: bool = False) -> Answer:
        """The page that the ``selection`` parameter, or the body of a POST, asks for.

        Raises:
            RequestError: Keepa would refuse the selection.
        """
        text = query.body or query.parameters.get("selection")
        if not text:
            raise RequestError(400, "selection is missing")
        try:
            wanted = parse_selection(text)
        except SelectionError as exc:
            raise RequestError(exc.status, exc.details) from exc
        page = None if ignore_order else self._cached(wanted, query.now_ms)
        cached = page is not None
        if page is None:
            page = self._read(wanted, query.now_ms, ignore_order=ignore_order)
        fields = {"deals": page.written(), "dealsCached": cached}
        return Answer(fields, PAGE_COST, rows=page.rows)

    def _cached(self, wanted: Selection, now_ms: int) -> _CachedPage | None:
        page = self._pages.get(wanted)
        if page is None or now_ms - page.read_at_ms >= self._cache_ms:
            return None
        return page

    def _read(self, wanted: Selection, now_ms: int, *, ignore_order: bool) -> _CachedPage:
        catalogue = self._catalogue(wanted.domain)
        catalogue.advance(now_ms)
        now = even_keepa_minutes(now_ms)
        found = answer(catalogue.deals, wanted, now, sort_type=_NO_ORDER if ignore_order else None)
        rows = [
            (
                wanted.domain,
                deal.facts.asin,
                deal.last_update,
                deal.figures(wanted.price_type).since,
            )
            for deal in found.deals
        ]
        texts = [row_text(deal) for deal in found.deals]
        page = _CachedPage(now_ms, found.category_counts, rows, texts)
        if not ignore_order:
            self._pages[wanted] = page
            self._pages.move_to_end(wanted)
            if len(self._pages) > _CACHED_MAX:
                self._pages.popitem(last=False)
        return page
