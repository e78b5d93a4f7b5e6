"""`AsyncBrokerClient` behind the verbs of `BrokerClient`, so that one suite tests both."""

import asyncio
import contextvars
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from fetcher.broker_client import AsyncBrokerClient, AsyncLease, BucketView, Lease

T = TypeVar("T")
TIMEOUT_S = 60.0


class Loop:
    """An event loop in a thread of its own; one for all tests, as grpc.aio likes it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Awaits *work* there, with the context variables of here."""
        done: Future[T] = Future()
        context = contextvars.copy_context()

        async def carry() -> None:
            try:
                done.set_result(await work)
            except BaseException as exc:  # noqa: BLE001 - it is raised where it belongs
                done.set_exception(exc)

        tasks = []
        self._loop.call_soon_threadsafe(
            lambda: tasks.append(self._loop.create_task(carry(), context=context))
        )
        return done.result(TIMEOUT_S)


class LeaseFace:
    """An `AsyncLease` that is settled without await."""

    def __init__(self, loop: Loop, lease: AsyncLease) -> None:
        self._loop = loop
        self._lease = lease

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._lease, name)
        if not name.startswith("settle_"):
            return found
        return lambda *args, **named: self._loop.run(found(*args, **named))


class ClientFace:
    """An `AsyncBrokerClient` that is used without await."""

    def __init__(self, loop: Loop, address: str, **named: Any) -> None:
        self._loop = loop
        self._client = loop.run(self._make(address, named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    @contextmanager
    def lease(self, *args: Any, **named: Any) -> Iterator[Lease]:
        """A lease; see `BrokerClient.lease`."""
        manager = self._client.lease(*args, **named)
        face: Any = LeaseFace(self._loop, self._loop.run(manager.__aenter__()))
        try:
            yield face
        except BaseException as exc:
            self._loop.run(manager.__aexit__(type(exc), exc, exc.__traceback__))
            raise
        else:
            self._loop.run(manager.__aexit__(None, None, None))

    def get_bucket(self, **named: Any) -> BucketView:
        """The bucket."""
        return self._loop.run(self._client.get_bucket(**named))

    def stop_waiting(self) -> None:
        """Ends every wait."""

        async def stop() -> None:
            self._client.stop_waiting()

        self._loop.run(stop())

    def close(self, **named: Any) -> None:
        """Disconnect."""
        self._loop.run(self._client.close(**named))

    async def _make(self, address: str, named: dict[str, Any]) -> AsyncBrokerClient:
        return AsyncBrokerClient(address, **named)
