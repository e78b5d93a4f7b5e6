"""Keepa over a network: calls take time, replies get lost, ticks wander."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from broker.core.bucket import Envelope
from tests.simulation.audit import Audit
from tests.simulation.call import Call
from tests.simulation.dice import Dice, Fate
from tests.simulation.keepa_model import KeepaModel, Moment, Reading, RunningCall
from tests.simulation.scenario import Scenario
from tests.simulation.timeline import Timeline

PROBE_TIMEOUT_MS: Final = 15_000
# A client gives up before the broker stops holding tokens for its call.
SLOW_CALL_MS_MAX: Final = 100_000
CLIENT_TIMEOUT_MS: Final = 110_000
OUTAGE_MS_MAX: Final = 120_000


class WitnessedEnvelope(Envelope, frozen=True):
    """An envelope with the number of surprises in the bucket by then."""

    surprises: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker gets to see of its call; no envelope: no usable answer."""

    envelope: WitnessedEnvelope | None
    refused: bool = False


class KeepaService:
    """The model behind a network."""

    def __init__(
        self, scenario: Scenario, timeline: Timeline, model: KeepaModel, audit: Audit, fate: Fate
    ) -> None:
        self.model = model
        self.calm = False
        # The last probe gets no answer, or has not got one.
        self.lets_probe_hang = False
        self._scenario = scenario
        self._timeline = timeline
        self._audit = audit
        self._ticks = fate.dice("ticks")
        self._probes = fate.dice("probes")
        self._out_until_ms = 0
        self._plan_tick()

    def call(self, call: Call, dice: Dice, done: Callable[[Answer], None]) -> int:
        """Sends *call*; returns how long its client may have to wait, in ms."""
        scenario = self._scenario
        if not self.calm and (self._out or dice.strikes(scenario.call_lost)):
            self._audit.harmless(call)
            wait_ms = dice.between(10, CLIENT_TIMEOUT_MS)
            self._timeline.after(wait_ms, partial(done, Answer(None)))
            return wait_ms
        way_ms = dice.between(*scenario.call_way_ms)
        work_ms = 1 + int(scenario.processing_ms * (0.5 + dice.random()))
        if not self.calm and dice.strikes(scenario.slow_call):
            work_ms = dice.between(work_ms, SLOW_CALL_MS_MAX)
        arrive = partial(self._arrive, call, work_ms, dice, done)
        self._timeline.after(way_ms, arrive)
        return way_ms + work_ms + 100

    def probe(self, done: Callable[[WitnessedEnvelope | None], None]) -> None:
        """Asks for the balance; answers None when it fails."""
        dice = self._probes
        self.lets_probe_hang = not self.calm and (
            self._out or dice.strikes(self._scenario.probe_fails)
        )
        if self.lets_probe_hang:
            self._timeline.after(dice.between(5, PROBE_TIMEOUT_MS), partial(done, None))
            return
        way_ms = dice.between(*self._scenario.probe_way_ms)
        self._timeline.after(way_ms, partial(self._read, done))

    def break_down(self, dice: Dice) -> None:
        """Keepa is unreachable for a while."""
        self._out_until_ms = self._timeline.now_ms + dice.between(1_000, OUTAGE_MS_MAX)

    @property
    def _out(self) -> bool:
        return self._timeline.now_ms < self._out_until_ms

    def _read(self, done: Callable[[WitnessedEnvelope | None], None]) -> None:
        envelope = self._witnessed(self.model.read(self._timeline.now_ms), self._audit.surprises)
        way_ms = self._probes.between(*self._scenario.probe_way_ms)
        self._timeline.after(way_ms, partial(done, envelope))

    def _arrive(
        self, call: Call, work_ms: int, dice: Dice, done: Callable[[Answer], None]
    ) -> None:
        """The request is at Keepa."""
        now_ms = self._timeline.now_ms
        back_ms = dice.between(*self._scenario.call_way_ms)
        if not self.calm and dice.strikes(self._scenario.server_error):
            self._audit.harmless(call)
            envelope = self._witnessed(self.model.read(now_ms), self._audit.surprises)
            body = envelope if dice.random() < 0.5 else None
            self._timeline.after(back_ms, partial(done, Answer(body)))
            return
        running = self.model.admit(call.cost, now_ms)
        if running is None:
            self._audit.refused(call)
            envelope = self._witnessed(self.model.read(now_ms), self._audit.surprises)
            self._timeline.after(back_ms, partial(done, Answer(envelope, refused=True)))
            return
        if self.model.charge is Moment.START:
            self._audit.charged(call)
        witness = self._audit.surprises
        if not self.calm and dice.strikes(self._scenario.reply_lost):
            gone_ms = dice.between(0, CLIENT_TIMEOUT_MS)
            self._timeline.after(gone_ms, partial(done, Answer(None)))
            done = _nobody
        finish = partial(self._finish, call, running, witness, back_ms, done)
        self._timeline.after(work_ms, finish)

    def _finish(
        self,
        call: Call,
        running: RunningCall,
        witness: int,
        back_ms: int,
        done: Callable[[Answer], None],
    ) -> None:
        """Keepa has done the work."""
        reading = self.model.finish(running, self._timeline.now_ms)
        if self.model.charge is Moment.END:
            self._audit.charged(call)
        if self.model.snapshot is Moment.END:
            witness = self._audit.surprises
        if done is not _nobody:
            answer = Answer(self._witnessed(reading, witness))
            self._timeline.after(back_ms, partial(done, answer))

    def _plan_tick(self) -> None:
        jitter_ms = self._scenario.tick_jitter_ms
        landing_ms = self.model.next_tick_ms + self._ticks.between(-jitter_ms, jitter_ms)
        self._timeline.at(landing_ms, self._tick)

    def _tick(self) -> None:
        wander_ms, model = self._scenario.period_wander_ms, self.model
        if wander_ms:
            period_ms = model.period_ms + self._ticks.between(-wander_ms, wander_ms)
            middle_ms = self._scenario.period_ms
            model.period_ms = min(max(period_ms, middle_ms * 9 // 10), middle_ms * 11 // 10)
        model.tick()
        self._audit.ticked()
        self._plan_tick()

    @staticmethod
    def _witnessed(reading: Reading, surprises: int) -> WitnessedEnvelope:
        return WitnessedEnvelope(
            reading.server_time_ms,
            reading.processing_ms,
            reading.tokens_left,
            reading.tokens_consumed,
            reading.refill_in_ms,
            reading.refill_rate,
            reading.token_flow_reduction,
            surprises,
        )


def _nobody(_answer: Answer) -> None:
    """The reply is lost."""
