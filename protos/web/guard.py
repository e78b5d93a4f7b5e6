"""Lets scrapers and viewers read metrics and details of health; probes need no credentials.

A caller is let in by the first of these that applies:
1. it brings the token of METRICS_TOKEN_FILE as a bearer token;
2. the program has a door, and that lets it in as a viewer;
3. there is neither such a file nor a door, and the port is on loopback;
4. METRICS_OPEN lets in every caller.
"""

import hmac
from http import HTTPStatus

from aiohttp import web

from protos.process.addresses import Listen
from protos.process.scrape_token import SETTING
from protos.process.watched_files import Followed
from protos.web.door import TOKEN_MAX_CHARS, Door, Handler, bearer_token


class Guard:
    """Guards metrics and health.

    Args:
        token: The scraper's, if there is one.
        listen: The address of the port.
        door: Of the pages on the same port, if there are any.
        is_open: METRICS_OPEN is set.
    """

    def __init__(
        self,
        token: Followed[str] | None,
        listen: Listen,
        door: Door | None = None,
        *,
        is_open: bool,
    ) -> None:
        self._token = token
        self._door = None if door is None or door.is_closed else door
        alone = self._token is None and self._door is None
        self._open = is_open or (alone and listen.is_local)

    def reading(self, handler: Handler) -> Handler:
        """Wraps the handler of what only scrapers and viewers read."""
        viewing = None if self._door is None else self._door.viewing(handler)

        async def guarded(request: web.Request) -> web.StreamResponse:
            if self._open or self._has_token(request):
                return await handler(request)
            if viewing is not None:
                return await viewing(request)
            if self._token is not None:
                headers = {"WWW-Authenticate": "Bearer"}
                text = f"bring the bearer token of {SETTING}\n"
                return web.Response(status=HTTPStatus.UNAUTHORIZED, text=text, headers=headers)
            text = (
                f"metrics and health are open on loopback only: set {SETTING}, or"
                " METRICS_OPEN=true where the network is protected\n"
            )
            return web.Response(status=HTTPStatus.FORBIDDEN, text=text)

        return guarded

    def _has_token(self, request: web.Request) -> bool:
        given = bearer_token(request)
        if self._token is None or given is None or len(given) > TOKEN_MAX_CHARS:
            return False
        return hmac.compare_digest(given.encode(errors="replace"), self._token.now().encode())


async def livez(_request: web.Request) -> web.Response:
    """Answers 200 while the process lives; for probes, so open to all."""
    return web.Response(text="ok\n")
