"""No value in any field of any RPC makes one step of the broker take long.

A step's work is counted in calls of Python functions, which neighbours on the machine do
not change: on a quiet machine of today 5 ms are some 15,000 of them.
"""

from collections.abc import Callable
from itertools import count
from typing import Any, Final

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from broker.core.allocator import Allocator
from broker.core.errors import BrokerError
from broker.core.snapshot import snapshot, waiting_view
from broker.journal.status import JournalStatus
from broker.rpc import replies, requests
from broker.rpc.requests import InvalidRequestError, Ttl
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from tests.broker.builders import EPOCH, SERVER_MS, envelope, request, synced
from tests.broker.core.work import TooMuchWorkError, calls_of

WAITING: Final = 1_000
# 5 ms at a third of a microsecond each, with the work between them.
CALLS_MAX: Final = 15_000

INT32: Final = (-(2**31), -1, 0, 1, 2**31 - 1)
INT64: Final = (-(2**63), -(10**9), -1, 0, 1, 10**9, 2**63 - 1)
DOUBLE: Final = (-1.0, 0.0, 5e-324, 1.0, 1e9, 1e308, float("inf"), float("-inf"), float("nan"))
DURATIONS: Final = (
    *(Duration(seconds=seconds) for seconds in (-1, 0, 1, 366 * 86_400, 315_576_000_000)),
    *(Duration(seconds=-(2**63)), Duration(seconds=2**63 - 1), Duration(nanos=1)),
    *(Duration(nanos=2**31 - 1), Duration(nanos=-(2**31))),
)
TIMES: Final = tuple(
    Timestamp(seconds=seconds) for seconds in (-(2**63), -1, 0, SERVER_MS // 1000, 2**63 - 1)
)
TEXTS: Final = ("", "a", "x" * 128, "x" * 100_000, "\x00", "\u202e")
BY_TYPE: Final[dict[str, tuple[Any, ...]]] = {
    "int32": INT32, "int64": INT64, "double": DOUBLE, "string": TEXTS,
}  # fmt: skip
NAMES: Final = {1: "double", 3: "int64", 5: "int32", 9: "string"}

Step = Callable[[Allocator], object]
NUMBERS: Final = count()


def fields(message: Any, prefix: str = "") -> list[tuple[str, tuple[Any, ...]]]:
    """Every field of *message*, nested ones with dots, and its hostile values."""
    found: list[tuple[str, tuple[Any, ...]]] = []
    for field in message.DESCRIPTOR.fields:
        name = prefix + field.name
        if field.type in NAMES:
            found.append((name, BY_TYPE[NAMES[field.type]]))
        elif field.enum_type is not None:
            found.append((name, (*range(len(field.enum_type.values)), 99)))
        elif field.message_type.name == "Duration":
            found.append((name, DURATIONS))
        elif field.message_type.name == "Timestamp":
            found.append((name, TIMES))
        else:
            found += fields(getattr(message, field.name), f"{name}.")
    return found


def changed(message: Any, name: str, value: Any) -> Any:
    """A copy of *message* with one field replaced."""
    copy = type(message)()
    copy.CopyFrom(message)
    *path, last = name.split(".")
    owner = copy
    for part in path:
        owner = getattr(owner, part)
    if isinstance(value, Duration | Timestamp):
        getattr(owner, last).CopyFrom(value)
    else:
        setattr(owner, last, value)
    return copy


ACQUIRE: Final = pb.AcquireLeaseRequest(
    lease_id="new", holder="hostile", operation="deal", units=1, tokens_per_unit=5.0,
    priority=pb.PRIORITY_NORMAL, max_wait=Duration(seconds=0),
)  # fmt: skip
RENEW: Final = pb.RenewLeaseRequest(
    lease_id="stranger", epoch=1, holder="hostile", operation="deal", units=1, tokens=5
)
SETTLE: Final = pb.SettleLeaseRequest(
    lease_id="held", epoch=EPOCH, holder="hostile", operation="deal", units=1, tokens=5,
    outcome=pb.OUTCOME_REPLIED,
    envelope=pb.Envelope(
        server_time=Timestamp(seconds=SERVER_MS // 1000 + 1), tokens_left=0, tokens_consumed=5,
        refill_in=Duration(seconds=8), refill_rate=5,
    ),
)  # fmt: skip
NOW_MS: Final = 1_000


def acquire(message: pb.AcquireLeaseRequest) -> Step:
    """The step that AcquireLease takes."""
    wanted = requests.lease_request(message, now_ms=NOW_MS, patience_ms=None, ttl=Ttl())
    return lambda allocator: allocator.acquire(wanted, NOW_MS)


def renew(message: pb.RenewLeaseRequest) -> Step:
    """The step that RenewLease takes."""
    renewal = requests.renewal(message, Ttl())
    return lambda allocator: allocator.renew(renewal, NOW_MS)


def settle(message: pb.SettleLeaseRequest) -> Step:
    """The step that SettleLease takes."""
    settlement = requests.settlement(message)
    return lambda allocator: allocator.settle(settlement, NOW_MS)


RPCS: Final[dict[str, tuple[Any, Callable[[Any], Step]]]] = {
    "acquire": (ACQUIRE, acquire), "renew": (RENEW, renew), "settle": (SETTLE, settle),
}  # fmt: skip
CASES: Final = [(rpc, name) for rpc, (message, _) in RPCS.items() for name, _ in fields(message)]


def crowd(size: int = WAITING) -> Allocator:
    """So many requests wait behind a lease that holds all there is."""
    allocator = synced(5, refill_in=9_000)
    allocator.acquire(request("held", holder="hostile"), 0)
    for number in range(size):
        allocator.acquire(request(f"w{number}", holder=f"h{number}"), 0)
    allocator.take_outcomes()
    return allocator


def assert_short(step: Callable[[], object], what: str) -> None:
    """No more calls than fit into 5 ms, whether the step is refused or not."""
    try:
        calls_of(step, CALLS_MAX)
    except TooMuchWorkError as exc:
        raise AssertionError(f"{what}: {exc}") from None


@pytest.mark.parametrize(("rpc", "name"), CASES)
def test_no_value_of_a_field_makes_a_step_long(rpc: str, name: str) -> None:
    """It is refused with the field's name, or it is quick; and so is all that follows it."""
    message, read = RPCS[rpc]
    allocator = crowd()
    for value in dict(fields(message))[name]:
        try:
            step = read(changed(message, name, value))
        except InvalidRequestError as exc:
            assert exc.field in {name, "envelope", "min_units", "units"}  # noqa: PT017 - or it is valid
            continue
        except (TypeError, ValueError):
            # protobuf itself has no such value.
            continue
        what = f"{rpc} with {name}={value!r}"[:80]
        assert_short(lambda step=step: step(allocator), what)  # type: ignore[misc]  # bound now
        assert_short(lambda: allocator.acquire(follower(), NOW_MS), f"an acquire after {what}")
        assert_short(lambda: allocator.advance(NOW_MS + 1), f"a tick after {what}")
        assert_short(lambda: snapshot(allocator, NOW_MS + 1), f"a look after {what}")
        allocator.take_outcomes()


def follower() -> Any:
    """A request of another caller without patience, which gets a delay."""
    return request(f"next{next(NUMBERS)}", holder="other", deadline_ms=NOW_MS)


def test_a_page_of_the_waiting_is_short_work() -> None:
    """ListLeases forecasts as far as its page goes."""
    allocator = crowd()

    assert_short(lambda: waiting_view(allocator, NOW_MS, 100), "a page of 100")


def test_a_crowd_is_answered_in_short_steps() -> None:
    """Whether all are out of time at once, or a full bucket serves many."""
    allocator = synced(5, refill_in=9_000)
    allocator.acquire(request("held", holder="hostile"), 0)
    for number in range(WAITING):
        allocator.acquire(request(f"w{number}", holder=f"h{number}", deadline_ms=NOW_MS), 0)
    allocator.probe_started(900)
    answer = envelope(150, at=950, refill_in=8_050)
    assert_short(lambda: allocator.probe_answered(answer, 900, 950), "a count for many")
    answered = len(allocator.take_outcomes())
    for now_ms in range(NOW_MS, NOW_MS + WAITING):
        if not len(allocator.waitlist):
            break
        assert_short(lambda now_ms=now_ms: allocator.advance(now_ms), "denials")  # type: ignore[misc]  # bound now
        answered += len(allocator.take_outcomes())

    assert answered == WAITING + 1


def test_whatever_is_accepted_can_be_shown() -> None:
    """No number that a client may send is too large for a message of the broker."""
    message, read = RPCS["settle"]
    for name, values in fields(message):
        for value in values:
            allocator = crowd(3)
            try:
                read(changed(message, name, value))(allocator)
            except (InvalidRequestError, BrokerError, TypeError, ValueError):
                continue
            for held in allocator.ledger:
                replies.lease(held, NOW_MS)
            for waiting in waiting_view(allocator, NOW_MS, 10):
                replies.waiting(waiting)
            replies.bucket(
                snapshot(allocator, NOW_MS), allocator.ledger.totals, floor_tokens=0,
                max_debt_tokens=5, fingerprint="", trouble="", budgets_trouble="",
                journal=JournalStatus(),
            )  # fmt: skip
