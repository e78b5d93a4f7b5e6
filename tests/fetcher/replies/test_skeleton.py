"""The top level of replies, read while they stream by."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.replies.envelope import Envelope
from fetcher.replies.skeleton import KEPT_BYTES_MAX, Skeleton

NESTED = {"a": 'x\\"}{[', "b": [1, 2, [3, 'é\\"]']]}
REPLY: dict[str, Any] = {
    "timestamp": 1_758_325_044_347,
    "products": [NESTED] * 3,
    "tokensLeft": -3,
    "title": 'a"b\\',
    "error": {"type": "t", "details": ["x", {"y": 1}]},
    "refillIn": 5,
    "refillRate": 5,
    "tokensConsumed": 7,
    "tokenFlowReduction": 0.5,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def fed(body: bytes, size: int) -> Skeleton:
    """A skeleton that took *body* in pieces of *size* bytes."""
    skeleton = Skeleton()
    for start in range(0, len(body), size):
        skeleton.feed(body[start : start + size])
    return skeleton


def top_level(value: dict[str, Any]) -> dict[str, Any]:
    """What a skeleton keeps of *value*."""
    return {
        name: None if isinstance(it, dict | list) and name != "error" else it
        for name, it in value.items()
    }


@given(
    value=st.dictionaries(st.text() | st.just("error"), JSON),
    size=st.integers(1, 40),
    ascii_only=st.booleans(),
)
def test_the_top_level_is_kept(*, value: dict[str, Any], size: int, ascii_only: bool) -> None:
    """Whatever the reply holds and however it is cut into pieces."""
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    skeleton = fed(body, size)

    assert skeleton.is_complete
    assert skeleton.fields == top_level(json.loads(body))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_cut_reply_keeps_its_whole_fields(size: int) -> None:
    """Where it is cut is no matter: a field counts only if all of it came."""
    body = json.dumps(REPLY).encode()
    for cut in range(1, len(body) - 1):
        skeleton = fed(body[:cut], size)
        fields = skeleton.fields or {}

        assert not skeleton.is_complete
        assert fields == {name: top_level(REPLY)[name] for name in fields}


def test_the_envelope_counts_as_soon_as_it_is_whole() -> None:
    """A reply that begins with it is settled before its products have come."""
    fields = {name: it for name, it in REPLY.items() if name not in {"products", "error"}}
    body = json.dumps({**fields, "products": [NESTED] * 1000}).encode()
    skeleton = fed(body[:2000], 100)

    assert skeleton.has_envelope
    assert Envelope.from_body(skeleton.fields) == Envelope(1_758_325_044_347, 0, -3, 7, 5, 5, 0.5)


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b"}}}", b'"x"', b"null", b"{]"])
def test_what_is_no_object_has_no_fields(body: bytes) -> None:
    """Nor is it an error."""
    assert fed(body, 3).fields in (None, {})


def test_memory_is_bounded() -> None:
    """A top level that is no reply's is given up, and a deep one costs its depth only."""
    wide, deep = Skeleton(), Skeleton()
    for number in range(20_000):
        wide.feed(b'{"x": 0' if not number else f', "field{number}": "{number}"'.encode())
        deep.feed(b'{"x":' if not number else b"[" * 100)

    assert wide.fields is None
    assert len(deep._kept) < KEPT_BYTES_MAX
