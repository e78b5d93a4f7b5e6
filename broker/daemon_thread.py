"""A blocking call in a thread that can't keep the process from ending."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(call: Callable[[], T], *, name: str) -> T:
    """Run *call* in a thread of its own and wait for what it returns or raises.

    An executor's threads are joined at exit, so that a server which never answers
    could hold up the end of the process; a daemon thread can't.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(step: Callable[[], None]) -> None:
        # The loop may have closed in the meantime: then nobody wants to know.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if answer.done() else step())

    def run() -> None:
        try:
            value = call()
        except Exception as exc:  # noqa: BLE001 - handed over to the one who waits
            error = exc
            tell(lambda: answer.set_exception(error))
        else:
            tell(lambda: answer.set_result(value))

    threading.Thread(target=run, name=name, daemon=True).start()
    return await answer
