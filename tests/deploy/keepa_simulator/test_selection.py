"""Selections parse as users paste them; refusals give the right reason."""

import json
from typing import Any

import pytest

from deploy.keepa_simulator.selection import SelectionError, parse_selection

BASE: dict[str, Any] = {"domainId": 1, "priceTypes": [2]}


def test_numbers_may_be_strings() -> None:
    """Numbers in text parse: Keepa's own page shows "domainId": "1" and "dateRange": "3"."""
    wanted = parse_selection('{"domainId": "1", "priceTypes": ["2"], "dateRange": "3"}')

    assert (wanted.domain, wanted.price_type, wanted.date_range) == (1, 2, 3)


def test_open_end_has_no_bound() -> None:
    """-1 stands for the largest number."""
    fields = BASE | {"isRangeEnabled": True, "salesRankRange": [5000, -1]}

    assert parse_selection(json.dumps(fields)).sales_rank_range == (5000, 2**31 - 1)


@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        ({"priceTypes": [2]}, 400, "domainId"),
        ({"domainId": 1}, 400, "priceTypes"),
        (BASE | {"priceTypes": [1, 2]}, 400, "priceTypes"),
        (BASE | {"priceTypes": [99]}, 405, "priceTypes"),
        (BASE | {"domainId": 7}, 405, "domainId"),
        (BASE | {"page": -1}, 405, "page"),
        (BASE | {"sortType": "best"}, 400, "sortType"),
        (BASE | {"isRangeEnabled": True, "currentRange": [1]}, 400, "currentRange"),
        (BASE | {"excludeCategories": list(range(501))}, 405, "excludeCategories"),
        ([1], 400, "object"),
    ],
)
def test_refusal_names_the_field(fields: Any, status: int, word: str) -> None:
    """A selection that Keepa would refuse is refused, with the reason."""
    with pytest.raises(SelectionError) as caught:
        parse_selection(json.dumps(fields))

    assert caught.value.status == status
    assert word in caught.value.details


def test_text_that_is_no_json_is_refused() -> None:
    """A truncated selection is malformed."""
    with pytest.raises(SelectionError, match="not JSON"):
        parse_selection('{"domainId"')
