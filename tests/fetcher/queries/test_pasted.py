"""What people paste into a query file is taken as it is, or refused with what to change."""

import json
from urllib.parse import quote

import pytest

from fetcher.queries.query import DealQuery, QueryError, parse_query

SELECTION = {"page": 0, "domainId": "3", "priceTypes": [1], "isRangeEnabled": True,
             "deltaPercentRange": [20, 80], "titleSearch": "100% Hörbuch"}  # fmt: skip
TEXT = json.dumps(SELECTION)
SECRET = "0123456789abcdef" * 4


def read(text: str) -> DealQuery:
    """The query in *text*."""
    return parse_query("pasted", text)


def refusal(text: str) -> str:
    """Why *text* is refused."""
    with pytest.raises(QueryError) as caught:
        read(text)
    return str(caught.value)


def notes(**changes: object) -> str:
    """What is noted about the selection with *changes*."""
    return " ".join(read(json.dumps(SELECTION | changes)).warnings)


@pytest.mark.parametrize(
    "text",
    [
        f"https://keepa.com/#!deals/{quote(TEXT)}",
        f"https://keepa.com/#!deals/{quote(TEXT, safe='')}\n",
        "https://keepa.com/#!deals/" + TEXT.replace("%", "%25"),
        f"https://www.keepa.com/#!deals/{quote(TEXT)}",
        f"https://api.keepa.com/deal?key={SECRET}&selection={quote(TEXT)}",
        f"curl 'https://api.keepa.com/deal?key={SECRET}&selection={quote(TEXT)}' --compressed",
        f'curl -s "https://api.keepa.com/deal?selection={quote(TEXT)}&key={SECRET}"',
        f"selection={TEXT}",
        f"selection={quote(TEXT)}",
        f"const queryJSON = {TEXT};",
        "\ufeff" + TEXT,
    ],
    ids=["page", "encoded", "plain page", "www", "api", "curl", "curl first", "prefix",
         "encoded prefix", "assigned", "mark"],
)  # fmt: skip
def test_an_address_or_a_call_is_taken_as_the_selection_in_it(text: str) -> None:
    """The key in it stays out of the query."""
    query = read(text)

    assert query.selection == SELECTION
    assert SECRET not in repr(query) + query.explain()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (TEXT[:-1] + ",}", "remove the comma"),
        (TEXT.replace('"domainId"', "\u201cdomainId\u201d"), "typographic quotes"),
        (str(SELECTION), "this is Python"),
        ("# mine\n" + TEXT, "no comments"),
        ("Here it is: " + TEXT, "begins with {"),
        ("https://keepa.com/#!product/3-B000000001", "holds no selection"),
        (f"https://example.com/#!deals/{quote(TEXT)}", "none of keepa.com"),
        (f"https://keepa.com.evil.example/#!deals/{quote(TEXT)}", "none of keepa.com"),
        (f"https://api.keepa.com/token?key={SECRET}", "holds no selection"),
        (f"curl 'https://api.keepa.com/deal?key={SECRET}&selection=%7Bx'", "not JSON"),
    ],
    ids=["comma", "quotes", "python", "comment", "words", "product", "host", "suffix", "token",
         "cut"],
)  # fmt: skip
def test_what_is_no_json_is_refused_with_a_hint(text: str, hint: str) -> None:
    """In one line, without the key."""
    said = refusal(text)

    assert hint in said
    assert SECRET not in said


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"deltaPercentRange": [80, 20]}, "swapped; write [lowest, highest]: [20, 80]"),
        ({"deltaPercentRange": [10.5, 20]}, "two whole numbers"),
        ({"priceTypes": 0}, "write a list of exactly one: [0]"),
        ({"priceTypes": [0, 1]}, "exactly one"),
        ({"sortType": -1}, "can't invert deal age"),
    ],
    ids=["swapped", "fraction", "bare type", "two types", "inverted age"],
)
def test_a_wrong_value_is_refused_with_the_right_one(
    changes: dict[str, object], hint: str
) -> None:
    """Nothing is guessed that would cost tokens."""
    assert hint in refusal(json.dumps(SELECTION | changes))


def test_ranges_may_be_texts_and_whole_floats() -> None:
    """As form fields have them."""
    assert notes(deltaPercentRange=["20", 80.0]) == ""


@pytest.mark.parametrize("key", ["deltaPercentRange", "deltaRange", "deltaLastRange"])
def test_a_negative_range_is_noted_as_a_rise(key: str) -> None:
    """Other programs mean a drop by it."""
    said = notes(**{key: [-100, -10]})

    assert f"{key} [-100, -10] asks for rises" in said
    assert "write [10, 100] for drops" in said


@pytest.mark.parametrize("ends", [[-1, -1], [10, 100], [-50, 50], [0, 100], [20, -1]])
def test_other_ranges_are_not_noted_as_rises(ends: list[int]) -> None:
    """-1 is Keepa's word for an open end."""
    assert "rises" not in notes(deltaRange=ends)


@pytest.mark.parametrize(("rating", "noted"), [(4, True), ("5", True), (40, False), (-1, False)])
def test_a_rating_in_stars_is_noted(rating: object, *, noted: bool) -> None:
    """Keepa counts tenths of stars."""
    assert ("Keepa counts in tenths" in notes(minRating=rating)) is noted
