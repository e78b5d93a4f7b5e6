"""Holds back a connection with calls that are refused by the hundred.

A refusal costs the broker as much of its one core as a grant, and calls are taken in the
order in which they come: one client that sends nothing but unusable requests would make all
others wait behind it. Its next calls wait their turn instead. They keep their streams
meanwhile, so that gRPC itself turns away what comes beyond `grpc.max_concurrent_streams`,
which costs nearly nothing.
"""

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final

import grpc

from broker.rpc.layers import Answer, Context, Stream
from broker.runtime import BrokerRuntime

# A refused call a turn.
TURN_MS: Final = 10
# So many at once are answered without delay.
REFUSALS_AT_ONCE: Final = 200
# From here on, connections that are no longer held back are forgotten.
PEERS_MAX: Final = 1_000

Code = grpc.StatusCode
now_ms: Final = BrokerRuntime.now_ms
# Statuses of which the client is the cause.
REFUSALS: Final = frozenset(
    code.value[0]
    for code in (
        Code.INVALID_ARGUMENT,
        Code.UNAUTHENTICATED,
        Code.PERMISSION_DENIED,
        Code.RESOURCE_EXHAUSTED,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.FAILED_PRECONDITION,
    )
)


class Pace:
    """When each connection's next call is due; times in milliseconds of a monotonic clock."""

    def __init__(self) -> None:
        # When all refusals so far have had their turn, by connection.
        self._worked_off_ms: dict[str, int] = {}
        self._tidy_at = PEERS_MAX

    def refused(self, peer: str, now_ms: int) -> None:
        """Counts a refused call of *peer*."""
        self._worked_off_ms[peer] = max(self._worked_off_ms.get(peer, 0), now_ms) + TURN_MS
        if len(self._worked_off_ms) > self._tidy_at:
            recent = {key: at_ms for key, at_ms in self._worked_off_ms.items() if at_ms > now_ms}
            self._worked_off_ms = recent
            self._tidy_at = max(PEERS_MAX, 2 * len(recent))

    def pause_ms(self, peer: str, now_ms: int) -> int:
        """How long a new call of *peer* has to wait; a call that has to takes a turn."""
        pause_ms = self._worked_off_ms.get(peer, 0) - REFUSALS_AT_ONCE * TURN_MS - now_ms
        if pause_ms <= 0:
            return 0
        self.refused(peer, now_ms)
        return pause_ms

    def __len__(self) -> int:
        """Connections with refusals of late."""
        return len(self._worked_off_ms)


class PacedCalls:
    """Lets the calls of such a connection wait; calls *held_back* for each that has to."""

    def __init__(self, held_back: Callable[[], None]) -> None:
        self._pace = Pace()
        self._held_back = held_back

    def unary(self, _method: str, answer: Answer) -> Answer:
        """Holds back one answer."""

        async def paced(request: object, context: Context) -> object:
            was_held = len(self._pace) > 0 and await self._hold(context)
            try:
                return await answer(request, context)
            except grpc.aio.AbortError as exc:
                if not was_held:
                    self._note(context)
                # The context holds the error, its traceback the frames, and these the context.
                # Those of a call that was held for long are old: the collector seldom looks
                # at them.
                traceback.clear_frames(exc.__traceback__)
                del request, context
                raise

        return paced

    def stream(self, _method: str, stream: Stream) -> Stream:
        """Holds back a stream."""

        async def paced(request: object, context: Context) -> AsyncIterator[object]:
            was_held = len(self._pace) > 0 and await self._hold(context)
            answers: Any = stream(request, context)
            try:
                async with aclosing(answers):
                    async for message in answers:
                        yield message
            finally:
                if not was_held:
                    self._note(context)

        return paced

    async def _hold(self, context: Context) -> bool:
        pause_ms = self._pace.pause_ms(context.peer(), now_ms())
        if not pause_ms:
            return False
        self._held_back()
        await asyncio.sleep(pause_ms / 1000)
        return True

    def _note(self, context: Any) -> None:
        code = context.code()
        number = code.value[0] if isinstance(code, grpc.StatusCode) else code
        if number in REFUSALS:
            self._pace.refused(context.peer(), now_ms())
