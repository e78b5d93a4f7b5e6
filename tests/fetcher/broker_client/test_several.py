"""Clients with several brokers: they follow the leader, under the same lease id."""

import grpc
import pytest

from protos.channel.reasons import Reason
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from tests.fetcher.scripted_broker import ScriptedBroker, until
from tests.fix_broker_client import ENVELOPE, Stage, abort, hold

REFUSAL = (grpc.StatusCode.UNAVAILABLE, Reason.NOT_LEADER)


def standby() -> ScriptedBroker:
    """A broker that refuses everything but reads."""
    refuse = abort(*REFUSAL)
    return ScriptedBroker(
        on_acquire=refuse, on_renew=refuse, on_settle=refuse, state=pb.BUCKET_STATE_STANDBY
    )


@pytest.mark.parametrize("target", ["{0},{1}", "ipv4:{0},{1}"])
def test_a_client_finds_the_leader(stage: Stage, target: str) -> None:
    """Among several addresses, and among those that one name stands for."""
    other, leader = stage.broker(standby()), stage.broker()
    client = stage.client_at(target.format(other.address, leader.address))
    with client.lease("deal", tokens_per_unit=5) as lease:
        lease.settle_replied(ENVELOPE)
    state = client.get_bucket().state

    until(lambda: len(leader.servicer.settles) == 1)
    ids = {request.lease_id for request in leader.servicer.acquires}
    assert len(ids) == 1
    assert {request.lease_id for request in other.servicer.acquires} <= ids
    assert state == "serving"


def test_a_dead_broker_is_passed_over(stage: Stage) -> None:
    """The next address is tried."""
    dead, leader = stage.broker(), stage.broker()
    dead.stop()
    client = stage.client_at(f"{dead.address},{leader.address}")
    hold(client, max_wait_s=60)

    assert len(leader.servicer.acquires) == 1
    assert client.get_bucket().state == "serving"


def test_renewals_and_settles_follow_the_leader(stage: Stage) -> None:
    """The lease's broker stands by from one moment on; the other one adopts the lease."""
    first, second = stage.broker(ScriptedBroker(ttl_s=3)), stage.broker(standby())
    client = stage.client_at(f"{first.address},{second.address}")
    with client.lease("deal", tokens_per_unit=5) as lease:
        refusing = second.servicer
        first.servicer.on_renew = first.servicer.on_settle = abort(*REFUSAL)
        refusing.on_acquire = refusing.on_renew = refusing.on_settle = None
        until(lambda: bool(refusing.renewals))
        lease.settle_replied(ENVELOPE)
    until(lambda: bool(refusing.settles))

    renewed = {request.lease_id for request in refusing.renewals}
    settled = {request.lease_id for request in refusing.settles}
    assert renewed == settled == {request.lease_id for request in first.servicer.acquires}
