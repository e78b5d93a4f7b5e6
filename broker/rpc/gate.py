"""Authenticates and authorises every RPC.

Maps the caller's token, or without one its certificate, to an identity and checks its
role. Health needs no role: every client that can connect may call it.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any, Final, NoReturn

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
from broker.rpc.layers import Answer, Context, Stream
from broker.runtime import BrokerRuntime
from protos.channel.reasons import REASON_KEY, Reason
from protos.process.identities import Role
from protos.process.watched_files import Followed

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

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


class Gate:
    """Refuses calls that their caller may not make; calls *refused* for each."""

    def __init__(self, book: Followed[IdentityBook], refused: Callable[[Reason], None]) -> None:
        self._book = book
        self._refused = refused
        self._log = RefusalLog()

    def unary(self, method: str, answer: Answer) -> Answer:
        """Checks the call before it is answered."""
        if method.startswith(OPEN):
            return answer

        async def checked(request: object, context: Context) -> object:
            await self._enter(method, context)
            return await answer(request, context)

        return checked

    def stream(self, method: str, stream: Stream) -> Stream:
        """Checks the call first, and again before each message."""
        if method.startswith(OPEN):
            return stream

        async def checked(request: object, context: Context) -> AsyncIterator[object]:
            await self._enter(method, context)
            answers: Any = stream(request, context)
            async with aclosing(answers):
                async for message in answers:
                    try:
                        still_let_in.get()()
                    except RefusedError as exc:
                        await self.refuse(exc, context)
                    yield message

        return checked

    async def _enter(self, method: str, context: Context) -> None:
        token = _bearer_token(context.invocation_metadata())

        def look() -> Identity:
            """Returns the caller's present identity; counts and logs a refusal."""
            try:
                identity = self._identify(token, context)
                _check_role(identity, method)
            except RefusedError as exc:
                self._refused(exc.reason)
                self._log.note(exc.reason, context.peer(), now_ms(), method=method)
                raise
            return identity

        try:
            identity = look()
        except RefusedError as exc:
            await self.refuse(exc, context)
        caller.set(identity)
        still_let_in.set(lambda: _check_same(look(), identity))

    async def refuse(self, exc: RefusedError, context: Context) -> NoReturn:
        """Ends the RPC with *exc*."""
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


def _check_same(identity: Identity, before: Identity) -> None:
    """Checks that the credentials still belong to the identity that began the call.

    Raises:
        RefusedError: They belong to another identity now.
    """
    if identity.name != before.name:
        raise RefusedError(
            Reason.UNKNOWN_TOKEN,
            f"these credentials are {identity.name}'s now, and no longer {before.name}'s:"
            " call again",
        )


def _bearer_token(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    for key, value in metadata or ():
        if key == "authorization" and isinstance(value, str):
            # A token in another scheme matches no identity, as the empty one.
            return value[len(SCHEME) :] if value.lower().startswith(SCHEME) else ""
    return None
