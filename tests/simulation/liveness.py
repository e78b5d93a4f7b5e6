"""Nobody waits without need: heads that could be granted, deadlines, wake-ups."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from broker.core.answers import BucketState
from broker.core.leases import LeaseRequest
from broker.core.probing import PATIENCE_MS
from broker.core.waitlist import Waiting
from tests.simulation.errors import CheckFailedError
from tests.simulation.keepa_model import KeepaModel
from tests.simulation.scenario import Scenario
from tests.simulation.timeline import Timeline

if TYPE_CHECKING:
    from tests.simulation.broker_process import BrokerProcess

# A probe's patience, two ways to Keepa, and the guard around a tick.
SYNC_MS: Final = PATIENCE_MS + 500
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
        self._wakes = 0
        self._wakes_counted_s = -1

    def restarted(self) -> None:
        """A new broker owes nothing yet."""
        self._starved_since_ms, self._live_from_ms = None, 0

    def not_starved(self) -> None:
        """Nobody can demand a grant now."""
        self._starved_since_ms = None

    def blind_until(self, true_ms: int) -> None:
        """The broker can't know of the next tick before *true_ms*."""
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
        elif now_ms - max(self._starved_since_ms, self._live_from_ms) > SYNC_MS:
            head = allocator.waitlist.head()
            self._fail(
                "liveness",
                f"{head} is not granted, though Keepa has {self._model.balance} tokens"
                f" and {allocator.ledger.reserved} are reserved",
            )

    def _covers_head(self, broker: BrokerProcess) -> bool:
        """Whether Keepa's balance, or the projection if it can't be asked, covers the head."""
        allocator, now_ms = broker.allocator, broker.now_ms()
        left = self._model.balance - allocator.ledger.reserved - self._scenario.floor_tokens
        if broker.keepa_unreachable():
            left = min(left, allocator.available(now_ms, projected=True))
        if left <= 0 or allocator.state(now_ms) is not BucketState.SERVING:
            return False
        head = allocator.waitlist.head()
        if self._scenario.budgets:
            head = self._head_within_budget(broker, now_ms)
        if head is None:
            return False
        if allocator.ledger.open_leases:
            left = head.quote.usable(left, allocator.ledger.overrun_tokens)
        return head.quote.least_tokens <= left

    @staticmethod
    def _head_within_budget(broker: BrokerProcess, now_ms: int) -> Waiting | None:
        for waiting in broker.allocator.waitlist.fronts():
            free_ms = broker.allocator.offers.budget_free_ms(waiting, now_ms)
            if free_ms is not None and free_ms <= now_ms:
                return waiting
        return None

    def expect_answer(
        self, broker: BrokerProcess, request: LeaseRequest, deadline_ms: int
    ) -> None:
        """Look again when the broker's clock shows *deadline_ms*, and the first sync is over."""
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
