"""Exhibits: the count is wrong."""

from typing import Any, Final

from broker.core.allocator import Allocator
from broker.core.bucket import Bucket, Envelope, Observation
from broker.core.holds import Holds
from broker.core.leases import Ended, Lease, Outcome, Renewal, Settled, Settlement
from broker.core.ledger import Comparison, Ledger
from tests.simulation.museum.exhibit import Exhibit, replacing

adopt = Bucket.adopt
lapse = Holds.lapse
settle = Ledger.settle
renew = Ledger.renew
take_cost = Ledger._take_cost
acquire = Allocator.acquire


def held_since_the_count(self: Ledger) -> int:
    """Takes tokensLeft as the whole truth: only later grants are reserved."""
    seen = self.bucket.observation
    counted_ms = seen.arrived_ms if seen is not None else 0
    return sum(lease.held for lease in self.holds if lease.granted_ms > counted_ms)


def refund(self: Holds, lease: Lease) -> None:
    """Gives a silent client's hold back."""
    lapse(self, lease)
    self.resize(lease, 0)


def settle_unknown_as_free(self: Ledger, settlement: Settlement, now_ms: int) -> Settled:
    """No answer, no cost."""
    if settlement.outcome is Outcome.UNKNOWN:
        fields = {name: getattr(settlement, name) for name in Settlement.__struct_fields__}
        settlement = Settlement(**{**fields, "outcome": Outcome.NOT_SENT})
    return settle(self, settlement, now_ms)


def charge_refusals(
    self: Ledger,
    lease: Lease,
    settlement: Settlement,
    now_ms: int,
    *,
    late: bool,
    held: bool = True,
) -> Settled:
    """A refused call is charged what was held for it."""
    settled = take_cost(self, lease, settlement, now_ms, late=late, held=held)
    if settlement.outcome is Outcome.REFUSED:
        self.totals.spent_tokens += lease.tokens
    return settled


def settle_oldest(self: Ledger, settlement: Settlement, now_ms: int) -> Settled:
    """One more call is done; whichever."""
    fields = {name: getattr(settlement, name) for name in Settlement.__struct_fields__}
    oldest = next((lease.lease_id for lease in self.holds), settlement.lease_id)
    return settle(self, Settlement(**{**fields, "lease_id": oldest}), now_ms)


def forget_that_it_counted(self: Ledger, lease_id: str, ended: Ended) -> None:
    """Remember the lease, but not that its cost is booked."""
    self._ended[lease_id] = Ended(ended.late, written_off=0)


def clamped_balance(self: Bucket, now_ms: int) -> int:
    """There is no less than nothing."""
    seen = self.observation
    return 0 if seen is None else max(0, seen.envelope.refilled(self.ticks_landed(now_ms)))


def dripping_balance(self: Bucket, now_ms: int) -> int:
    """Tokens come one by one."""
    seen = self.observation
    if seen is None:
        return 0
    drops = (now_ms - seen.arrived_ms) / self.period.ms * seen.envelope.lump
    return min(int(seen.envelope.tokens_left + drops), seen.envelope.capacity)


def adopt_by_wall_clock(self: Bucket, observation: Observation) -> None:
    """RefillIn counts from Keepa's timestamp."""
    adopt(self, observation)
    self._tick_ms = observation.envelope.next_tick_ms


def keep_own_estimate(self: Bucket, observation: Observation) -> bool:
    """Once there is a count of our own, it is believed."""
    del observation
    return self.observation is None


def always(_self: object, *_: Any) -> bool:
    """Yes."""
    return True


def never_refilled(_self: Bucket, _now_ms: int) -> int:
    """Time brings nothing; only the next reply does."""
    return 0


def lowered_to_capacity(self: Envelope, ticks: int) -> int:
    """The plan is smaller now, so the balance must be too."""
    return min(int(self.tokens_left + max(0, ticks) * self.lump), self.capacity)


def restart_ttl(self: Allocator, request: Any, now_ms: int) -> None:
    """A returning client gets the whole time again."""
    held = self.ledger.lease(request.lease_id)
    if held is not None:
        held.expires_ms = now_ms + request.ttl_ms
    acquire(self, request, now_ms)


def certain_at_once(_observation: Observation, _settled: Lease) -> bool:
    """Every reply counts as including every call before it."""
    return True


def no_doubt(self: Ledger, own: Observation, lease: Lease) -> Comparison:
    """Trusts every client's report of Keepa's reply."""
    return self._compare(own, lease)


def claim_anything(_self: Ledger) -> int:
    """An older epoch may have granted any number of tokens."""
    return 10**9


def stay_young(self: Ledger, renewal: Renewal, now_ms: int) -> Lease:
    """A heartbeat is a sign of life, for as long as it beats."""
    lease = self.lease(renewal.lease_id)
    if lease is not None:
        lease.granted_ms = now_ms
    return renew(self, renewal, now_ms)


EXHIBITS: Final = (
    Exhibit(
        "a client's report overwriting the count",
        "One settle with a made-up envelope became balance, plan and capacity for all.",
        replacing(Ledger, "_judge", no_doubt),
    ),
    Exhibit(
        "a made-up lease adopted at any size",
        "A heartbeat for a lease of 10^9 tokens was adopted, and the forecast froze the broker.",
        replacing(Ledger, "_adoptable_tokens", property(claim_anything)),
    ),
    Exhibit(
        "a lease renewed for ever",
        "A hung thread with a living heartbeat held all tokens for as long as it lived.",
        replacing(Ledger, "renew", stay_young),
    ),
    Exhibit(
        "local estimate believed over the server",
        "Each worker trusted its own count: -42 where Keepa said 38.",
        replacing(Bucket, "supersedes", keep_own_estimate),
    ),
    Exhibit(
        "tokensLeft overwriting in-flight reservations",
        "One worker's reply overwrote the count, and with it what others had reserved.",
        replacing(Ledger, "reserved", property(held_since_the_count)),
    ),
    Exhibit(
        "refill only as a side effect of another call",
        "The balance rose only when a reply said so; without tokens there was no reply.",
        replacing(Bucket, "ticks_landed", never_refilled),
    ),
    Exhibit(
        "expiry refunded",
        "A lease that ran out gave its tokens back while its call was still being charged.",
        replacing(Holds, "lapse", refund),
    ),
    Exhibit(
        "unknown outcome counted as zero",
        "A timed-out call was booked at zero although Keepa had charged it.",
        replacing(Ledger, "settle", settle_unknown_as_free),
    ),
    Exhibit(
        "refusal that still charged",
        "A 429 was booked at the estimate, and the count sank below Keepa's.",
        replacing(Ledger, "_take_cost", charge_refusals),
    ),
    Exhibit(
        "settle by counter instead of by identity",
        "Replies were matched to calls by order of arrival, not by identity.",
        replacing(Ledger, "settle", settle_oldest),
    ),
    Exhibit(
        "late settle counted twice",
        "A retried report of a call was booked a second time.",
        replacing(Ledger, "_end", forget_that_it_counted),
    ),
    Exhibit(
        "clamp at zero that forgets debt",
        "A negative balance was shown as zero, and the debt was forgotten.",
        replacing(Bucket, "balance", clamped_balance),
    ),
    Exhibit(
        "dripping refill",
        "Tokens were taken to come evenly; Keepa brings them in one lump a tick.",
        replacing(Bucket, "balance", dripping_balance),
    ),
    Exhibit(
        "wall clock used for refillIn",
        "The next tick was computed on the server's clock and compared with ours.",
        replacing(Bucket, "adopt", adopt_by_wall_clock),
    ),
    Exhibit(
        "envelope with refillRate 0 adopted",
        "The zeros that answer an invalid key became a balance of zero.",
        replacing(Envelope, "is_observation", property(always)),
    ),
    Exhibit(
        "older envelope adopted",
        "Replies that overtook each other moved the count back.",
        replacing(Bucket, "supersedes", always),
    ),
    Exhibit(
        "balance cut at a downgrade",
        "After a smaller plan the tokens above its capacity were thought lost.",
        replacing(Envelope, "refilled", lowered_to_capacity),
    ),
    Exhibit(
        "TTL restarted by a restart",
        "Coming back for a grant started its time anew, so that a dead hold never ended.",
        replacing(Allocator, "acquire", restart_ttl),
    ),
    Exhibit(
        "processing time ignored",
        "Ticks were placed at timestamp + refillIn, and wandered with the length of calls.",
        replacing(
            Envelope,
            "next_tick_ms",
            property(lambda said: said.server_time_ms + said.refill_in_ms),
        ),
    ),
)
