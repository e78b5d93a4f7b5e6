"""The client keeps its side of the contract through faults and restarts."""

import socket
import threading
from contextlib import suppress

import grpc
import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, use_span

from fetcher.broker_client import (
    ClosedError,
    Lease,
    LeaseDeniedError,
    LeaseLostError,
    Priority,
    WaitCancelledError,
)
from fetcher.broker_client.verdicts import BROKEN_TRIES_MAX
from protos.channel.reasons import Reason
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from tests.fetcher.scripted_broker import ScriptedBroker, until
from tests.fix_broker_client import ENVELOPE, Stage, abort, hold, in_background
from tests.waiting import DEADLINE_S


def test_a_settled_lease_reports_keepas_envelope(stage: Stage) -> None:
    """Units, outcome, envelope and call time reach the broker as they were."""
    broker = stage.broker()
    client = stage.client(broker)
    with client.lease("deal", units=2, tokens_per_unit=5, priority=Priority.HIGH) as lease:
        lease.calling()
        lease.settle_replied(ENVELOPE)
    until(lambda: len(broker.servicer.settles) == 1)
    asked, settled = broker.servicer.acquires[0], broker.servicer.settles[0]

    assert (asked.holder, asked.priority) == (client.holder, pb.PRIORITY_HIGH)
    assert settled.lease_id == asked.lease_id
    assert settled.outcome == pb.OUTCOME_REPLIED
    assert (settled.units, settled.tokens) == (2, 10)
    assert settled.envelope.server_time.ToMilliseconds() == ENVELOPE.server_time_ms
    assert settled.envelope.refill_in.ToMilliseconds() == ENVELOPE.refill_in_ms
    assert settled.envelope.tokens_left == ENVELOPE.tokens_left
    assert settled.HasField("call_duration")


def test_a_block_left_before_the_call_gives_the_tokens_back(stage: Stage) -> None:
    """Nothing was sent, so nothing was spent."""
    broker = stage.broker()
    client = stage.client(broker)
    with suppress(ValueError), client.lease("deal"):
        raise ValueError("before the call")
    until(lambda: len(broker.servicer.settles) > 0)

    assert [settle.outcome for settle in broker.servicer.settles] == [pb.OUTCOME_NOT_SENT]


def test_a_block_left_during_the_call_reports_an_unknown_cost(stage: Stage) -> None:
    """A call that blew up may have been charged."""
    broker = stage.broker()
    client = stage.client(broker)
    with suppress(ValueError), client.lease("deal") as lease:
        lease.calling()
        raise ValueError("in mid-call")
    until(lambda: len(broker.servicer.settles) > 0)

    assert [settle.outcome for settle in broker.servicer.settles] == [pb.OUTCOME_UNKNOWN]


def test_only_the_first_settle_counts(stage: Stage) -> None:
    """An error after the settle does not report the call again."""
    broker = stage.broker()
    client = stage.client(broker)
    with client.lease("deal") as lease:
        lease.calling()
        lease.settle_refused(ENVELOPE)
        lease.settle_unknown()
    until(lambda: len(broker.servicer.settles) > 0)

    assert [settle.outcome for settle in broker.servicer.settles] == [pb.OUTCOME_REFUSED]


def test_a_denial_has_the_time_to_come_back(stage: Stage) -> None:
    """Being over the limit is an answer with a time, and leaves no lease behind."""
    denial = pb.Denial(reason=pb.DENIAL_REASON_TOO_LARGE, largest_units=3, message="too many")
    denial.retry_delay.FromMilliseconds(1500)
    broker = stage.broker(ScriptedBroker(denial=denial))
    client = stage.client(broker)
    with pytest.raises(LeaseDeniedError) as caught:
        hold(client)

    assert caught.value.reason == "TOO_LARGE"
    assert caught.value.retry_delay_s == 1.5
    assert caught.value.largest_units == 3
    assert broker.servicer.settles == []


def test_an_open_lease_is_renewed(stage: Stage) -> None:
    """Heartbeats keep a lease alive well beyond its first time to live."""
    broker = stage.broker(ScriptedBroker(ttl_s=3))
    client = stage.client(broker)
    with client.lease("deal") as lease:
        until(lambda: len(broker.servicer.renewals) >= 4)
        left_s = lease.time_left

    assert left_s > 0
    assert {renewal.lease_id for renewal in broker.servicer.renewals} == {lease.lease_id}


def test_a_lease_of_the_greatest_age_is_lost_and_not_asked_for_again(stage: Stage) -> None:
    """No call is made under it; no heartbeat is repeated, and the outcome is still reported."""
    too_old = abort(grpc.StatusCode.FAILED_PRECONDITION, Reason.LEASE_TOO_OLD)
    broker = stage.broker(ScriptedBroker(ttl_s=1.5, on_renew=too_old))
    client = stage.client(broker)
    with client.lease("deal") as lease:
        until(lambda: lease.time_left <= 0)
        with pytest.raises(LeaseLostError):
            lease.calling()
    until(lambda: len(broker.servicer.settles) == 1)

    assert [settle.outcome for settle in broker.servicer.settles] == [pb.OUTCOME_NOT_SENT]
    assert len(broker.servicer.renewals) == 1


def test_a_request_beyond_a_limit_is_repeated(stage: Stage) -> None:
    """Until the caller's other leases have ended, and under the same name."""
    full = abort(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.LIMIT_REACHED, times=2)
    broker = stage.broker(ScriptedBroker(on_acquire=full))
    hold(stage.client(broker))

    assert len(broker.servicer.acquires) == 3
    assert len({asked.lease_id for asked in broker.servicer.acquires}) == 1


def test_a_settled_lease_is_not_renewed_any_more(stage: Stage) -> None:
    """A heartbeat after the settle would bring the lease back to life."""
    broker = stage.broker(ScriptedBroker(ttl_s=3))
    client = stage.client(broker)
    with client.lease("deal") as first:
        pass
    with client.lease("deal") as second:
        until(lambda: len(broker.servicer.renewals) >= 2)

    assert {renewal.lease_id for renewal in broker.servicer.renewals} == {second.lease_id}
    assert first.settled


def test_no_call_starts_under_a_lost_lease(stage: Stage) -> None:
    """A broker that forgot the lease has given its tokens to others."""
    broker = stage.broker(ScriptedBroker(ttl_s=0.3, on_renew=abort(grpc.StatusCode.NOT_FOUND)))
    client = stage.client(broker)
    with client.lease("deal") as lease:
        until(lambda: lease.time_left == 0)
        with pytest.raises(LeaseLostError):
            lease.calling()
    until(lambda: len(broker.servicer.settles) > 0)

    assert broker.servicer.settles[0].outcome == pb.OUTCOME_NOT_SENT


def test_no_call_starts_in_the_last_moments_of_a_lease(stage: Stage) -> None:
    """The call might go on after the tokens were given to others."""
    broker = stage.broker(ScriptedBroker(ttl_s=4, on_renew=abort(grpc.StatusCode.UNAVAILABLE)))
    client = stage.client(broker)
    with client.lease("deal") as lease:
        lease.calling()
        until(lambda: lease.time_left < 0.2)
        with pytest.raises(LeaseLostError):
            lease.calling()

    assert lease.settled


def test_a_restarted_broker_gets_open_leases_at_once(stage: Stage) -> None:
    """The lease is presented again long before its next heartbeat is due."""
    first = stage.broker(ScriptedBroker(ttl_s=600))
    client = stage.client(first)
    with client.lease("deal", units=3, tokens_per_unit=5) as lease:
        first.stop()
        second = stage.broker(ScriptedBroker(ttl_s=600, epoch=2), port=first.port)
        until(lambda: lease.terms.epoch == 2)
    renewal, settle = second.servicer.renewals[0], second.servicer.settles[0]

    assert (renewal.epoch, renewal.tokens, renewal.units) == (1, 15, 3)
    assert settle.epoch == 2


def test_a_settle_waits_for_a_broker_that_is_away(stage: Stage) -> None:
    """A call's cost is reported when the broker is back, with its age."""
    first = stage.broker()
    client = stage.client(first)
    with client.lease("deal") as lease:
        lease.calling()
        first.stop()
        lease.settle_replied(ENVELOPE)
    second = stage.broker(port=first.port)
    until(lambda: len(second.servicer.settles) == 1)
    settle = second.servicer.settles[0]

    assert settle.lease_id == lease.lease_id
    assert settle.envelope.age.ToNanoseconds() > 0


def test_a_settle_is_repeated_until_it_is_taken(stage: Stage) -> None:
    """Errors that pass don't lose the cost of a call."""
    failures = iter([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])

    def fail_twice(_request: object, context: grpc.ServicerContext) -> None:
        if (code := next(failures, None)) is not None:
            context.abort(code, "as told")

    broker = stage.broker(ScriptedBroker(on_settle=fail_twice))
    client = stage.client(broker)
    hold(client)
    until(lambda: len(broker.servicer.settles) == 1)
    until(lambda: len(broker.servicer.settles) > 0)

    assert broker.servicer.settles[0].outcome == pb.OUTCOME_NOT_SENT


def test_a_closed_client_names_what_to_do(stage: Stage) -> None:
    """Reads and waits end with an error of the client's own, however late they come."""
    client = stage.client(stage.broker())
    client.get_bucket()
    client.close()

    with pytest.raises(ClosedError, match="make a new one"):
        client.get_bucket()
    with pytest.raises(WaitCancelledError):
        hold(client)


def test_closing_ends_a_read_under_way(stage: Stage) -> None:
    """Another thread, or task, may be in the midst of one."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = stage.client_at(f"127.0.0.1:{silent.getsockname()[1]}")
        thread, errors = in_background(lambda: client.get_bucket(timeout_s=DEADLINE_S))
        connection, _ = silent.accept()
        with connection:
            client.close()
            thread.join(DEADLINE_S)

    assert [type(error) for error in errors] == [ClosedError]


def test_closing_delivers_what_is_still_to_be_settled(stage: Stage) -> None:
    """A process that stops reports its costs first."""
    let_through = threading.Event()

    def object_at_first(_request: object, context: grpc.ServicerContext) -> None:
        if not let_through.is_set():
            context.abort(grpc.StatusCode.UNAVAILABLE, "as told")

    broker = stage.broker(ScriptedBroker(on_settle=object_at_first))
    client = stage.client(broker)
    hold(client)
    let_through.set()
    client.close()

    assert len(broker.servicer.settles) == 1


def test_the_bucket_comes_in_plain_values(stage: Stage) -> None:
    """Callers see no gRPC types."""
    bucket = stage.client(stage.broker()).get_bucket()

    assert (bucket.balance, bucket.capacity, bucket.refill_rate) == (33, 300, 5)
    assert bucket.state == "serving"


def test_a_partial_call_settles_the_units_it_asked_for(stage: Stage) -> None:
    """Costs are learned per unit really asked for."""
    broker = stage.broker()

    def call(lease: Lease) -> None:
        lease.calling()
        lease.settle_replied(ENVELOPE, units=2)

    with stage.client(broker).lease("product", units=5) as lease:
        call(lease)
    until(lambda: len(broker.servicer.settles) > 0)

    assert broker.servicer.settles[0].units == 2


def test_a_trace_goes_along_with_whatever_is_repeated(stage: Stage) -> None:
    """Request and settle name the caller's trace, also where another thread sends them later."""
    told: list[tuple[str, object]] = []

    def note(request: object, context: grpc.ServicerContext) -> None:
        trace_context = dict(context.invocation_metadata()).get("traceparent")
        told.append((type(request).__name__, trace_context))
        if len(told) in {1, 3}:
            context.abort(grpc.StatusCode.UNAVAILABLE, "as told")

    broker = stage.broker(ScriptedBroker(on_acquire=note, on_settle=note))
    client = stage.client(broker)
    caller = SpanContext(trace_id=0xABC, span_id=0xDEF, is_remote=False)
    with use_span(NonRecordingSpan(caller)):
        hold(client)
    until(lambda: len(broker.servicer.settles) == 1)
    hold(client)
    named = f"00-{caller.trace_id:032x}-{caller.span_id:016x}-00"

    assert told == [
        ("AcquireLeaseRequest", named),
        ("AcquireLeaseRequest", named),
        ("SettleLeaseRequest", named),
        ("SettleLeaseRequest", named),
        ("AcquireLeaseRequest", None),
        ("SettleLeaseRequest", None),
    ]


def test_a_settle_that_breaks_the_broker_is_given_up(stage: Stage) -> None:
    """After a few tries; behind it others wait to be delivered."""
    tries: list[object] = []

    def fail_at_first(request: pb.SettleLeaseRequest, context: grpc.ServicerContext) -> None:
        tries.append(request)
        if request.lease_id == broker.servicer.acquires[0].lease_id:
            context.abort(grpc.StatusCode.INTERNAL, "as told")

    broker = stage.broker(ScriptedBroker(on_settle=fail_at_first))
    client = stage.client(broker)
    hold(client)
    until(lambda: len(tries) == BROKEN_TRIES_MAX + 1)
    hold(client)
    until(lambda: len(broker.servicer.settles) == 1)
    _, second = broker.servicer.acquires
    until(lambda: len(broker.servicer.settles) > 0)

    assert broker.servicer.settles[0].lease_id == second.lease_id
    assert len(tries) == BROKEN_TRIES_MAX + 2
