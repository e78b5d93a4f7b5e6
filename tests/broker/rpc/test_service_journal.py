"""The journal over a real channel: what a lease went through, and where the tokens went."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from broker.core.allocator import AllocatorConfig
from broker.journal.journal import Journal
from broker.runtime import BrokerRuntime
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from tests.broker.rpcs import acquire, refusal, settle, waiting
from tests.fix_journal import ACCOUNT, EPOCH, lead
from tests.fix_service import SYNC_TIMEOUT_S, ServedBroker, running
from tests.fix_simulator import RunningSimulator

HOUR = Duration(seconds=3_600)


@pytest.fixture
async def broker(slow_keepa: RunningSimulator, journal_url: str) -> AsyncIterator[ServedBroker]:
    """A broker with a journal and five tokens."""
    slow_keepa.clear_faults()
    slow_keepa.change_account(balance=5)
    journal = Journal(journal_url, ACCOUNT, BrokerRuntime.now_ms, signed=False, months_kept=12)
    await journal.prepare()
    config = AllocatorConfig(recovery_grace_ms=0)
    async with running(slow_keepa, config=config, journal=journal) as broker:
        await asyncio.wait_for(broker.runtime.synced.wait(), SYNC_TIMEOUT_S)
        yield broker
    await journal.stop(5.0)


def spent(grant: pb.Grant, keepa: RunningSimulator, cost: int) -> pb.SettleLeaseRequest:
    """A call that cost *cost*, at a moment when Keepa has none left."""
    envelope = pb.Envelope(tokens_left=0, tokens_consumed=cost, refill_rate=5)
    envelope.server_time.FromMilliseconds(1_700_000_000_000)
    return settle(grant, outcome=pb.OUTCOME_REPLIED, envelope=envelope)


async def test_a_lease_is_explained_from_the_request_to_keepas_count(
    broker: ServedBroker, slow_keepa: RunningSimulator
) -> None:
    """Asked, waited and for what, granted, settled; by lease, and by holder."""
    first = (await broker.stub.AcquireLease(acquire("first"))).grant
    second = asyncio.ensure_future(broker.stub.AcquireLease(acquire("second")))
    await waiting(broker, 1)
    await broker.stub.SettleLease(settle(first))
    granted = (await second).grant
    await broker.stub.SettleLease(spent(granted, slow_keepa, 3))
    story = (await broker.stub.ExplainLease(pb.ExplainLeaseRequest(lease_id="second"))).events
    latest = (await broker.stub.ExplainLease(pb.ExplainLeaseRequest(holder="h"))).events

    assert [event.kind for event in story] == ["waited", "granted", "settled"]
    assert "waits (insufficient tokens): 0 tokens are available" in story[0].text
    assert story[1].tokens == granted.tokens
    assert story[2].cost == 3
    assert story[2].outcome == pb.OUTCOME_REPLIED
    assert story[2].envelope.tokens_consumed == 3
    assert "cost 3 tokens, Keepa had 0 tokens left" in story[2].text
    assert {event.lease_id for event in latest} == {"first", "second"}
    assert latest[0].kind == "settled"


async def test_a_settle_is_answered_once_the_journal_has_it(
    broker: ServedBroker, slow_keepa: RunningSimulator, journal_url: str
) -> None:
    """What has been answered outlives the broker; grants don't wait for the journal."""
    first = (await broker.stub.AcquireLease(acquire("first"))).grant
    async with await psycopg.AsyncConnection.connect(journal_url) as connection:
        await connection.execute("SELECT FROM tokenbroker.leader FOR UPDATE")
        settled = asyncio.ensure_future(broker.stub.SettleLease(settle(first)))
        await broker.stub.AcquireLease(acquire("second"))
        done, _ = await asyncio.wait({settled}, timeout=0.3)
        assert not done
    await settled

    story = (await broker.stub.ExplainLease(pb.ExplainLeaseRequest(lease_id="first"))).events
    assert [event.kind for event in story] == ["granted", "settled"]


async def test_a_settle_that_a_deposed_leader_cannot_keep_is_for_the_next_one(
    broker: ServedBroker, journal_url: str
) -> None:
    """The client tries again, and so reaches the leader of the moment."""
    grant = (await broker.stub.AcquireLease(acquire("a"))).grant
    lead(journal_url, EPOCH + 1)
    # The second time it is nothing new to a broker that still takes itself for the leader.
    for _ in range(2):
        status, _, reason = await refusal(broker.stub.SettleLease(settle(grant)))

        assert (status, reason) == (grpc.StatusCode.UNAVAILABLE, "not_leader")


async def test_stories_and_sums_come_in_pages(broker: ServedBroker) -> None:
    """A page's token leads to the next one, until there is none."""
    for number in range(3):
        holder = f"h{number}"
        grant = (await broker.stub.AcquireLease(acquire(f"l{number}", holder=holder))).grant
        await broker.stub.SettleLease(settle(grant, holder=holder))
    keys, token = [], ""
    for _ in range(3):
        page = await broker.stub.ListSpend(pb.ListSpendRequest(page_size=1, page_token=token))
        keys += [row.key for row in page.rows]
        token = page.next_page_token
    request = pb.ExplainLeaseRequest(lease_id="l0", page_size=1)
    first = await broker.stub.ExplainLease(request)
    request.page_token = first.next_page_token
    second = await broker.stub.ExplainLease(request)

    assert (keys, token) == (["h0", "h1", "h2"], "")
    assert [e.kind for e in (*first.events, *second.events)] == ["granted", "settled"]
    assert second.next_page_token == ""


async def test_spending_is_summed_up_by_each_key(
    broker: ServedBroker, slow_keepa: RunningSimulator
) -> None:
    """The total is that of all rows, whatever they are summed up by."""
    grant = (await broker.stub.AcquireLease(acquire("a"))).grant
    await broker.stub.SettleLease(spent(grant, slow_keepa, 4))
    for by in (pb.SPEND_KEY_HOLDER, pb.SPEND_KEY_IDENTITY, pb.SPEND_KEY_OPERATION,
               pb.SPEND_KEY_HOUR, pb.SPEND_KEY_DAY):  # fmt: skip
        page = await broker.stub.ListSpend(pb.ListSpendRequest(by=by, since=HOUR))
        (row,) = page.rows
        assert (page.total_tokens, row.tokens, row.calls) == (4, 4, 1)
    bucket = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket

    assert bucket.journal.state == pb.JOURNAL_STATE_WRITING
    assert bucket.journal.written >= 3
    assert bucket.journal.lost == 0


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ExplainLeaseRequest(), "lease_id"),
        (pb.ExplainLeaseRequest(lease_id="a", holder="b"), "lease_id"),
        (pb.ExplainLeaseRequest(holder="a\x00"), "holder"),
        (pb.ExplainLeaseRequest(lease_id="a", page_token="9" * 30), "page_token"),
        (pb.ListSpendRequest(by=99), "by"),  # type: ignore[arg-type]  # no such key
        (pb.ListSpendRequest(since=Duration()), "since"),
        (pb.ListSpendRequest(page_size=-1), "page_size"),
    ],
)
async def test_odd_questions_are_refused_with_the_field(
    serve_quietly: ServedBroker, request_: pb.ExplainLeaseRequest, field: str
) -> None:
    """Before the journal is asked at all."""
    stub = serve_quietly.stub
    ask = stub.ListSpend if isinstance(request_, pb.ListSpendRequest) else stub.ExplainLease
    code, message, _ = await refusal(ask(request_))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.startswith(field)


@pytest.fixture
async def serve_quietly(slow_keepa: RunningSimulator) -> AsyncIterator[ServedBroker]:
    """A broker without a journal."""
    async with running(slow_keepa) as broker:
        yield broker


async def test_without_a_journal_the_broker_says_how_to_get_one(
    serve_quietly: ServedBroker,
) -> None:
    """All else works as ever."""
    call = serve_quietly.stub.ExplainLease(pb.ExplainLeaseRequest(lease_id="a"))
    code, message, reason = await refusal(call)
    bucket = (await serve_quietly.stub.GetBucket(pb.GetBucketRequest())).bucket

    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "no_journal")
    assert "BROKER_DATABASE_URL" in message
    assert bucket.journal.state == pb.JOURNAL_STATE_OFF
