"""Exhibits: the core is right, but the edge round it is not."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final
from unittest.mock import patch

from msgspec.structs import replace

import broker.keepa_status
import broker.rpc.replies
import broker.rpc.requests
from broker.core.allocator import Allocator
from broker.core.bucket import Envelope
from broker.core.leases import Denied, Granted, LeaseRequest, Outcome, Settled, Settlement
from broker.keepa_status import KeepaSync
from broker.runtime import BrokerRuntime
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from tests.simulation.museum.counting import always
from tests.simulation.museum.exhibit import Exhibit, replacing

acquire = BrokerRuntime.acquire
settle = BrokerRuntime.settle
ask = KeepaSync.ask
make_grant = broker.rpc.replies._grant
OUTCOMES: Final = broker.rpc.requests.OUTCOMES


def keep_first_count(
    self: BrokerRuntime, envelope: Envelope, requested_ms: int, _asking: Allocator
) -> None:
    """Later answers are looked at, but our own count is thought better."""
    self._probe = self.probes.trouble = None
    if not self.synced.is_set():
        self._decide(lambda now_ms: self.allocator.probe_answered(envelope, requested_ms, now_ms))
        return
    self._decide(self.allocator.probe_failed)


def no_timer(_self: BrokerRuntime, _now_ms: int) -> None:
    """Time passes only in calls."""


def ask_rarely(self: KeepaSync) -> Envelope:
    """Within ten minutes the last answer will do."""
    told: tuple[float, Envelope] | None = getattr(self, "_told", None)
    if told is None or time.monotonic() - told[0] > 600:
        told = time.monotonic(), ask(self)
        vars(self)["_told"] = told
    return told[1]


def count_refill_by_wall_clock(self: KeepaSync) -> Envelope:
    """Takes the next tick from Keepa's clock, which the broker's must equal."""
    said = ask(self)
    refill_in_ms = said.next_tick_ms - time.time_ns() // 1_000_000
    fields = {name: getattr(said, name) for name in Envelope.__struct_fields__}
    return Envelope(**{**fields, "refill_in_ms": max(0, refill_in_ms)})


async def reserve_after_await(
    self: BrokerRuntime, request: LeaseRequest, _still_let_in: object = None
) -> Granted | Denied:
    """Looks whether the tokens are there, lets others have a turn, takes them."""
    tokens = round(request.units * request.tokens_per_unit)
    enough = self.allocator.available(self.now_ms(), projected=False) >= tokens
    await asyncio.sleep(0.01)
    if not enough:
        return await acquire(self, request)
    ledger, now_ms = self.allocator.ledger, self.now_ms()
    return Granted(ledger.reserve(request, request.units, tokens, now_ms), 0)


async def acquire_for_ever(
    self: BrokerRuntime, request: LeaseRequest, _still_let_in: object = None
) -> Granted | Denied:
    """A cancelled call leaves its request behind."""
    return await self._join(request).answer


def deliver_blindly(self: BrokerRuntime, answer: Granted | Denied) -> None:
    """Assumes that the client is still connected."""
    lease_id = answer.lease.lease_id if isinstance(answer, Granted) else answer.lease_id
    self._waits.pop(lease_id).answer.set_result(answer)


def unwatched_waits() -> Any:
    """A cancelled call stays in the queue, and its grant has nowhere to go."""
    return patch.multiple(BrokerRuntime, acquire=acquire_for_ever, _deliver=deliver_blindly)


def fields_as_they_are(reply: Mapping[str, Any]) -> Envelope:
    """Whatever the fields of a reply hold describes the bucket."""
    return Envelope(
        server_time_ms=reply.get("timestamp", 0),
        processing_ms=reply.get("processingTimeInMs", 0),
        tokens_left=reply.get("tokensLeft", 0),
        tokens_consumed=reply.get("tokensConsumed", 0),
        refill_in_ms=reply.get("refillIn", 0),
        refill_rate=reply.get("refillRate", 0),
    )


@contextmanager
def adopting_zeros() -> Iterator[None]:
    """Every reply is an observation."""
    with (
        patch.object(broker.keepa_status, "_envelope", fields_as_they_are),
        patch.object(Envelope, "is_observation", property(always)),
    ):
        yield


async def in_the_loop(call: Any, *, name: str) -> Any:
    """A status call takes but a moment."""
    del name
    return call()


def whole_ttl(granted: Granted, now_ms: int) -> pb.AcquireLeaseResponse:
    """Answers with the time to live of the lease."""
    del now_ms
    return make_grant(granted, granted.lease.granted_ms)


def always_counted(self: BrokerRuntime, settlement: Settlement) -> Settled:
    """A report is a call."""
    done = settle(self, settlement)
    return replace(done, cost_tokens=done.cost_tokens or 0)


def taking(wire: int, outcome: Outcome) -> Any:
    """One outcome on the wire is read as another."""
    return partial(patch.dict, OUTCOMES, {wire: outcome})


# These show at once; with the others a request waits in vain.
AT_ONCE: Final = (
    Exhibit(
        "local estimate believed over the server (edge)",
        "The answer to a later status call was logged, and our own count went on.",
        replacing(BrokerRuntime, "_probe_answered", keep_first_count),
    ),
    Exhibit(
        "rescue sync throttled away (edge)",
        "The status call answered from a cache of ten minutes.",
        replacing(KeepaSync, "ask", ask_rarely),
    ),
    Exhibit(
        "check-then-reserve with an await between (edge)",
        "Between looking and taking the loop served others, who looked too.",
        replacing(BrokerRuntime, "acquire", reserve_after_await),
    ),
    Exhibit(
        "TTL restarted by a restart (edge)",
        "A restarted client that repeated its request was told the whole time once more.",
        partial(patch.object, broker.rpc.replies, "_grant", whole_ttl),
    ),
    Exhibit(
        "late settle counted twice (edge)",
        "A repeated report raised the sums by operation and holder again.",
        replacing(BrokerRuntime, "settle", always_counted),
    ),
    Exhibit(
        "unknown outcome counted as zero (edge)",
        "A call without an answer was read as one that was never sent.",
        taking(pb.OUTCOME_UNKNOWN, Outcome.NOT_SENT),
    ),
    Exhibit(
        "refusal that still charged (edge)",
        "A refusal was read as a lost call, and its tokens stayed held.",
        taking(pb.OUTCOME_REFUSED, Outcome.UNKNOWN),
    ),
)
EXHIBITS: Final = (
    *AT_ONCE,
    Exhibit(
        "refill only as a side effect of another call (edge)",
        "Nothing woke at the tick: who waited got tokens when somebody else called.",
        replacing(BrokerRuntime, "_set_timer", no_timer),
    ),
    Exhibit(
        "wall clock used for refillIn (edge)",
        "The next tick was Keepa's timestamp minus our clock, which stood wrong.",
        replacing(KeepaSync, "ask", count_refill_by_wall_clock),
    ),
    Exhibit(
        "a cancelled waiter that stops the loop (edge)",
        "The grant of a client that had left raised an error where the others are woken.",
        unwatched_waits,
    ),
    Exhibit(
        "status call in the event loop",
        "While Keepa was slow, the whole broker stood still.",
        partial(patch.object, broker.keepa_status, "in_daemon_thread", in_the_loop),
    ),
    Exhibit(
        "envelope with refillRate 0 adopted (edge)",
        "The answer to a wrong key was a sync: a balance of zero, and no word of the key.",
        adopting_zeros,
    ),
    Exhibit(
        "waiting left at the end",
        "A broker that stopped let those who waited run into their deadlines.",
        replacing(BrokerRuntime, "stop", lambda self: setattr(self, "stopping", True)),
    ),
)
