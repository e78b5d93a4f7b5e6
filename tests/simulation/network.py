"""The way between workers and broker: slow, lossy, repeating, out of order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.simulation.call import Call
from tests.simulation.dice import Dice
from tests.simulation.scenario import Scenario
from tests.simulation.timeline import Timeline

if TYPE_CHECKING:
    from tests.simulation.broker_process import BrokerProcess

# When a side notices that nothing comes back.
BREAK_MS: Final = 5_000
SLOW_MESSAGE_MS: Final = 8_000
COPY_LATER_MS: Final = 60_000


@dataclass(slots=True, eq=False)
class Rpc:
    """One exchange: ends once for its client, by a reply or by breaking."""

    call: Call
    # What the broker does with it; called with the broker and this.
    serve: Callable[[BrokerProcess, Rpc], None]
    reply: Callable[[object], None]
    broken: Callable[[], None]
    ended: bool = False

    def finish(self, answer: object) -> None:
        """The reply is in."""
        if not self.ended:
            self.ended = True
            self.reply(answer)

    def break_off(self) -> None:
        """No reply will come."""
        if not self.ended:
            self.ended = True
            self.broken()


class Network:
    """Carries requests and replies; the broker of the moment is `broker`."""

    def __init__(self, scenario: Scenario, timeline: Timeline, dice: Dice) -> None:
        self.broker: BrokerProcess | None = None
        # Set at the end of a run, so that everything can settle.
        self.calm = False
        self._scenario = scenario
        self._timeline = timeline
        self._dice = dice

    def send(self, rpc: Rpc) -> None:
        """Carry a request to the broker, or not."""
        if self._strikes(self._scenario.message_lost):
            self._timeline.after(BREAK_MS, rpc.break_off)
            return
        self._timeline.after(self._delay_ms(), partial(self._arrive, rpc))
        if self._strikes(self._scenario.message_copied):
            copy = Rpc(rpc.call, rpc.serve, rpc.reply, rpc.broken, ended=True)
            delay_ms = self._dice.between(0, COPY_LATER_MS)
            self._timeline.after(delay_ms, partial(self._arrive, copy))
            self._timeline.after(delay_ms + BREAK_MS, partial(self.leave, copy))

    def answer(self, rpc: Rpc, answer: object) -> None:
        """Carry a reply to the client, or not."""
        if rpc.ended:
            return
        if self._strikes(self._scenario.message_lost):
            self._timeline.after(BREAK_MS, rpc.break_off)
        else:
            self._timeline.after(self._delay_ms(), partial(rpc.finish, answer))

    def reset(self, rpc: Rpc) -> None:
        """The broker's end of the connection is gone."""
        if not rpc.ended:
            self._timeline.after(self._delay_ms(), rpc.break_off)

    def leave(self, rpc: Rpc) -> None:
        """The client no longer waits for *rpc*; the broker learns of it some time."""
        rpc.ended = True
        broker = self.broker
        if broker is not None:
            self._timeline.after(self._delay_ms(), partial(broker.left, rpc))

    def _arrive(self, rpc: Rpc) -> None:
        if self.broker is None:
            self.reset(rpc)
        else:
            self.broker.receive(rpc)

    def _strikes(self, probability: float) -> bool:
        return not self.calm and self._dice.strikes(probability)

    def _delay_ms(self) -> int:
        if self._strikes(self._scenario.slow_message):
            return self._dice.between(1, SLOW_MESSAGE_MS)
        return self._dice.between(0, self._scenario.delay_ms)
