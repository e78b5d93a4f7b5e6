"""Authenticates and authorises every RPC.

Maps the caller's token, or without one its certificate, to an identity and checks its
role. Health needs no role: every client that can connect may call it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc
import structlog
from grpc_health.v1 import health

from broker.access.identities import (
    Identity,
    IdentityBook,
    RefusedError,
    caller,
    roles_for,
    still_let_in,
)
from broker.runtime import BrokerRuntime
from protos.channel.reasons import REASON_KEY, Reason
from protos.process.identities import Role
from protos.process.watched_files import Followed

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Code = grpc.StatusCode

now_ms: Final = BrokerRuntime.now_ms
OPEN: Final = f"/{health.SERVICE_NAME}/"
SCHEME: Final = "bearer "
# Fields of a certificate that hold its name; the first that it has counts.
CERTIFICATE_NAMES: Final = ("peer_spiffe_id", "peer_dns", "x509_common_name")

STATUSES: Final = {
    Reason.NO_CREDENTIALS: Code.UNAUTHENTICATED,
    Reason.UNKNOWN_TOKEN: Code.UNAUTHENTICATED,
    Reason.UNKNOWN_CERTIFICATE: Code.UNAUTHENTICATED,
    Reason.WRONG_ROLE: Code.PERMISSION_DENIED,
    Reason.FOREIGN_LEASE: Code.PERMISSION_DENIED,
}


# A refused client may retry thousands of times a second; one line a minute shows it.
LOG_EVERY_MS: Final = 60_000
# Pairs of peer and reason with a line of their own; all others share one line per reason.
PEERS_MAX: Final = 1_000


class RefusalLog:
    """Logs refused calls once a minute per peer and reason, with the number left out."""

    def __init__(self) -> None:
        # Time of the last line, and calls left out since.
        self._logged: dict[tuple[str, str], tuple[int, int]] = {}

    def note(self, reason: Reason, peer: str, now_ms: int, **about: str) -> None:
        """Notes a refused call from *peer*, in gRPC's notation."""
        # Without the port, which differs for every connection of a client.
        host = peer.rpartition(":")[0] or peer
        key = (host, reason.value)
        if key not in self._logged and len(self._logged) >= PEERS_MAX:
            recent = {k: v for k, v in self._logged.items() if now_ms - v[0] < LOG_EVERY_MS}
            self._logged = recent
            if len(recent) >= PEERS_MAX:
                key = ("many peers", reason.value)
        logged_ms, left_out = self._logged.get(key, (now_ms - LOG_EVERY_MS, 0))
        if now_ms - logged_ms < LOG_EVERY_MS:
            self._logged[key] = logged_ms, left_out + 1
            return
        self._logged[key] = now_ms, 0
        log.warning("call refused", reason=reason.value, peer=key[0], left_out=left_out, **about)


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in stubs only
    """Refuses calls that their caller may not make; calls *refused* for each."""

    def __init__(self, book: Followed[IdentityBook], refused: Callable[[Reason], None]) -> None:
        self._book = book
        self._refused = refused
        self._log = RefusalLog()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Returns the call's handler behind the gate."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(OPEN):
            return handler
        token = _bearer_token(handler_call_details.invocation_metadata)

        def look(context: Context) -> Identity:
            """Returns the caller's present identity; counts and logs a refusal."""
            try:
                identity = self._identify(token, context)
                _check_role(identity, method)
            except RefusedError as exc:
                self._refused(exc.reason)
                self._log.note(exc.reason, context.peer(), now_ms(), method=method)
                raise
            return identity

        async def enter(context: Context) -> None:
            try:
                caller.set(look(context))
            except RefusedError as exc:
                await self.refuse(exc, context)
            still_let_in.set(lambda: _check_same(look(context), caller.get()))

        async def stay(context: Context) -> None:
            try:
                still_let_in.get()()
            except RefusedError as exc:
                await self.refuse(exc, context)

        return _behind(enter, stay, handler)

    async def refuse(self, exc: RefusedError, context: Context) -> None:
        """Ends the RPC with *exc*; never returns."""
        metadata = ((REASON_KEY, exc.reason.value),)
        await context.abort(STATUSES[exc.reason], str(exc), trailing_metadata=metadata)

    def _identify(self, token: str | None, context: Context) -> Identity:
        book = self._book.now()
        if token is not None:
            identity = book.by_token(token)
            if identity is None:
                raise RefusedError(
                    Reason.UNKNOWN_TOKEN,
                    "the broker has no such token: check BROKER_TOKEN_FILE, or add the"
                    " token's SHA-256 to the broker's BROKER_IDENTITIES_FILE",
                )
            return identity
        fields = context.auth_context()
        found = next((fields[field] for field in CERTIFICATE_NAMES if fields.get(field)), ())
        names = [name.decode(errors="replace") for name in found]
        if not names:
            raise RefusedError(
                Reason.NO_CREDENTIALS,
                "the broker needs credentials: set BROKER_TOKEN_FILE, or"
                " BROKER_TLS_CLIENT_CERT_FILE and BROKER_TLS_CLIENT_KEY_FILE",
            )
        identity = book.by_certificate(names)
        if identity is None:
            raise RefusedError(
                Reason.UNKNOWN_CERTIFICATE,
                f"the broker has no identity for {names[0]}: add this name to"
                " certificates in the broker's BROKER_IDENTITIES_FILE",
            )
        return identity


def _check_role(identity: Identity, method: str) -> None:
    allowed = roles_for(method)
    if identity.role in allowed:
        return
    needed = " or ".join(role for role in Role if role in allowed) or "another"
    raise RefusedError(
        Reason.WRONG_ROLE,
        f"{identity.name} has the role {identity.role}, but {method.rpartition('/')[2]} needs"
        f" {needed}: use other credentials, or change the role in the broker's"
        " BROKER_IDENTITIES_FILE",
    )


def _check_same(identity: Identity, before: Identity | None) -> None:
    """Checks that the credentials still belong to the identity that began the call.

    Raises:
        RefusedError: They belong to another identity now.
    """
    if before is not None and identity.name != before.name:
        raise RefusedError(
            Reason.UNKNOWN_TOKEN,
            f"these credentials are {identity.name}'s now, and no longer {before.name}'s:"
            " call again",
        )


def _behind(
    enter: Callable[[Context], Awaitable[None]],
    stay: Callable[[Context], Awaitable[None]],
    handler: Handler,
) -> Handler:
    """Wraps *handler*: *enter* checks the call first, *stay* checks it before each message."""
    if not handler.response_streaming:
        assert handler.unary_unary is not None
        answer = handler.unary_unary

        async def one(request: object, context: Any) -> object:
            await enter(context)
            return await answer(request, context)

        return grpc.unary_unary_rpc_method_handler(
            one, handler.request_deserializer, handler.response_serializer
        )
    stream: Any = handler.stream_stream or handler.unary_stream

    async def many(request: object, context: Any) -> AsyncIterator[object]:
        await enter(context)
        async with aclosing(stream(request, context)) as answers:
            async for message in answers:
                await stay(context)
                yield message

    make: Any = (
        grpc.stream_stream_rpc_method_handler
        if handler.request_streaming
        else grpc.unary_stream_rpc_method_handler
    )
    wrapped: Handler = make(many, handler.request_deserializer, handler.response_serializer)
    return wrapped


def _bearer_token(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    for key, value in metadata or ():
        if key == "authorization" and isinstance(value, str):
            # A token in another scheme matches no identity, as the empty one.
            return value[len(SCHEME) :] if value.lower().startswith(SCHEME) else ""
    return None
