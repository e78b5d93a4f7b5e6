"""One call to Keepa, streamed: no hidden retries, no redirects, the key in no error."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import aiohttp
from pydantic import SecretStr
from yarl import URL

from fetcher.gateway.asked import Asked
from protos.process.proxies import Proxy

# A body may come slowly for this long; Keepa's longest calls take 20 s.
CALL_TIMEOUT_S: Final = 600.0
CHUNK_BYTES: Final = 64 * 1024
# Any number of calls may run at once; the tokens bound them.
CONNECTIONS_MAX: Final = 0


class UpstreamError(Exception):
    """Keepa gave no usable answer; *sent* is whether it may have seen the call."""

    def __init__(self, message: str, *, sent: bool, late: bool = False) -> None:
        super().__init__(message)
        self.sent = sent
        self.late = late


class _BrokenError(Exception):
    """Takes the place of the errors after which aiohttp would send a call again."""


@dataclass(slots=True)
class _Progress:
    sent: bool = False


class Upstream:
    """A pool of connections to Keepa; make it where the loop runs.

    Args:
        base_url: Keepa, without a slash at the end.
        key: Keepa's real key.
        connect_timeout_s: Longest time to connect.
        read_timeout_s: Longest silence within a call.
    """

    def __init__(
        self, base_url: str, key: SecretStr, *, connect_timeout_s: float, read_timeout_s: float
    ) -> None:
        self._base_url = base_url
        self._key = key
        tracing = aiohttp.TraceConfig()
        tracing.on_request_headers_sent.append(_note_sent)
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=(_once,),
            read_bufsize=CHUNK_BYTES,
            requote_redirect_url=False,
            skip_auto_headers=("User-Agent", "Accept"),
            timeout=aiohttp.ClientTimeout(
                total=CALL_TIMEOUT_S,
                connect=connect_timeout_s,
                sock_connect=connect_timeout_s,
                sock_read=read_timeout_s,
            ),
            trace_configs=[tracing],
            # No proxy can reach this machine itself.
            trust_env=Proxy.towards(base_url) is not None,
        )

    def __repr__(self) -> str:
        return f"Upstream(base_url={self._base_url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @asynccontextmanager
    async def call(self, asked: Asked) -> AsyncIterator[aiohttp.ClientResponse]:
        """Sends *asked* with the real key; yields the reply, its body not yet read.

        Raises:
            UpstreamError: No answer, or the body broke off within the block.
        """
        progress = _Progress()
        problem: UpstreamError | None = None
        try:
            async with self._session.request(
                asked.method,
                self._url(asked),
                allow_redirects=False,
                data=asked.body or None,
                headers=_headers(asked),
                trace_request_ctx=progress,
            ) as reply:
                yield reply
        except TimeoutError:
            text = "Keepa gave no answer in time" if progress.sent else "can't connect to Keepa"
            problem = UpstreamError(text, sent=progress.sent, late=True)
        except (aiohttp.ClientError, _BrokenError, OSError) as exc:
            kind = type(exc.__cause__ or exc).__name__
            text = "the connection to Keepa broke" if progress.sent else "can't connect to Keepa"
            problem = UpstreamError(f"{text} ({kind})", sent=progress.sent)
        # Outside the handler: the original error may name the URL, and the key in it.
        if problem is not None:
            raise problem

    def _url(self, asked: Asked) -> URL:
        query = f"key={self._key.get_secret_value()}"
        if asked.query:
            query += f"&{asked.query}"
        return URL(f"{self._base_url}{asked.path}?{query}", encoded=True)


def _headers(asked: Asked) -> dict[str, str]:
    # Keepa compresses in any case; this form can be read on the way.
    headers = {"Accept-Encoding": "gzip"}
    if asked.body:
        headers["Content-Type"] = asked.content_type or "application/json"
    return headers


async def _note_sent(_session: Any, context: Any, _params: Any) -> None:
    """Called when the request's head goes to the connection."""
    context.trace_request_ctx.sent = True


async def _once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keeps aiohttp from sending a GET again on another connection: no lease would cover it."""
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as exc:
        if isinstance(exc, asyncio.TimeoutError):
            raise
        raise _BrokenError from exc
