"""No request waits without need: heads that could be granted, deadlines, wake-ups.

A head is granted within FRESH_MS and a probe's round trip of the moment from which the
model's own balance covers it. Uncertainty is no excuse, because the broker can ask.
These exceptions excuse nothing else:

* calls without a settle count at their holds: no probe shows their cost, or whether
  Keepa has charged them. A lost call counts for the longest possible call only, since
  then a probe shows it. A settled call does not count;
* the price of the head, the room for an overrun beside other calls, the floor and
  the budgets: these are promises too, and the audit asks for the same price;
* a paused or recovering broker must wait;
* a Keepa that does not answer: the broker waits for PATIENCE_MS, then must use its
  projection;
* a grant within the last YIELD_MS: its holder may be served before the head, and come
  back for the tokens;
* a broker that stood still, or had a stopped clock: until the first tick after that,
  it cannot measure its delay.
"""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

from broker.core.allocator import LOOKED_PAST_MAX
from broker.core.bucket import SAME_TICK_MS, TICK_GUARD_MS
from broker.core.leases import BucketState, LeaseRequest
from broker.core.probing import FRESH_MS, PATIENCE_MS
from broker.core.quotes import Batch
from broker.core.waitlist import YIELD_MS, Waiting
from tests.simulation.errors import CheckFailedError
from tests.simulation.keepa_model import KeepaModel
from tests.simulation.scenario import Scenario
from tests.simulation.timeline import Timeline

if TYPE_CHECKING:
    from tests.simulation.broker_process import BrokerProcess

# A tick is known to within the way of a reply, the guard around it, and a timer.
TICK_SLACK_MS: Final = TICK_GUARD_MS + SAME_TICK_MS
DEADLINE_SLACK_MS: Final = 100
# So often in a second there is nothing to wake for: ticks are a second apart at
# least, and every lease or deadline has but one end.
WAKES_MAX: Final = 300


class Liveness:
    """What the broker must do in time."""

    def __init__(self, scenario: Scenario, timeline: Timeline, model: KeepaModel) -> None:
        self._scenario, self._timeline, self._model = scenario, timeline, model
        self._starved_since_ms: int | None = None
        self._live_from_ms = 0
        # The last grant, of which the holder may come back.
        self._granted_ms: int | None = None
        self._wakes = 0
        self._wakes_counted_s = -1
        way_ms = scenario.probe_way_ms[1]
        self._sync_ms = FRESH_MS + 3 * way_ms + TICK_SLACK_MS + scenario.tick_jitter_ms

    def restarted(self) -> None:
        """A new broker owes nothing yet."""
        self._starved_since_ms, self._live_from_ms, self._granted_ms = None, 0, None

    def not_starved(self) -> None:
        """No grant is due now."""
        self._starved_since_ms = None

    def granted(self) -> None:
        """Tokens may be kept for a moment for the holder of this grant."""
        self._granted_ms = self._timeline.now_ms

    def blind_until(self, true_ms: int) -> None:
        """The broker can't observe the next tick before *true_ms*."""
        self._live_from_ms = true_ms

    def woken(self) -> None:
        """The broker's timer has rung."""
        self._wakes += 1
        if self._wakes > WAKES_MAX:
            second = self._timeline.now_ms // 1000
            if second == self._wakes_counted_s:
                self._fail("spin", f"the broker woke {self._wakes} times within a second")
            self._wakes, self._wakes_counted_s = 0, second

    def check(self, broker: BrokerProcess) -> None:
        """Fail if the head could long have been granted."""
        allocator, now_ms = broker.allocator, self._timeline.now_ms
        if broker.standing_still or not self._covers_head(broker):
            self._starved_since_ms = None
        elif self._starved_since_ms is None:
            self._starved_since_ms = now_ms
        elif now_ms - self._due_from_ms(self._starved_since_ms) > self._allowed_ms(broker):
            head = allocator.waitlist.head()
            self._fail(
                "liveness",
                f"{head} is not granted, though Keepa has {self._model.balance} tokens and"
                f" {allocator.ledger.in_flight_tokens(broker.now_ms())} are in flight",
            )

    def _due_from_ms(self, starved_since_ms: int) -> int:
        yields_until_ms = 0 if self._granted_ms is None else self._granted_ms + YIELD_MS
        return max(starved_since_ms, self._live_from_ms, yields_until_ms)

    def _allowed_ms(self, broker: BrokerProcess) -> int:
        return self._sync_ms + PATIENCE_MS * broker.probe_hangs

    def _covers_head(self, broker: BrokerProcess) -> bool:
        """Whether Keepa's balance, or the projection if it can't be asked, covers the head."""
        allocator, now_ms = broker.allocator, broker.now_ms()
        left = self._model.balance - allocator.ledger.in_flight_tokens(now_ms)
        if broker.keepa_unreachable():
            left = min(left, allocator.ledger.headroom(now_ms, projected=True))
        left = allocator.grantable(left)
        if left <= 0 or allocator.state(now_ms) is not BucketState.SERVING:
            return False
        head = allocator.waitlist.head()
        if self._scenario.budgets:
            head = self._head_within_budget(broker, now_ms)
        if head is None:
            return False
        return isinstance(allocator.quotes.batch(head.request, head.quote, left, now_ms), Batch)

    @staticmethod
    def _head_within_budget(broker: BrokerProcess, now_ms: int) -> Waiting | None:
        quotes = broker.allocator.quotes
        for queue in broker.allocator.waitlist.queues():
            for waiting in islice(queue, LOOKED_PAST_MAX):
                if not quotes.obstacles(waiting.request, waiting.quote, now_ms):
                    return waiting
        return None

    def expect_answer(
        self, broker: BrokerProcess, request: LeaseRequest, deadline_ms: int
    ) -> None:
        """Looks again when the broker's clock shows *deadline_ms*, and the first sync is over."""
        due_ms = broker.clock.when(deadline_ms + PATIENCE_MS + DEADLINE_SLACK_MS)
        look = partial(self._deadline_passed, broker, request, deadline_ms)
        self._timeline.at(max(due_ms, broker.stopped_until_ms + DEADLINE_SLACK_MS), look)

    def _deadline_passed(
        self, broker: BrokerProcess, request: LeaseRequest, deadline_ms: int
    ) -> None:
        waiting = broker.allocator.waitlist.get(request.lease_id)
        if not broker.alive or waiting is None or waiting.request is not request:
            return
        early = broker.now_ms() < deadline_ms + PATIENCE_MS + DEADLINE_SLACK_MS
        if early or self._timeline.now_ms < broker.stopped_until_ms + DEADLINE_SLACK_MS:
            self.expect_answer(broker, request, deadline_ms)
        else:
            self._fail("deadline", f"{request.lease_id} still waits after its deadline")

    def _fail(self, check: str, message: str) -> None:
        raise CheckFailedError(check, message, self._timeline.now_ms)
