"""Counts every RPC by method and status, and measures how long it took."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# Method, status, and seconds; None for a stream, which lasts as long as its client likes.
Called = Callable[[str, str, float | None], None]

CODES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


class MeasuredCalls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in stubs only
    """Reports each call to *called* when it has ended. To be the first interceptor."""

    def __init__(self, called: Called) -> None:
        self._called = called

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Returns the call's handler, measured."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        if handler.unary_unary is not None:
            answer = handler.unary_unary

            async def one(request: object, context: Any) -> object:
                started_s = time.monotonic()
                code = "CANCELLED"
                try:
                    reply = await answer(request, context)
                    code = status(context)
                except Exception:
                    code = status(context, otherwise="UNKNOWN")
                    raise
                finally:
                    self._called(method, code, time.monotonic() - started_s)
                return reply

            return grpc.unary_unary_rpc_method_handler(
                one, handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream is None:
            # Reflection's streams in both directions: for tools only.
            return handler
        stream: Any = handler.unary_stream

        async def many(request: object, context: Any) -> AsyncIterator[object]:
            code = "CANCELLED"
            try:
                async with aclosing(stream(request, context)) as answers:
                    async for message in answers:
                        yield message
                code = status(context)
            except Exception:
                code = status(context, otherwise="UNKNOWN")
                raise
            finally:
                self._called(method, code, None)

        return grpc.unary_stream_rpc_method_handler(
            many, handler.request_deserializer, handler.response_serializer
        )


def status(context: Any, *, otherwise: str = "OK") -> str:
    """Returns the name of the status that the handler has set, else *otherwise*."""
    code = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    return CODES[number] if number else otherwise
