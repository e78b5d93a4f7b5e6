"""Requests that make no sense are refused, with the field named."""

from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from broker.core.leases import LeaseRequest, Outcome, Priority
from broker.rpc import requests
from broker.rpc.requests import InvalidRequestError, Ttl
from protos.tokenbroker.v1 import token_broker_pb2 as pb

ACQUIRE: Mapping[str, Any] = {
    "lease_id": "a",
    "holder": "h",
    "operation": "deal",
    "units": 3,
    "min_units": 1,
    "tokens_per_unit": 5.0,
    "priority": pb.PRIORITY_HIGH,
}
SETTLE: Mapping[str, Any] = {
    "lease_id": "a",
    "epoch": 7,
    "holder": "h",
    "operation": "deal",
    "units": 3,
    "tokens": 15,
    "outcome": pb.OUTCOME_REPLIED,
    "envelope": pb.Envelope(tokens_left=5, refill_rate=5),
}


def acquire(patience_ms: int | None = None, **changes: Any) -> LeaseRequest:
    """Reads an AcquireLease at 1000 ms of the broker's clock."""
    request = pb.AcquireLeaseRequest(**{**ACQUIRE, **changes})
    return requests.lease_request(
        request, now_ms=1000, patience_ms=patience_ms, ttl=Ttl(longest_ms=60_000)
    )


def envelope(**changes: Any) -> pb.Envelope:
    """An envelope with some fields changed."""
    return pb.Envelope(**{"tokens_left": 5, "refill_rate": 5, **changes})


def test_a_sound_request_is_taken_as_it_is() -> None:
    """Units, prior and class arrive unchanged; the broker's TTL fills in."""
    wanted = acquire()

    assert wanted == LeaseRequest("a", "h", "deal", 3, 1, 5.0, Priority.HIGH, 15_000, None)


@pytest.mark.parametrize(
    ("patience_ms", "max_wait_ms", "deadline_ms"),
    [(None, None, None), (500, None, 1500), (None, 200, 1200), (500, 200, 1200), (100, 200, 1100)],
)
def test_the_shorter_of_wait_and_deadline_counts(
    patience_ms: int | None, max_wait_ms: int | None, deadline_ms: int | None
) -> None:
    """Neither may be exceeded; with neither the wait has no end."""
    changes: dict[str, Any] = {}
    if max_wait_ms is not None:
        changes["max_wait"] = Duration(nanos=max_wait_ms * 1_000_000)

    wanted = acquire(patience_ms, **changes)

    assert wanted.deadline_ms == deadline_ms
    assert wanted.answer_by_ms == (None if patience_ms is None else 1000 + patience_ms)


def test_a_ttl_is_capped() -> None:
    """A lease of a dead client must not stand for a day."""
    assert acquire(ttl=Duration(seconds=86_400)).ttl_ms == 60_000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lease_id", ""),
        ("lease_id", "x" * 129),
        ("lease_id", "a\nb"),
        ("holder", ""),
        ("operation", "x" * 129),
        ("units", 0),
        ("units", -1),
        ("min_units", -1),
        ("min_units", 4),
        ("tokens_per_unit", -1.0),
        ("tokens_per_unit", float("nan")),
        ("tokens_per_unit", float("inf")),
        ("priority", pb.PRIORITY_UNSPECIFIED),
        ("priority", 99),
        ("max_wait", Duration(seconds=-1)),
        ("ttl", Duration()),
        ("ttl", Duration(nanos=-1)),
        ("ttl", Duration(seconds=10**11)),
    ],
)
def test_a_senseless_acquire_is_refused(field: str, value: Any) -> None:
    """The message begins with the field's name."""
    with pytest.raises(InvalidRequestError, match=f"^{field} "):
        acquire(**{field: value})


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("holder", {"holder": ""}),
        ("epoch", {"epoch": -1}),
        ("units", {"units": 0}),
        ("units", {"units": -1, "outcome": pb.OUTCOME_NOT_SENT}),
        ("tokens", {"tokens": -1}),
        ("outcome", {"outcome": pb.OUTCOME_UNSPECIFIED}),
        ("envelope", {"envelope": None}),
        ("call_duration", {"call_duration": Duration(seconds=-1)}),
        ("envelope.tokens_consumed", {"envelope": envelope(tokens_consumed=-1)}),
        ("envelope.refill_rate", {"envelope": envelope(refill_rate=-1)}),
        ("envelope.tokens_left", {"envelope": envelope(tokens_left=10**12)}),
        ("envelope.refill_in", {"envelope": envelope(refill_in=Duration(seconds=-1))}),
        ("envelope.age", {"envelope": envelope(age=Duration(seconds=-1))}),
        ("envelope.token_flow_reduction", {"envelope": envelope(token_flow_reduction=-0.5)}),
    ],
)
def test_a_senseless_settle_is_refused(field: str, changes: Mapping[str, Any]) -> None:
    """Costs and balances above all: they would become the ledger's truth."""
    request = pb.SettleLeaseRequest(**{**SETTLE, **changes})

    with pytest.raises(InvalidRequestError, match=f"^{field} "):
        requests.settlement(request)


def test_a_settle_without_a_reply_needs_no_envelope() -> None:
    """The call was not sent, or nothing came back."""
    request = pb.SettleLeaseRequest(
        **{**SETTLE, "envelope": None, "units": 0, "outcome": pb.OUTCOME_NOT_SENT}
    )

    settlement = requests.settlement(request)

    assert (settlement.outcome, settlement.envelope) == (Outcome.NOT_SENT, None)


def test_times_are_milliseconds_rounded_up() -> None:
    """The shortest duration is not the same as none."""
    assert acquire(ttl=Duration(nanos=1)).ttl_ms == 1


@pytest.mark.parametrize("field", ["epoch", "units", "tokens"])
def test_a_renewal_must_carry_what_was_granted(field: str) -> None:
    """A restarted broker adopts the lease from it."""
    sound: dict[str, Any] = {
        "lease_id": "a", "epoch": 7, "holder": "h", "operation": "deal", "units": 1, "tokens": 5,
    }  # fmt: skip
    request = pb.RenewLeaseRequest(**{**sound, field: 0})

    with pytest.raises(InvalidRequestError, match=f"^{field} "):
        requests.renewal(request, Ttl())


@pytest.mark.parametrize(("size", "expected"), [(0, 100), (7, 7), (5000, 1000)])
def test_pages_have_a_usual_and_a_largest_size(size: int, expected: int) -> None:
    """Asking for more is no error."""
    request = pb.ListLeasesRequest(page_size=size)

    assert requests.page(request, size=100, size_max=1000) == (0, expected)


@pytest.mark.parametrize(
    ("field", "changes"), [("page_size", {"page_size": -1}), ("page_token", {"page_token": "x"})]
)
def test_a_senseless_page_is_refused(field: str, changes: Mapping[str, Any]) -> None:
    """A token is only what an earlier page gave."""
    with pytest.raises(InvalidRequestError, match=f"^{field} "):
        requests.page(pb.ListLeasesRequest(**changes), size=100, size_max=1000)
