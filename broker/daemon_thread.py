"""Runs a blocking call in a thread that can't keep the process from ending."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(call: Callable[[], T], *, name: str) -> T:
    """Runs *call* in its own thread; returns its result or raises its exception.

    Python joins an executor's threads at exit: a server that never answers would delay
    the end of the process. It does not join daemon threads.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def finish(step: Callable[[], None]) -> None:
        # The loop may have closed in the meantime: then nothing awaits the answer.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if answer.done() else step())

    def run() -> None:
        try:
            value = call()
        except Exception as exc:  # noqa: BLE001 - raised by the awaiting coroutine
            error = exc
            finish(lambda: answer.set_exception(error))
        else:
            finish(lambda: answer.set_result(value))

    threading.Thread(target=run, name=name, daemon=True).start()
    return await answer
