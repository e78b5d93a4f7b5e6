"""Leadership in real time: runs the elector's attempts, begins and ends the runtime's terms.

The runtime itself asks the elector at every step whether this broker leads. What follows
here at the end of a term only ends the waits.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import psycopg
import structlog

from broker.core.allocator import Allocator
from broker.core.elector import Attempt, Elector, Term
from broker.journal.leader_row import Found
from broker.runtime import BrokerRuntime

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Store(Protocol):
    """Where the row is: Postgres, or a model of it in a simulation."""

    async def run(self, attempt: Attempt) -> Found:
        """Runs *attempt*, or raises."""
        ...

    async def close(self) -> None:
        """Disconnects."""
        ...


class Leadership:
    """Takes part in the election for one runtime.

    Args:
        elector: Decides; the runtime has the same one.
        store: Runs the attempts.
        runtime: Serves while this broker leads.
        succeed: Makes the allocator of a term that does not continue the one before.
    """

    def __init__(
        self,
        elector: Elector,
        store: Store,
        runtime: BrokerRuntime,
        succeed: Callable[[Term], Awaitable[Allocator]],
    ) -> None:
        self._elector = elector
        self._store = store
        self._runtime = runtime
        self._succeed = succeed
        self._term: Term | None = None
        self._beginning: asyncio.Task[None] | None = None
        # Logged again only if it changes.
        self._trouble = ""
        self._last_epoch = 0

    async def follow(self) -> None:
        """Takes part until cancelled."""
        while True:
            attempt = self._elector.begin(self._runtime.now_ms())
            self._announce()
            if attempt is None:
                await self._pause()
            else:
                await self._run(attempt)
            self._announce()

    async def hand_over(self) -> None:
        """Concedes for good, and gives the row up so that a standby leads at once.

        Call it after `follow` has been cancelled.
        """
        attempt = self._elector.leave(self._runtime.now_ms())
        self._announce()
        if attempt is not None:
            await self._run(attempt)
            log.info("leadership handed over", epoch=attempt.epoch)
        with suppress(psycopg.Error, OSError):
            await self._store.close()

    async def _pause(self) -> None:
        next_ms = self._elector.next_ms()
        assert next_ms is not None
        await asyncio.sleep(max(0, next_ms - self._runtime.now_ms()) / 1000)

    async def _run(self, attempt: Attempt) -> None:
        work = asyncio.ensure_future(self._store.run(attempt))
        # If it is given up, its later end concerns no caller.
        work.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            # Not `asyncio.timeout`: a cancelled driver first tries to cancel its statement
            # at the server, which may be out of reach.
            done, _ = await asyncio.wait({work}, timeout=attempt.timeout_ms / 1000)
        finally:
            if not work.done():
                work.cancel()
        if not done:
            self._failed(attempt, "Postgres does not answer in time")
            return
        try:
            found = work.result()
        except (psycopg.Error, OSError) as exc:
            self._failed(attempt, str(exc).strip().partition("\n")[0] or type(exc).__name__)
            return
        if self._trouble:
            log.info("leadership: Postgres answers again")
            self._trouble = ""
        self._elector.answered(attempt, found.row, self._runtime.now_ms(), done=found.done)

    def _failed(self, attempt: Attempt, reason: str) -> None:
        if reason != self._trouble:
            log.warning("leadership: Postgres is away; retrying", reason=reason)
            self._trouble = reason
        self._elector.failed(attempt, self._runtime.now_ms())

    def _announce(self) -> None:
        """Lets the runtime begin or end a term, if that has changed."""
        now_ms = self._runtime.now_ms()
        term = self._elector.term if self._elector.leading(now_ms) is not None else None
        if term == self._term:
            return
        before, self._term = self._term, term
        if self._beginning is not None:
            self._beginning.cancel()
            self._beginning = None
        if before is not None:
            self._runtime.concede()
            log.warning(
                "leadership conceded", epoch=before.epoch, leader=self._runtime.leader or None
            )
        if term is not None:
            log.info("leadership taken", epoch=term.epoch, continues=term.continues)
            # A task of its own: however long it takes, renewals go on.
            self._beginning = asyncio.ensure_future(self._begin(term, self._last_epoch))
            self._last_epoch = term.epoch

    async def _begin(self, term: Term, last_epoch: int) -> None:
        allocator = self._runtime.allocator
        # The last term may have ended before its books were there.
        if term.continues and allocator.ledger.epoch == last_epoch:
            allocator.begin_epoch(term.epoch, self._runtime.now_ms())
        else:
            allocator = await self._succeed(term)
        self._runtime.lead(allocator)
