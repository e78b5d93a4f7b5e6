"""A fetcher: asks for a lease, makes its call, reports what it cost; over and over."""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import Final

from broker.core.leases import Denied, Outcome, Renewal, Settlement
from tests.simulation.audit import Audit
from tests.simulation.broker_process import TTL_MS, BrokerProcess, Grant
from tests.simulation.call import Call
from tests.simulation.demand import Demand
from tests.simulation.dice import Fate
from tests.simulation.keepa_service import Answer, KeepaService
from tests.simulation.network import Network, Rpc
from tests.simulation.scenario import Scenario
from tests.simulation.timeline import Timeline

HEARTBEAT_MS: Final = TTL_MS // 3
RETRY_MS: Final = (100, 2_000)
# No call starts with less of its lease left.
LAST_START_MS: Final = 2_000
REBIRTH_MS_MAX: Final = 60_000


class Stage(Enum):
    """What a worker is about."""

    IDLE = "idle"
    ASKING = "asking"
    CALLING = "calling"
    SETTLING = "settling"
    DEAD = "dead"


class Worker:
    """One fetcher's loop; dies and is reborn under another name."""

    def __init__(
        self,
        number: int,
        demands: tuple[Demand, ...],
        scenario: Scenario,
        timeline: Timeline,
        network: Network,
        keepa: KeepaService,
        audit: Audit,
        fate: Fate,
    ) -> None:
        self.stage = Stage.IDLE
        self.calm = False
        self.holder = scenario.holder(number)
        self._number = number
        self._lives = 1
        self._asked = 0
        self._call: Call | None = None
        self._rpc: Rpc | None = None
        self._called_ms = 0
        self._demands = demands
        self._scenario, self._timeline, self._network = scenario, timeline, network
        self._keepa, self._audit, self._dice = keepa, audit, fate.dice(f"w{number}")
        self._timeline.after(self._dice.between(0, 1_000 + scenario.idle_ms), self._ask)

    # --- asking ----------------------------------------------------------------

    def _ask(self) -> None:
        dice, scenario = self._dice, self._scenario
        if self.calm or self.stage is not Stage.IDLE:
            return
        self._asked += 1
        demand = self._demands[int(dice.random() * len(self._demands))]
        call = Call(
            f"{self._number}.{self._asked}",
            self.holder,
            demand,
            units=dice.between(demand.units_min, demand.units_max),
            max_wait_ms=dice.exponential(90_000) if dice.strikes(scenario.max_wait) else None,
            asked_ms=self._timeline.now_ms,
        )
        self._call, self.stage = call, Stage.ASKING
        self._audit.asked(call)
        if dice.strikes(scenario.give_up):
            self._timeline.after(dice.exponential(60_000), partial(self._give_up, call))
        self._acquire(call)

    def _acquire(self, call: Call) -> None:
        if self._call is not call or self.stage is not Stage.ASKING:
            return
        self._rpc = Rpc(
            call,
            BrokerProcess.acquire,
            partial(self._answered, call),
            partial(self._acquire_broken, call),
        )
        self._network.send(self._rpc)

    def _acquire_broken(self, call: Call) -> None:
        if self._call is call and self.stage is Stage.ASKING:
            assert self._rpc is not None
            self._network.leave(self._rpc)
            self._timeline.after(self._dice.between(*RETRY_MS), partial(self._acquire, call))

    def _give_up(self, call: Call) -> None:
        """The caller has changed its mind; a grant that crosses this is not used."""
        if self._call is not call or self.stage is not Stage.ASKING:
            return
        assert self._rpc is not None
        self._network.leave(self._rpc)
        self._audit.harmless(call)
        self._settle(call, Settlement(
            call.lease_id, 0, call.holder, call.demand.operation, 0, 0, Outcome.NOT_SENT
        ))  # fmt: skip

    def _answered(self, call: Call, answer: object) -> None:
        if self._call is not call or self.stage is not Stage.ASKING:
            return
        if isinstance(answer, Grant):
            self._begin(call, answer)
            return
        self._audit.harmless(call)
        self._finish(call)
        if isinstance(answer, Denied) and answer.retry_delay_ms is not None:
            delay_ms = min(answer.retry_delay_ms, 120_000)
        else:
            delay_ms = self._dice.between(1_000, 60_000)
        self._timeline.after(delay_ms, self._ask)

    # --- calling -----------------------------------------------------------------

    def _begin(self, call: Call, grant: Grant) -> None:
        dice, scenario = self._dice, self._scenario
        call.epoch, call.granted_units, call.tokens = grant.epoch, grant.units, grant.tokens
        if not self.calm and dice.strikes(scenario.dies_before_call):
            self._audit.harmless(call)
            self._die(call)
            return
        if grant.ttl_ms < LAST_START_MS:
            self._audit.harmless(call)
            self._settle(call, self._settlement(call, Outcome.NOT_SENT))
            return
        self.stage, self._called_ms = Stage.CALLING, self._timeline.now_ms
        call.cost = call.demand.cost(call.granted_units, dice)
        wait_ms = self._keepa.call(call, dice, partial(self._replied, call))
        if not self.calm and dice.strikes(scenario.dies_in_call):
            self._timeline.after(dice.between(0, wait_ms), partial(self._die_in_call, call))
        if wait_ms > HEARTBEAT_MS:
            self._timeline.after(HEARTBEAT_MS, partial(self._heartbeat, call))

    def _replied(self, call: Call, answer: Answer) -> None:
        if self._call is not call or self.stage is not Stage.CALLING:
            return
        outcome = Outcome.REPLIED
        if answer.refused:
            outcome = Outcome.REFUSED
        elif answer.envelope is None:
            outcome = Outcome.UNKNOWN
        self._settle(call, self._settlement(call, outcome, answer))

    def _heartbeat(self, call: Call) -> None:
        if self._call is call and self.stage is Stage.CALLING:
            self.present(call)
            self._timeline.after(HEARTBEAT_MS, partial(self._heartbeat, call))

    def present(self, call: Call) -> None:
        """Renews the lease of a running call."""
        renewal = Renewal(
            call.lease_id,
            call.epoch,
            call.holder,
            call.demand.operation,
            call.granted_units,
            call.tokens,
            TTL_MS,
        )
        serve = partial(_renew, renewal)
        self._network.send(Rpc(call, serve, partial(self._renewed, call), _nothing))

    def _renewed(self, call: Call, answer: object) -> None:
        if isinstance(answer, int):
            call.epoch = answer

    def broker_lost(self) -> None:
        """The connection broke; present the open lease as soon as there is a broker."""
        call = self._call
        if call is not None and self.stage is Stage.CALLING:
            delay_ms = self._dice.between(20, 500)
            self._timeline.after(delay_ms, partial(self._present_again, call))

    def _present_again(self, call: Call) -> None:
        if self._call is not call or self.stage is not Stage.CALLING:
            return
        if self._network.broker is None:
            self.broker_lost()
        else:
            self.present(call)

    # --- settling ------------------------------------------------------------------

    def _settlement(
        self, call: Call, outcome: Outcome, answer: Answer | None = None
    ) -> Settlement:
        return Settlement(
            call.lease_id,
            call.epoch,
            call.holder,
            call.demand.operation,
            call.granted_units,
            call.tokens,
            outcome,
            None if answer is None else answer.envelope,
            call_ms=self._timeline.now_ms - self._called_ms,
        )

    def _settle(self, call: Call, settlement: Settlement) -> None:
        self.stage = Stage.SETTLING
        self._send_settlement(call, settlement, self._timeline.now_ms)

    def _send_settlement(self, call: Call, settlement: Settlement, replied_ms: int) -> None:
        if self._call is not call or self.stage is not Stage.SETTLING:
            return
        again = partial(self._send_settlement, call, settlement, replied_ms)
        self._network.send(
            Rpc(
                call,
                partial(_settle, settlement, self._timeline.now_ms - replied_ms),
                partial(self._settled, call),
                lambda: self._timeline.after(self._dice.between(*RETRY_MS), again),
            )
        )

    def _settled(self, call: Call, _answer: object) -> None:
        if self._call is call and self.stage is Stage.SETTLING:
            self._finish(call)
            self._rest()

    def _finish(self, call: Call) -> None:
        self._audit.over(call)
        self._call, self._rpc, self.stage = None, None, Stage.IDLE

    def _rest(self) -> None:
        idle_ms = self._scenario.idle_ms
        self._timeline.after(self._dice.exponential(idle_ms) if idle_ms else 0, self._ask)

    # --- dying ---------------------------------------------------------------------

    def _die_in_call(self, call: Call) -> None:
        if self._call is call and self.stage is Stage.CALLING:
            self._die(call)

    def _die(self, call: Call) -> None:
        self._finish(call)
        self.stage = Stage.DEAD
        self._lives += 1
        self._audit.born()
        self.holder = f"h{self._number}.{self._lives}"
        self._timeline.after(self._dice.between(1, REBIRTH_MS_MAX), self._rise)

    def _rise(self) -> None:
        self.stage = Stage.IDLE
        self._ask()


def _settle(settlement: Settlement, age_ms: int, broker: BrokerProcess, rpc: Rpc) -> None:
    """Serves a SettleLease that left its client *age_ms* after the reply came in."""
    broker.settle(rpc, settlement if age_ms == 0 else _aged(settlement, age_ms))


def _aged(settlement: Settlement, age_ms: int) -> Settlement:
    fields = {name: getattr(settlement, name) for name in Settlement.__struct_fields__}
    return Settlement(**{**fields, "age_ms": age_ms})


def _renew(renewal: Renewal, broker: BrokerProcess, rpc: Rpc) -> None:
    broker.renew(rpc, renewal)


def _nothing() -> None:
    """A lost heartbeat is followed by the next one."""
