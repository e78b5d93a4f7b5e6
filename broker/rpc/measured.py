"""Counts every RPC by method and status, and measures how long it took."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final

import grpc

from broker.rpc.layers import Answer, Context, Stream

# Method, status, and seconds; None for a stream, which lasts as long as its client likes.
Called = Callable[[str, str, float | None], None]

CODES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


class MeasuredCalls:
    """Reports each call to *called* when it has ended."""

    def __init__(self, called: Called) -> None:
        self._called = called

    def unary(self, method: str, answer: Answer) -> Answer:
        """Measures one answer."""
        called, name = self._called, method.rpartition("/")[2]

        async def measured(request: object, context: Context) -> object:
            started_s = time.monotonic()
            code = "CANCELLED"
            try:
                reply = await answer(request, context)
                code = status(context)
            except Exception:
                code = status(context, otherwise="UNKNOWN")
                raise
            finally:
                called(name, code, time.monotonic() - started_s)
            return reply

        return measured

    def stream(self, method: str, stream: Stream) -> Stream:
        """Counts a stream."""
        called, name = self._called, method.rpartition("/")[2]

        async def measured(request: object, context: Context) -> AsyncIterator[object]:
            code = "CANCELLED"
            answers: Any = stream(request, context)
            try:
                async with aclosing(answers):
                    async for message in answers:
                        yield message
                code = status(context)
            except Exception:
                code = status(context, otherwise="UNKNOWN")
                raise
            finally:
                called(name, code, None)

        return measured


def status(context: Any, *, otherwise: str = "OK") -> str:
    """Returns the name of the status that the handler has set, else *otherwise*."""
    code = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    return CODES[number] if number else otherwise
