"""The door of a console: identities, roles, sign-in by form, forgery of forms.

A caller is one of these, in this order:
1. a bearer token in the header, for programs;
2. a client certificate, where the port asks for one;
3. the cookie of a sign-in by form.

Without identities a console is open, but on loopback only. There any page of the web could
let a browser send requests, so forms and host names are checked in every case.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, urlsplit

import structlog
from aiohttp import web

from protos.channel.access import is_loopback
from protos.process.identities import IdentityFile, Role, digest_of
from protos.web.tls import certificate_names

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SESSION_S: Final = 12 * 3600
SIGN_IN: Final = "/sign-in"
SIGN_OUT: Final = "/sign-out"
SCHEME: Final = "bearer "
FORM_FIELD: Final = "form_token"
# Longer ones are no tokens, and their digests cost time.
TOKEN_MAX_CHARS: Final = 4_096


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller that was let in.

    Args:
        name: The identity; empty where the console is open.
        role: What it may do.
        form_token: Must come back with every form; empty for programs.
        signed_in: Whether it came by the form, and may sign out.
    """

    name: str
    role: Role
    form_token: str = ""
    signed_in: bool = False

    @property
    def may_act(self) -> bool:
        """Whether it may change anything."""
        return self.role is Role.OPERATOR


CALLER: Final = web.RequestKey("caller", Caller)


class RefusedError(Exception):
    """A request is refused; the message gives reason and remedy."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Door:
    """Lets requests in.

    Args:
        name: Of the console; names its cookie. Cookies are shared by all ports of a host.
        identities: Returns the newest file of identities; None leaves the console open.
        setting: The setting that names that file, for messages.
        open_role: The role of any caller where there is no such file; None: none is let in.
        secret: Signs cookies and forms. If it is the same after a restart, sessions live on.
        secure: Whether the port speaks TLS.
    """

    def __init__(
        self,
        name: str,
        *,
        identities: Callable[[], IdentityFile] | None,
        setting: str,
        open_role: Role | None,
        secret: bytes,
        secure: bool = False,
    ) -> None:
        self._identities = identities
        self._setting = setting
        self._open_role = open_role
        self._secret = hashlib.sha256(b"console:" + secret).digest()
        self._secure = secure
        self._cookie = f"__Host-{name}" if secure else name

    @property
    def is_closed(self) -> bool:
        """Whether it lets in no caller at all: without identities, and not open."""
        return self._identities is None and self._open_role is None

    def viewing(self, handler: Handler) -> Handler:
        """Wraps the handler of a page: every identity may look."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                request[CALLER] = self._caller(request)
            except RefusedError as exc:
                if exc.status is HTTPStatus.UNAUTHORIZED and _is_page(request):
                    back = quote(request.path_qs, safe="/")
                    raise web.HTTPSeeOther(f"{SIGN_IN}?next={back}") from None
                return _refusal(exc)
            return await handler(request)

        return guarded

    def acting(self, handler: Handler) -> Handler:
        """Wraps the handler of a form that changes something: operators only."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                caller = self._caller(request)
                await self._check_form(request, caller.form_token)
                if not caller.may_act:
                    raise RefusedError(  # noqa: TRY301 - one answer for all refusals
                        HTTPStatus.FORBIDDEN,
                        f"{caller.name or 'every caller'} has the role {caller.role}, but this"
                        f" needs operator: sign in as another, or change the role in"
                        f" {self._setting}",
                    )
            except RefusedError as exc:
                return _refusal(exc)
            request[CALLER] = caller
            return await handler(request)

        return guarded

    async def sign_in(self, request: web.Request) -> web.Response | None:
        """Takes the form of the sign-in; returns None if the token is unknown."""
        try:
            await self._check_form(request, self.sign_in_form_token)
        except RefusedError as exc:
            return _refusal(exc)
        form = await request.post()
        token = str(form.get("token", "")).strip()[:TOKEN_MAX_CHARS]
        name = None if self._identities is None else self._identities().by_token(token)
        if name is None:
            log.warning("sign-in refused", peer=request.remote)
            return None
        log.info("signed in", identity=name, peer=request.remote)
        response = web.Response(
            status=HTTPStatus.SEE_OTHER, headers={"Location": _own_path(str(form.get("next", "")))}
        )
        response.set_cookie(
            self._cookie,
            self._session(token),
            httponly=True,
            samesite="Lax",
            secure=self._secure,
            max_age=SESSION_S,
        )
        return response

    async def sign_out(self, request: web.Request) -> web.Response:
        """Ends the session of this browser."""
        try:
            await self._check_form(request, self._caller(request).form_token)
        except RefusedError as exc:
            return _refusal(exc)
        response = web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": SIGN_IN})
        response.del_cookie(self._cookie, httponly=True, samesite="Lax", secure=self._secure)
        return response

    @property
    def sign_in_form_token(self) -> str:
        """The token of the sign-in form, which belongs to no session yet."""
        return self._sign("sign-in")

    def _caller(self, request: web.Request) -> Caller:
        if self._identities is None:
            return self._anyone(request)
        file = self._identities()
        token = bearer_token(request)
        if token is not None:
            name = file.by_token(token[:TOKEN_MAX_CHARS])
            if name is None:
                raise RefusedError(
                    HTTPStatus.UNAUTHORIZED,
                    f"no such token: check it, or add its SHA-256 to {self._setting}",
                )
            return Caller(name, file.entries[name].role)
        transport = request.transport
        certificate = None if transport is None else transport.get_extra_info("peercert")
        names: list[str] = next(filter(None, certificate_names(certificate or {})), [])
        name = file.by_certificate(names)
        if name is not None:
            return Caller(name, file.entries[name].role, self._sign(f"certificate:{name}"))
        cookie = request.cookies.get(self._cookie, "")
        name = file.by_digest(self._digest_in(cookie) or "")
        if name is None:
            raise RefusedError(HTTPStatus.UNAUTHORIZED, "sign in first")
        return Caller(name, file.entries[name].role, self._sign(cookie), signed_in=True)

    def _anyone(self, request: web.Request) -> Caller:
        if self._open_role is None:
            raise RefusedError(
                HTTPStatus.FORBIDDEN,
                f"this console is open on loopback only: name identities in {self._setting}, or"
                " listen on 127.0.0.1",
            )
        # A name that another site has pointed at this machine would let its scripts read here.
        host = urlsplit(f"//{request.host}").hostname or ""
        if self._open_role is Role.OPERATOR and not is_loopback(host):
            raise RefusedError(
                HTTPStatus.FORBIDDEN,
                f"an open console answers to 127.0.0.1 and localhost only: name identities in"
                f" {self._setting} to use another name",
            )
        return Caller("", self._open_role, self._sign("open"))

    async def _check_form(self, request: web.Request, form_token: str) -> None:
        """Checks that a page of this console sent the form; programs send their bearer token.

        Raises:
            RefusedError: Another site may have sent it.
        """
        if not form_token:
            return
        origin = request.headers.get("Origin")
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"} or (
            origin is not None and urlsplit(origin).netloc != request.host
        ):
            raise RefusedError(HTTPStatus.FORBIDDEN, "the form comes from another site")
        sent = str((await request.post()).get(FORM_FIELD, ""))
        if not hmac.compare_digest(sent.encode(), form_token.encode()):
            raise RefusedError(
                HTTPStatus.FORBIDDEN, "the form is from another session: load the page again"
            )

    def _session(self, token: str) -> str:
        expires_s = int(time.time()) + SESSION_S
        session = f"{expires_s}.{digest_of(token)}.{secrets.token_hex(8)}"
        return f"{session}.{self._sign(session)}"

    def _digest_in(self, cookie: str) -> str | None:
        """Returns the digest of the token behind a cookie that is genuine and not expired.

        The token itself is in no cookie; the file of identities may still revoke it.
        """
        session, _, signature = cookie.rpartition(".")
        if not session or not hmac.compare_digest(
            signature.encode(errors="replace"), self._sign(session).encode()
        ):
            return None
        expires_s, digest, _ = session.split(".")
        return digest if int(expires_s) > time.time() else None

    def _sign(self, text: str) -> str:
        signed = hmac.digest(self._secret, text.encode(errors="replace"), "sha256")
        return signed.hex()


def bearer_token(request: web.Request) -> str | None:
    """The token in the header; empty for another scheme, None without a header."""
    header = request.headers.get("Authorization")
    if header is None:
        return None
    return header[len(SCHEME) :] if header.lower().startswith(SCHEME) else ""


def _is_page(request: web.Request) -> bool:
    return request.method == "GET" and "text/html" in request.headers.get("Accept", "")


def _refusal(exc: RefusedError) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if exc.status is HTTPStatus.UNAUTHORIZED else {}
    return web.Response(status=exc.status, text=f"{exc}\n", headers=headers)


def _own_path(target: str) -> str:
    """Returns *target* if it is a path of this console, else its first page."""
    parts = urlsplit(target)
    is_own = target.startswith("/") and not target.startswith(("//", "/\\"))
    return target if is_own and not parts.netloc and target.isprintable() else "/"
