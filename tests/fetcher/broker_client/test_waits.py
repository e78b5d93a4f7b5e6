"""Waiting for a grant: under one id, through absences, and cancelled at will."""

import threading

import grpc
import pytest

from fetcher.broker_client import (
    BrokerAwayError,
    BrokerRefusedError,
    KeyMismatchError,
    WaitCancelledError,
)
from fetcher.broker_client.verdicts import BROKEN_TRIES_MAX, BY_REASON
from protos.channel.reasons import Reason
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from tests.fetcher.scripted_broker import ScriptedBroker, until
from tests.fix_broker_client import ENVELOPE, Stage, abort, hold, in_background
from tests.waiting import DEADLINE_S


def test_a_request_waits_for_the_broker_under_one_id(stage: Stage) -> None:
    """While the broker is away the same request is repeated, not a new one."""
    first = stage.broker()
    first.stop()
    client = stage.client(first)
    thread, errors = in_background(lambda: hold(client))
    second = stage.broker(port=first.port)
    thread.join(DEADLINE_S)

    assert errors == []
    assert len({request.lease_id for request in second.servicer.acquires}) == 1


def test_a_repeated_request_keeps_its_id(stage: Stage) -> None:
    """A grant that was lost on the way is joined, not taken twice."""
    failures = iter([grpc.StatusCode.UNAVAILABLE])

    def fail_once(_request: object, context: grpc.ServicerContext) -> None:
        if (code := next(failures, None)) is not None:
            context.abort(code, "as told")

    broker = stage.broker(ScriptedBroker(on_acquire=fail_once))
    hold(stage.client(broker))

    assert len(broker.servicer.acquires) == 2
    assert len({request.lease_id for request in broker.servicer.acquires}) == 1


def test_a_lease_that_lapsed_on_the_way_is_asked_for_anew(stage: Stage) -> None:
    """An id that has ended can't be used again."""
    ended = abort(grpc.StatusCode.FAILED_PRECONDITION, Reason.LEASE_ENDED, times=1)
    broker = stage.broker(ScriptedBroker(on_acquire=ended))
    hold(stage.client(broker))

    assert len({request.lease_id for request in broker.servicer.acquires}) == 2


def test_another_key_has_its_own_error(stage: Stage) -> None:
    """A broker that counts for another account must not grant its tokens to us."""
    other = abort(grpc.StatusCode.FAILED_PRECONDITION, Reason.OTHER_KEY)
    broker = stage.broker(ScriptedBroker(on_acquire=other))
    client = stage.client(broker, key_fingerprint="ours")
    with pytest.raises(KeyMismatchError, match="as told"):
        hold(client)

    assert broker.servicer.acquires[0].key_fingerprint == "ours"
    assert broker.servicer.buckets == 0


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
def test_a_broken_broker_is_asked_a_few_times_only(stage: Stage, code: grpc.StatusCode) -> None:
    """A bug repeats itself; the error reaches a person, to look at it."""
    broker = stage.broker(ScriptedBroker(on_acquire=abort(code)))
    with pytest.raises(BrokerRefusedError, match="fails at this request each time: as told"):
        hold(stage.client(broker))

    assert len(broker.servicer.acquires) == BROKEN_TRIES_MAX + 1


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_of_the_broker_means_something(reason: Reason) -> None:
    """A new one needs its line in the client's table."""
    assert reason in BY_REASON


def test_a_refusal_is_not_repeated(stage: Stage) -> None:
    """Without permission, repeating is no help."""
    broker = stage.broker(ScriptedBroker(on_acquire=abort(grpc.StatusCode.PERMISSION_DENIED)))
    with pytest.raises(BrokerRefusedError):
        hold(stage.client(broker))

    assert len(broker.servicer.acquires) == 1


def test_a_wait_can_be_called_off(stage: Stage) -> None:
    """The id that was waited for is settled, in case a grant is on its way."""
    arrived = threading.Event()
    released = threading.Event()

    def wait(_request: object, context: grpc.ServicerContext) -> None:
        arrived.set()
        context.add_callback(released.set)
        released.wait(DEADLINE_S)

    broker = stage.broker(ScriptedBroker(on_acquire=wait))
    client = stage.client(broker)
    thread, errors = in_background(lambda: hold(client))
    arrived.wait(DEADLINE_S)
    client.stop_waiting()
    thread.join(DEADLINE_S)
    until(lambda: len(broker.servicer.settles) == 1)
    abandoned = broker.servicer.settles[0]

    assert [type(error) for error in errors] == [WaitCancelledError]
    assert abandoned.lease_id == broker.servicer.acquires[0].lease_id
    assert (abandoned.outcome, abandoned.epoch) == (pb.OUTCOME_NOT_SENT, 0)


def test_a_wait_for_an_absent_broker_can_be_called_off(stage: Stage) -> None:
    """Stopping does not depend on the broker."""
    broker = stage.broker()
    broker.stop()
    client = stage.client(broker)
    thread, errors = in_background(lambda: hold(client))
    client.stop_waiting()
    thread.join(DEADLINE_S)

    assert [type(error) for error in errors] == [WaitCancelledError]


def test_waiting_for_an_absent_broker_ends_in_time(stage: Stage) -> None:
    """With a limit, the caller gets an error instead of a lease."""
    broker = stage.broker()
    broker.stop()
    with pytest.raises(BrokerAwayError) as caught:
        hold(stage.client(broker), max_wait_s=0.3)

    assert broker.address in str(caught.value)


def test_leases_of_several_threads_do_not_mix(stage: Stage) -> None:
    """Each thread settles its own lease, once."""
    broker = stage.broker()
    client = stage.client(broker)

    def take_ten() -> None:
        for _ in range(10):
            with client.lease("deal") as lease:
                lease.calling()
                lease.settle_replied(ENVELOPE)

    threads = [in_background(take_ten) for _ in range(8)]
    for thread, _ in threads:
        thread.join(DEADLINE_S)

    assert [errors for _, errors in threads if errors] == []
    assert {request.lease_id for request in broker.servicer.acquires} == {
        settle.lease_id for settle in broker.servicer.settles
    }
    assert len(broker.servicer.settles) == 80
