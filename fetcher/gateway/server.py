"""The gateway process: HTTP in, leases from the broker, HTTP to Keepa."""

import asyncio
import signal
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import structlog
import uvloop
from aiohttp import HttpVersion11, web

from fetcher.broker_client import (
    AsyncBrokerClient,
    BrokerAwayError,
    BrokerRefusedError,
    BucketView,
)
from fetcher.gateway import answers, asked
from fetcher.gateway.answers import Refusal
from fetcher.gateway.asked import Asked, AskedError
from fetcher.gateway.cache import Cache
from fetcher.gateway.callers import Caller, Callers
from fetcher.gateway.flights import BODY_BYTES_MAX, Flight, Flights
from fetcher.gateway.metrics import GatewayMetrics
from fetcher.gateway.reel import BrokenReplyError, Head, Reader
from fetcher.gateway.settings import GatewaySettings
from fetcher.gateway.upstream import Upstream
from protos.process.addresses import Listen
from protos.process.inflate import Inflate
from protos.process.scrape_token import scrape_token
from protos.process.settings import key_fingerprint
from protos.web.guard import Guard
from protos.web.prometheus import metrics_application
from protos.web.serving import serving
from protos.web.tls import HttpTls

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SERVER: Final = "keepa-gateway"
REQUEST_ID_HEADER: Final = "X-Request-Id"
REQUEST_ID: Final = web.RequestKey("request_id", str)
SOURCE_HEADER: Final = "X-Gateway-Source"
REQUEST_ID_LENGTH_MAX: Final = 64
# A selection has some kB; this is the simulator's bound too.
BODY_IN_BYTES_MAX: Final = 4 * 1024 * 1024
# How often a waiting caller's connection and time are looked at.
LOOK_S: Final = 0.5
# A caller that has joined another's wait waits for its own time only, and this much longer.
GRACE_S: Final = 2.0
STOP_GRACE_S: Final = 30.0
BUCKET_TIMEOUT_S: Final = 2.0
INTERIM: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class HungUpError(Exception):
    """The caller has gone."""


class Gateway:
    """Answers callers.

    Args:
        settings: Those of the process.
        broker: The client that leases and shows the bucket.
        upstream: Keepa.
        metrics: Counts.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        broker: AsyncBrokerClient,
        upstream: Upstream,
        metrics: GatewayMetrics,
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._metrics = metrics
        self._key = settings.keepa_api_key.get_secret_value()
        self._cache = Cache(settings.cache_seconds, settings.gateway_cache_bytes)
        away_max_s = settings.gateway_broker_wait.total_seconds()
        self.flights = Flights(
            broker, upstream, self._cache, metrics, keepa_key=self._key, away_max_s=away_max_s
        )
        self._callers = Callers(
            broker,
            hands_on=settings.require_access().protects_tokens(settings.broker_address),
            anyone=settings.serves_anyone,
            away_max_s=away_max_s,
        )
        self._interim_s = settings.gateway_interim.total_seconds()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers one request; every answer and log line has its id."""
        given = request.headers.get(REQUEST_ID_HEADER, "")
        is_usable = 0 < len(given) <= REQUEST_ID_LENGTH_MAX and given.isascii()
        is_usable = is_usable and given.isprintable() and self._key not in given
        request_id = given if is_usable else uuid.uuid4().hex
        request[REQUEST_ID] = request_id
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            return await self._answer(request)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        zipped = "gzip" in request.headers.get("Accept-Encoding", "").lower()
        wanted: Asked | None = None
        caller: Caller | None = None
        try:
            wanted = await self._read(request)
            caller = await self._callers.find(wanted)
            if wanted.endpoint == "token":
                bucket = await self._bucket(caller)
                self._count(caller, wanted, HTTPStatus.OK, "gateway")
                return answers.token_status(bucket, zipped=zipped)
            return await self._serve(request, wanted, caller)
        except Refusal as refusal:
            identity = caller.identity if caller else ""
            endpoint = wanted.endpoint if wanted else ""
            log.info("refused", identity=identity, endpoint=endpoint, reason=refusal.reason,
                     status=int(refusal.status), problem=str(refusal))  # fmt: skip
            self._metrics.refused(identity, endpoint, refusal.reason)
            self._metrics.answered(identity, endpoint, refusal.status, "gateway")
            return answers.refused(refusal, await self._bucket_or_none(caller), zipped=zipped)
        except HungUpError:
            log.info("the caller has gone", endpoint=wanted.endpoint if wanted else "")
            return web.Response()

    async def _read(self, request: web.Request) -> Asked:
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise answers.rejected(
                f"the body has more than {BODY_IN_BYTES_MAX} bytes",
                reason="invalid",
                status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            ) from None
        try:
            return asked.read(
                method=request.method,
                target=request.raw_path,
                headers=request.headers,
                body=body,
                keepa_key=self._key,
                max_wait_s=self._settings.gateway_max_wait.total_seconds(),
            )
        except AskedError as exc:
            raise answers.rejected(str(exc), reason="invalid", status=exc.status) from None

    async def _serve(
        self, request: web.Request, wanted: Asked, caller: Caller
    ) -> web.StreamResponse:
        deadline_s = time.monotonic() + wanted.max_wait_s
        while True:
            if (cached := self._cache.get(wanted, caller)) is not None:
                reader = Reader(cached.pieces)
                reader.end(broken=False)
                source = f"cache; age={cached.age_s:.0f}"
                self._count(caller, wanted, cached.head.status, "cache")
                return await send(request, cached.head, reader, asyncio.Event(), source)
            async with self.flights.join(wanted, caller) as (flight, reader, is_shared):
                try:
                    head = await self._head(request, flight, deadline_s)
                except Refusal as refusal:
                    if is_shared and _may_ask_itself(refusal, flight, caller, deadline_s):
                        continue
                    raise
                source = "shared" if is_shared else "keepa"
                self._count(caller, wanted, head.status, source)
                return await send(request, head, reader, flight.reel.taken, source)

    async def _head(self, request: web.Request, flight: Flight, deadline_s: float) -> Head:
        """Waits for the head of a reply, and keeps the caller's connection alive meanwhile.

        Raises:
            Refusal: There is no reply, or not within the caller's time.
            HungUpError: The caller has gone.
        """
        shown_s = time.monotonic()
        while not flight.head.done():
            await asyncio.wait([flight.head], timeout=LOOK_S)
            if request.transport is None or request.transport.is_closing():
                raise HungUpError
            now_s = time.monotonic()
            if now_s > deadline_s + GRACE_S and not flight.is_committed:
                bucket = await self._bucket_or_none(flight.caller)
                wait_s = bucket.next_refill_in_s if bucket else GRACE_S
                raise answers.no_tokens(wait_s, "no tokens in time", reason="insufficient_tokens")
            if self._interim_s and now_s - shown_s >= self._interim_s and not flight.head.done():
                shown_s = now_s
                if request.version >= HttpVersion11:
                    # RFC 9110, section 15.2: a client takes any number of interim replies.
                    # Of their codes, Python's own client takes this one only.
                    request.transport.write(INTERIM)
        return flight.head.result()

    async def _bucket(self, caller: Caller) -> BucketView:
        try:
            bucket = await self._broker.get_bucket(behalf=caller.behalf)
        except BrokerRefusedError as exc:
            raise answers.rejected(str(exc), reason=exc.reason or "broker_refused") from None
        except BrokerAwayError as exc:
            raise answers.unavailable(str(exc), reason="broker_away") from None
        if bucket.state == "syncing":
            raise answers.unavailable("the broker has no balance yet", reason="not_synced")
        return bucket

    async def _bucket_or_none(self, caller: Caller | None) -> BucketView | None:
        if caller is None:
            return None
        with suppress(BrokerAwayError, BrokerRefusedError):
            return await self._broker.get_bucket(behalf=caller.behalf, timeout_s=BUCKET_TIMEOUT_S)
        return None

    def _count(self, caller: Caller, wanted: Asked, status: int, source: str) -> None:
        self._metrics.answered(caller.identity, wanted.endpoint, status, source)
        log.debug("answered", identity=caller.identity, endpoint=wanted.endpoint, status=status,
                  source=source)  # fmt: skip


def _may_ask_itself(refusal: Refusal, flight: Flight, caller: Caller, deadline_s: float) -> bool:
    """Whether another's refusal need not be this caller's: its budget or its time ended."""
    if refusal.status is not HTTPStatus.TOO_MANY_REQUESTS:
        return False
    has_time = time.monotonic() < deadline_s
    is_another = flight.caller.identity != caller.identity
    return has_time and (is_another or deadline_s > flight.deadline_s + GRACE_S)


async def send(
    request: web.Request, head: Head, reader: Reader, taken: asyncio.Event, source: str
) -> web.StreamResponse:
    """Sends a reply as Keepa wrote it; decompressed for a caller that takes no gzip."""
    headers = {**head.headers, SOURCE_HEADER: source}
    accepted = request.headers.get("Accept-Encoding", "").lower()
    inflate = None
    if head.encoding != "identity" and head.encoding not in accepted:
        inflate = Inflate(head.encoding, BODY_BYTES_MAX)
        for name in ("Content-Encoding", "Content-Length"):
            headers.pop(name, None)
    response = web.StreamResponse(status=head.status, headers=headers)
    try:
        await response.prepare(request)
        async for piece in reader.pieces(taken):
            for part in inflate.pieces(piece) if inflate else (piece,):
                await response.write(part)
        await response.write_eof()
    except BrokenReplyError:
        # The caller must not take the part for the whole.
        if request.transport is not None:
            request.transport.abort()
    except ConnectionError:
        log.info("the caller has gone")
    return response


def application(gateway: Gateway) -> web.Application:
    """Keepa's paths."""
    routes = web.Application(client_max_size=BODY_IN_BYTES_MAX)
    routes.on_response_prepare.append(_name_request)
    routes.router.add_route("*", "/{path:.*}", gateway.handle)
    return routes


async def _name_request(request: web.Request, response: web.StreamResponse) -> None:
    response.headers[REQUEST_ID_HEADER] = request.get(REQUEST_ID, "")


def health(broker: AsyncBrokerClient, metrics: GatewayMetrics, guard: Guard) -> web.Application:
    """Metrics and health, on a port of their own."""

    async def problem() -> str:
        try:
            await broker.get_bucket(timeout_s=BUCKET_TIMEOUT_S)
        except BrokerRefusedError:
            # It answers; callers bring their own credentials.
            pass
        except BrokerAwayError as exc:
            return str(exc)
        return ""

    async def healthz(_request: web.Request) -> web.Response:
        found = await problem()
        return web.json_response({"live": True, "ready": not found, "problem": found})

    async def readyz(_request: web.Request) -> web.Response:
        ready = not await problem()
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        return web.json_response({"ready": ready}, status=status)

    routes = metrics_application(metrics.registry, guard)
    routes.router.add_get("/healthz", guard.reading(healthz))
    routes.router.add_get("/readyz", readyz)
    return routes


def run(settings: GatewaySettings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        ListenError: An address can't be listened on.
        CredentialError: A file of certificates can't be used.
    """
    uvloop.run(serve(settings))


async def serve(settings: GatewaySettings) -> None:
    """Serves until SIGTERM or SIGINT; see `run`."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(settings) as places:
        log.info(
            "gateway listening",
            api=places.api,
            http=places.http,
            broker=settings.broker_address,
            keepa=settings.keepa_base_url,
            key_fingerprint=key_fingerprint(settings.keepa_api_key.get_secret_value()),
        )
        await stop.wait()
        log.info("gateway stopping")
    log.info("gateway stopped")


@dataclass(frozen=True, slots=True)
class Places:
    """The URLs at which a gateway serves Keepa's API, and metrics and health."""

    api: str
    http: str


@asynccontextmanager
async def running(settings: GatewaySettings) -> AsyncIterator[Places]:
    """Serves while the context lasts. At its end, calls that have been sent are read first.

    Raises:
        ListenError: An address can't be listened on.
        CredentialError: A file of certificates, or the token, can't be used.
    """
    metrics, key = GatewayMetrics(), settings.keepa_api_key
    cert, cert_key = settings.gateway_tls_cert_file, settings.gateway_tls_key_file
    tls = HttpTls("GATEWAY_TLS", cert, cert_key).context() if cert and cert_key else None
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(
            AsyncBrokerClient(
                settings.broker_address,
                key_fingerprint=key_fingerprint(key.get_secret_value()),
                access=settings.require_access(),
            )
        )
        upstream = await stack.enter_async_context(
            Upstream(
                settings.keepa_base_url,
                key,
                connect_timeout_s=settings.keepa_connect_timeout_s,
                read_timeout_s=settings.keepa_read_timeout_s,
            )
        )
        gateway = Gateway(settings, broker, upstream, metrics)
        listen = Listen.parse(settings.gateway_http_listen)
        guard = Guard(scrape_token(settings), listen, is_open=settings.metrics_open)
        routes = health(broker, metrics, guard)
        serving_health = serving(routes, listen, setting="GATEWAY_HTTP_LISTEN", name=SERVER)
        http = await stack.enter_async_context(serving_health)
        listen = Listen.parse(settings.gateway_listen)
        serving_api = serving(
            application(gateway), listen, setting="GATEWAY_LISTEN", name=SERVER, tls=tls
        )
        api = await stack.enter_async_context(serving_api)
        try:
            yield Places(f"{'https' if tls else 'http'}://{api}", f"http://{http}")
        finally:
            await gateway.flights.close(STOP_GRACE_S)
