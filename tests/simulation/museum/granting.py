"""Exhibits: tokens go to no request, to the wrong one, or to two at once."""

from typing import Any, Final
from unittest.mock import patch

from msgspec.structs import replace

from broker.core.allocator import Allocator
from broker.core.bucket import Bucket, Observation
from broker.core.costs import Band, CostBook
from broker.core.holds import Holds
from broker.core.leases import Granted, Lease, LeaseRequest
from broker.core.ledger import Ledger
from broker.core.probing import Probing, Prospect
from broker.core.quotes import Batch, MustWait, Quotes
from broker.core.waitlist import Flow, Place, PriorityClass, Waiting, Waitlist
from tests.simulation.museum.counting import always, certain_at_once
from tests.simulation.museum.exhibit import Exhibit, replacing

available = Allocator.available
may_start = Probing.may_start
prospect = Allocator._prospect
adopt = Bucket.adopt
advance = Allocator.advance


def no_limit(_self: Quotes, _request: LeaseRequest) -> tuple[int, int]:
    """Any level can be waited for."""
    return 10**9, 0


def wait_for_recovery(self: Allocator, now_ms: int, *, projected: bool) -> int:
    """Below four fifths of a bucket, no request is granted."""
    tokens = available(self, now_ms, projected=projected)
    return tokens if tokens >= self.ledger.bucket.capacity * 4 // 5 else 0


def throttled(self: Probing, now_ms: int) -> bool:
    """Asks Keepa every ten minutes at most."""
    return may_start(self, now_ms) and now_ms >= 600_000 * self.probes


def reserve_later(self: Allocator, waiting: Waiting, batch: Batch, now_ms: int) -> None:
    """Checks now, reserves when the loop comes round again."""
    request = waiting.request
    self.waitlist.serve(waiting, batch.tokens, now_ms)
    lease = self.ledger.reserve(request, batch.units, batch.tokens, now_ms)
    self.ledger.holds.resize(lease, 0)
    self._outcomes.append(Granted(lease, now_ms - waiting.since_ms))


def reserve_now(self: Allocator, now_ms: int) -> None:
    """The loop has come round: what was granted is reserved at last."""
    for lease in list(self.ledger.holds):
        if not lease.tokens:
            self.ledger.holds.resize(lease, lease.units)
    advance(self, now_ms)


def await_between() -> Any:
    """Both halves of check, await, reserve."""
    return patch.multiple(Allocator, _grant=reserve_later, advance=reserve_now)


def cancel_silently(self: Allocator, lease_id: str, now_ms: int) -> None:
    """Takes the waiter out, and leaves the others asleep."""
    del now_ms
    self.waitlist.remove(lease_id)


def leak_cancelled_grant(self: Allocator, lease_id: str, now_ms: int) -> None:
    """A grant that crossed a cancellation stays held."""
    self.waitlist.remove(lease_id)
    self._decide(now_ms)


def smallest_first(self: Waitlist) -> Waiting | None:
    """The smallest request goes first."""
    return min(self, key=lambda waiting: waiting.quote.tokens, default=None)


def serve_any(self: Waitlist, waiting: Waiting, tokens: int, now_ms: int) -> None:
    """Serves a request that need not be the first of its holder."""
    del tokens, now_ms
    self.remove(waiting.request.lease_id)


def bypassing() -> Any:
    """Small requests pass big ones."""
    return patch.multiple(Waitlist, head=smallest_first, serve=serve_any)


def join_with_credit(self: PriorityClass, waiting: Waiting) -> None:
    """A returning holder keeps its old tag."""
    holder = waiting.request.holder
    flow = self.flows.get(holder)
    if flow is None:
        self._arrivals += 1
        place = self.places.pop(holder, None) or Place(0)
        flow = self.flows[holder] = Flow(holder, place, self._arrivals)
        self._push(flow)
    flow.queue.append(waiting)


def leave_without_memory(self: PriorityClass, waiting: Waiting) -> None:
    """A leaving holder is forgotten, with all it was served ahead of its turn."""
    flow = self.flows[waiting.request.holder]
    flow.queue.remove(waiting)
    if not flow.queue:
        del self.flows[flow.holder]


def prior_for_ever(_self: CostBook, _operation: str, units: int, prior: float) -> int:
    """Trusts the caller for the cost of a call."""
    return max(1, round(units * prior))


def never_confirmed(
    self: Allocator, waiting: Waiting, batch: Batch | MustWait, now_ms: int
) -> Prospect:
    """No wait stands for longer than a moment."""
    return replace(prospect(self, waiting, batch, now_ms), confirmed=False)


def trusting_what_is_fresh() -> Any:
    """A young reply is the whole truth; the broker's own books do not count."""
    return patch.multiple(
        Ledger, probe_lead=0, headroom_if_asked=lambda self, now_ms: self.headroom(
            now_ms, projected=False
        )
    )  # fmt: skip


def adopt_as_straddling(self: Bucket, observation: Observation) -> None:
    """Near a tick no count is to be trusted, whenever it was asked for."""
    adopt(self, observation)
    self.straddled_ticks = int(
        observation.envelope.next_tick_ms - self.period.ms
        >= observation.envelope.server_time_ms - 100
    )


def hope_for_all(self: Ledger, _now_ms: int) -> int:
    """Whatever is reserved might come back."""
    return self.bucket.observed


def no_retry(_self: Ledger, _lease_id: str) -> Lease | None:
    """No lease is known by its id."""
    return None


def patient_with_keepa(self: Waiting, patience_ms: int) -> int:
    """Keepa's word is awaited, however little time the client has."""
    return self.since_ms + patience_ms


EXHIBITS: Final = (
    Exhibit(
        "wait target above capacity",
        "A request for 450 tokens waited for ever at a bucket of 300.",
        replacing(Quotes, "_limits", no_limit),
    ),
    Exhibit(
        "recovery threshold that a small task keeps draining",
        "Work stopped until 280 tokens were there, and a small task kept draining them.",
        replacing(Allocator, "available", wait_for_recovery),
    ),
    Exhibit(
        "rescue sync throttled away",
        "The sync that would have ended a wait was itself limited to one in ten minutes.",
        replacing(Probing, "may_start", throttled),
    ),
    Exhibit(
        "sync for every arrival",
        "Each of a crowd that waited asked Keepa again, many times a second.",
        replacing(Allocator, "_prospect", never_confirmed),
    ),
    Exhibit(
        "a tick slept through with tokens in hand",
        "A reply that may have lacked a settled call was young, so it confirmed a wait of 60 s.",
        trusting_what_is_fresh,
    ),
    Exhibit(
        "a lump asked for over and over",
        "For 100 ms after a tick every count was thought to lack the lump, and asked for again.",
        replacing(Bucket, "adopt", adopt_as_straddling),
    ),
    Exhibit(
        "a doubt polled",
        "A reply that might lack a call was asked about although all was spent, tick after tick.",
        replacing(Ledger, "headroom_if_asked", hope_for_all),
    ),
    Exhibit(
        "sync that blocks",
        "While the status call hung, nobody got tokens that were surely there.",
        replacing(Probing, "is_worth_waiting_for", always),
    ),
    Exhibit(
        "answer held until nobody listens",
        "A call of one second ended in DEADLINE_EXCEEDED while the status call hung.",
        replacing(Waiting, "due_ms", patient_with_keepa),
    ),
    Exhibit(
        "check-then-reserve with an await between",
        "Four workers each saw the same five tokens and went to -150.",
        await_between,
    ),
    Exhibit(
        "a cancelled waiter that stops the loop",
        "When the first in line gave up, those behind it were never woken.",
        replacing(Allocator, "cancel", cancel_silently),
    ),
    Exhibit(
        "cancelled grant leaks",
        "A grant made while its client left stayed reserved until it expired.",
        replacing(Allocator, "cancel", leak_cancelled_grant),
    ),
    Exhibit(
        "small requests starving a big one",
        "Whatever fitted was granted first, so a large batch never came to its turn.",
        bypassing,
    ),
    Exhibit(
        "idle flow rejoining with saved-up credit",
        "A worker back from a break took everything until it had caught up.",
        replacing(PriorityClass, "join", join_with_credit),
    ),
    Exhibit(
        "debt washed away by leaving",
        "Leaving the queue for a moment wiped out what had been taken ahead of turn.",
        replacing(PriorityClass, "leave", leave_without_memory),
    ),
    Exhibit(
        "estimate never learned",
        "50 ASINs were reserved at 2 tokens each, time after time, and cost 386.",
        replacing(CostBook, "estimate", prior_for_ever),
    ),
    Exhibit(
        "old prices for ever",
        "After a price fell, tokens lay idle behind reservations at the old one.",
        replacing(Band, "_forget_old_price", lambda _self: None),
    ),
    Exhibit(
        "repeat reserves again",
        "A retried request, its answer lost on the way, took tokens a second time.",
        replacing(Ledger, "lease", no_retry),
    ),
    Exhibit(
        "overlapping calls taken as included",
        "The reply of a long call, older than a short call's charge, gave its tokens back.",
        replacing(Holds, "includes", staticmethod(certain_at_once)),
    ),
)
