"""What every call passes on its way to its handler, laid round each handler once.

An interceptor of gRPC's would wrap the handler anew at each call, which costs more than all
that the wrappers do.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Handlers: TypeAlias = "grpc.GenericRpcHandler[Any, Any]"
Answer = Callable[[Any, Any], Awaitable[object]]
Stream = Callable[[Any, Any], AsyncIterator[object]]


class Layer(Protocol):
    """Wraps the handlers of *method*, "/service/name"."""

    def unary(self, method: str, answer: Answer) -> Answer:
        """Wraps a handler that returns one answer."""

    def stream(self, method: str, stream: Stream) -> Stream:
        """Wraps a handler that yields answers."""


class LayeredServer(grpc.aio.Server):
    """Registers services at *server*, their handlers within *layers*, the outermost first."""

    def __init__(self, server: grpc.aio.Server, layers: Sequence[Layer]) -> None:
        self._server = server
        self._layers = layers

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[Handlers]) -> None:
        """Registers the handlers of a service."""
        layered = [LayeredHandlers(each, self._layers) for each in generic_rpc_handlers]
        self._server.add_generic_rpc_handlers(layered)

    def add_insecure_port(self, address: str) -> int:
        """Listens in plaintext."""
        return self._server.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Listens in TLS."""
        return self._server.add_secure_port(address, server_credentials)

    async def start(self) -> None:
        """Serves."""
        await self._server.start()

    async def stop(self, grace: float | None = None) -> None:
        """Ends, once the calls under way have had *grace* seconds."""
        await self._server.stop(grace)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - gRPC's name
        """Waits for the end."""
        return await self._server.wait_for_termination(timeout)


class LayeredHandlers(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in stubs only
    """The handlers of a service, each wrapped at its first call."""

    def __init__(self, handlers: Handlers, layers: Sequence[Layer]) -> None:
        self._handlers = handlers
        self._layers = layers
        self._made: dict[str, Handler] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "Handler | None":
        """Returns the method's handler; None if the service has no such method."""
        method = handler_call_details.method
        if (made := self._made.get(method)) is not None:
            return made
        handler = self._handlers.service(handler_call_details)
        if handler is not None:
            handler = self._made[method] = wrapped(handler, method, self._layers)
        return handler


def wrapped(handler: Handler, method: str, layers: Sequence[Layer]) -> Handler:
    """*handler* within *layers*."""
    if not handler.response_streaming:
        answer: Any = handler.unary_unary
        for layer in reversed(layers):
            answer = layer.unary(method, answer)
        return grpc.unary_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )
    stream: Any = handler.stream_stream or handler.unary_stream
    for layer in reversed(layers):
        stream = layer.stream(method, stream)
    make: Any = (
        grpc.stream_stream_rpc_method_handler
        if handler.request_streaming
        else grpc.unary_stream_rpc_method_handler
    )
    made: Handler = make(stream, handler.request_deserializer, handler.response_serializer)
    return made
