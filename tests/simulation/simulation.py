"""One run: a fleet, a broker, a Keepa, and what goes wrong between them.

Everything follows from a scenario and a seed; the same two give the same run.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from broker.core.allocator import Allocator
from tests.simulation.audit import Audit
from tests.simulation.broker_process import BrokerClock, BrokerProcess
from tests.simulation.budget_audit import days
from tests.simulation.dice import Fate
from tests.simulation.errors import CheckFailedError
from tests.simulation.keepa_model import KeepaModel
from tests.simulation.keepa_service import KeepaService
from tests.simulation.measures import Measures
from tests.simulation.network import Network
from tests.simulation.scenario import Scenario
from tests.simulation.timeline import Action, Timeline
from tests.simulation.worker import Stage, Worker

DOWN_MS: Final = (50, 5_000)
STILL_MS: Final = (100, 60_000)
# Days in the budgets' calendar.
DAYS: Final = 2_000
PAUSED_MS: Final = (1_000, 300_000)
RATES: Final = (1, 5, 20, 60)
# Long enough for every hold to end: the longest call, and then a probe.
SETTLING_MS: Final = 400_000
# No worker is still busy after so long without trouble.
CALM_MS_MAX: Final = 30 * 24 * 3_600_000


class Simulation:
    """Everything that takes part in a run."""

    def __init__(self, scenario: Scenario, fate: Fate) -> None:
        self.scenario = scenario
        self.timeline = Timeline()
        self.measures = Measures()
        self.model = KeepaModel(
            rate=scenario.rate,
            period_ms=scenario.period_ms,
            opening=scenario.opening,
            charge=scenario.charge,
            snapshot=scenario.snapshot,
        )
        self.model.reduction_milli = scenario.reduction_milli
        self.audit = Audit(scenario, self.timeline, self.model, self.measures)
        self.keepa = KeepaService(scenario, self.timeline, self.model, self.audit, fate)
        self.network = Network(scenario, self.timeline, fate.dice("network"))
        self._fate, self._trouble = fate, fate.dice("trouble")
        self._epoch = 0
        self._calm = False
        self._clock = BrokerClock(self._trouble.between(0, 10**9), scenario.clock_ppm)
        self.broker = self._start_broker()
        self.workers = [self._worker(number) for number in range(scenario.workers)]
        self._plan_trouble()

    def run(self, events: int) -> None:
        """Lets *events* things happen, then lets everything settle.

        Raises:
            CheckFailedError: something happened that must not.
        """
        step, check, timeline = self.timeline.step, self.audit.check, self.timeline
        while timeline.events < events:
            step()
            check()
        self._settle()

    def _settle(self) -> None:
        """No more trouble and no new requests: all must end, and all be known."""
        self._calm = self.network.calm = self.keepa.calm = True
        for worker in self.workers:
            worker.calm = True
        # Tokens enough to serve waiting requests soon.
        self.model.rate, self.model.reduction_milli = max(RATES), 0
        self.broker.operate(_drop_budgets)
        give_up_ms = self.timeline.now_ms + CALM_MS_MAX
        self._run_while(self._busy, give_up_ms)
        if self._busy():
            raise CheckFailedError("end", "somebody is still busy", self.timeline.now_ms)
        self._run_until(self.timeline.now_ms + SETTLING_MS)
        self.broker.sync()
        self._run_while(lambda: self.broker.probing, give_up_ms)
        self.audit.check_settled(self.broker)
        self.audit.budgets.check_limits()

    def _busy(self) -> bool:
        idle = (Stage.IDLE, Stage.DEAD)
        return self.network.broker is None or any(w.stage not in idle for w in self.workers)

    def _run_until(self, time_ms: int) -> None:
        self._run_while(lambda: True, time_ms)

    def _run_while(self, condition: Callable[[], bool], give_up_ms: int) -> None:
        while self.timeline.now_ms < give_up_ms and condition():
            self.timeline.step()
            self.audit.check()

    def _worker(self, number: int) -> Worker:
        demands = self.scenario.demands
        if self.scenario.loyal:
            demands = (demands[number % len(demands)],)
        return Worker(
            number,
            demands,
            self.scenario,
            self.timeline,
            self.network,
            self.keepa,
            self.audit,
            self._fate,
        )

    # --- trouble -----------------------------------------------------------------

    def _plan_trouble(self) -> None:
        scenario = self.scenario
        self._every(scenario.restart_every_ms, self._restart)
        self._every(scenario.suspend_every_ms, self._suspend)
        self._every(scenario.clock_stop_every_ms, self._stop_clock)
        self._every(scenario.pause_every_ms, self._pause)
        self._every(scenario.outage_every_ms, partial(self.keepa.break_down, self._trouble))
        self._every(scenario.foreign_every_ms, self._strange_call)
        self._every(scenario.plan_change_every_ms, self._change_plan)
        self._every(scenario.reduction_every_ms, self._change_reduction)

    def _every(self, mean_ms: int, action: Action) -> None:
        if mean_ms:
            delay_ms = self._trouble.exponential(mean_ms)
            self.timeline.after(delay_ms, partial(self._strike, mean_ms, action))

    def _strike(self, mean_ms: int, action: Action) -> None:
        if self._calm:
            return
        if self._trouble.strikes(1.0):
            action()
        self._every(mean_ms, action)

    def _start_broker(self) -> BrokerProcess:
        self._epoch += 1
        broker = BrokerProcess(
            self.scenario.config(),
            self.timeline,
            self.network,
            self.keepa,
            self.audit,
            self._clock,
            epoch=self._epoch,
        )
        self.network.broker = broker
        if day_ms := self.scenario.day_ms:
            starts_ms = self._clock.read(0)
            broker.allocator.budgets.set_periods(days(day_ms, starts_ms, DAYS))
        broker.allocator.waitlist.set_weights(dict(self.scenario.weights))
        broker.start()
        return broker

    def _restart(self) -> None:
        if self.network.broker is None:
            return
        self.audit.note("broker crashes")
        self.measures.restarts += 1
        self.broker.crash()
        self.network.broker = None
        for worker in self.workers:
            worker.broker_lost()
        self.timeline.after(self._trouble.between(*DOWN_MS), self._come_back)

    def _come_back(self) -> None:
        self.broker = self._start_broker()

    def _suspend(self) -> None:
        if self.network.broker is not None and not self.broker.standing_still:
            self.audit.note("broker stands still")
            self.broker.suspend(self._trouble.between(*STILL_MS))

    def _stop_clock(self) -> None:
        """The machine sleeps, and its monotonic clock with it."""
        if self.network.broker is None or self.broker.standing_still:
            return
        self.audit.note("broker's machine sleeps")
        asleep_ms = self._trouble.between(*STILL_MS)
        self._clock.offset_ms -= asleep_ms
        self.broker.suspend(asleep_ms)

    def _pause(self) -> None:
        self.broker.operate(Allocator.pause)
        self.timeline.after(self._trouble.between(*PAUSED_MS), self._resume)

    def _resume(self) -> None:
        self.broker.operate(Allocator.resume)

    def _strange_call(self) -> None:
        cost = min(int(5 * self._trouble.pareto(1.2)), 2_000)
        if self.model.spend_foreign(cost):
            self.audit.struck_by_stranger(cost)

    def _change_plan(self) -> None:
        self.model.rate = RATES[self._trouble.between(0, len(RATES) - 1)]
        self.audit.note("Keepa's plan changes to %s a tick", self.model.rate)

    def _change_reduction(self) -> None:
        most = max(0, 1000 * self.model.rate - 500)
        self.model.reduction_milli = min(most, 250 * self._trouble.between(0, 12))


def _drop_budgets(allocator: Allocator, now_ms: int) -> None:
    allocator.set_budgets((), now_ms)
