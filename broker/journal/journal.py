"""The journal of one broker process: writes, and reads for restarts and questions.

Everything here is called from the event loop; threads do the work with Postgres.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Final, TypeVar

import structlog

from broker.core.allocator import Allocator
from broker.core.records import Record
from broker.core.recovery import Opening
from broker.journal import restart
from broker.journal.reader import Reader
from broker.journal.schema import migrate
from broker.journal.status import JournalStatus
from broker.journal.writer import JournalWriter
from protos.postgres.errors import DatabaseAwayError, DatabaseError, DatabaseNotSetUpError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MS: Final = timedelta(milliseconds=1)
# Questions at a time: more wait, so that they take neither threads nor connections.
QUESTIONS_MAX: Final = 2
# An answer holds what was put before the question, unless Postgres is slow.
FLUSH_S: Final = 1.0
T = TypeVar("T")


class Journal:
    """See the parts: `JournalWriter`, `restart.load`, `Reader`.

    Args:
        database_url: The database.
        account: Fingerprint of the Keepa key.
        now_ms: The broker's clock.
        leader: How the leader row names this process.
        signed: Whether holders begin with an identity.
        months_kept: Age at which records are dropped.
    """

    def __init__(
        self,
        database_url: str,
        account: str,
        now_ms: Callable[[], int],
        *,
        leader: str = "",
        signed: bool,
        months_kept: int,
    ) -> None:
        self._url, self._account, self._now_ms = database_url, account, now_ms
        self._months_kept = months_kept
        self._writer = JournalWriter(
            database_url,
            account,
            now_ms,
            leader=leader,
            signed=signed,
            months_kept=months_kept,
        )
        self._reader = Reader(database_url, account)
        # While the count before this term is compared with the one after.
        self._opening: Opening | None = None
        self._questions = asyncio.Semaphore(QUESTIONS_MAX)

    async def prepare(self) -> None:
        """Brings the schema up to date, and begins to write; Postgres may be away.

        Raises:
            DatabaseNotSetUpError: The role may not create what is missing.
        """
        try:
            applied = await asyncio.to_thread(migrate, self._url, self._months_kept)
        except DatabaseNotSetUpError:
            raise
        except DatabaseAwayError as exc:
            log.warning("journal: Postgres is away at the start", reason=str(exc))
        else:
            for name in applied:
                log.info("journal: migrated", migration=name)
        self._writer.start()

    async def restore(self, allocator: Allocator) -> None:
        """Lets *allocator* take over what earlier epochs have left.

        If Postgres can't be read, the allocator keeps its grace.
        """
        self._opening = None
        age_ms_max = allocator.config.lease_age_ms_max
        try:
            recovered = await asyncio.to_thread(
                restart.load,
                self._url,
                self._account,
                self._now_ms,
                lease_age_ms_max=age_ms_max,
            )
        except DatabaseError as exc:
            log.warning("journal: not read; open leases come from their clients", reason=str(exc))
            return
        allocator.restore(recovered, self._now_ms())
        if recovered.books is not None:
            self._opening = Opening(recovered.books, allocator.ledger)
        log.info(
            "journal read",
            leases=len(recovered.leases),
            tokens=allocator.ledger.reserved,
            costs=len(recovered.costs),
            paused=recovered.paused,
        )

    def put(self, epoch: int, made: Iterable[Record]) -> None:
        """Takes the records of a step."""
        made = list(made)
        if self._opening is not None:
            try:
                made = list(self._opening.follow(made))
            except Exception:
                # The journal's past must not stop a broker that serves.
                log.exception("journal: the epochs can't be compared")
                self._opening = None
        if self._opening is not None and self._opening.is_over:
            self._opening = None
        self._writer.put(epoch, made)

    def written(self) -> asyncio.Future[bool]:
        """A future of whether all that has been put is written.

        False: it was dropped, because another broker leads.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()

        def report(done: bool) -> None:  # noqa: FBT001 - as the writer calls it
            # A loop that has ended waits for nothing.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(resolve, done)

        def resolve(done: bool) -> None:  # noqa: FBT001 - as above
            if not future.done():
                future.set_result(done)

        self._writer.when_written(report)
        return future

    @property
    def status(self) -> JournalStatus:
        """The journal now."""
        return self._writer.status

    async def ask(self, question: Callable[[Reader], T]) -> T:
        """Returns the answer of *question*, which runs in a thread.

        Raises:
            DatabaseError: Postgres can't be read.
        """
        async with self._questions:
            return await asyncio.to_thread(self._answer, question)

    def _answer(self, question: Callable[[Reader], T]) -> T:
        self._writer.flushed(FLUSH_S)
        return question(self._reader)

    async def flush(self, timeout_s: float) -> None:
        """Waits until all is written, for *timeout_s* seconds at most."""
        await asyncio.to_thread(self._writer.flushed, timeout_s)

    async def stop(self, timeout_s: float) -> None:
        """Writes what is left, for *timeout_s* seconds at most, and logs what was not."""
        if not await asyncio.to_thread(self._writer.stop, timeout_s):
            left = self.status.buffered
            log.error("journal: records could not be written before the end", records=left)
