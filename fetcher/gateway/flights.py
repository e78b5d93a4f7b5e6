"""Calls under way: lease, wait, call, settle; identical GETs share one.

Rule 1: nothing is sent without a lease, and once per lease.
Rule 2: a call that has not been sent ends with its last caller. One that has been sent is
read to its end, for its cost.
Rule 3: a lease is settled the moment the envelope has been read, before the reply has been
handed on in full: a slow caller holds no tokens.
Rule 4: the first bytes of a reply are held back until they show what it is. A refusal by
Keepa is not handed on while there is time to wait for tokens.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import aiohttp
import msgspec
import structlog
from opentelemetry.trace import SpanKind

from fetcher.broker_client import (
    AsyncBrokerClient,
    AsyncLease,
    BrokerAwayError,
    BrokerClientError,
    BrokerRefusedError,
    Envelope,
    LeaseDeniedError,
    LeaseLostError,
)
from fetcher.broker_client.tracing import Spans
from fetcher.gateway.answers import Refusal, no_tokens, rejected, unavailable
from fetcher.gateway.asked import Asked
from fetcher.gateway.cache import Cache
from fetcher.gateway.callers import Caller
from fetcher.gateway.metrics import GatewayMetrics
from fetcher.gateway.reel import Head, Reader, Reel
from fetcher.gateway.upstream import Upstream, UpstreamError
from fetcher.replies.failure import TOO_MANY_REQUESTS, error_of, is_refusal
from fetcher.replies.skeleton import Skeleton
from protos.channel.reasons import Reason
from protos.process.inflate import BodyError, Inflate

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
spans: Final = Spans("fetcher.gateway")

# Errors, refusals and small replies are known in full before anything is handed on.
HELD_BYTES_MAX: Final = 64 * 1024
# Late callers join a reply up to this size.
KEPT_BYTES_MAX: Final = 1024 * 1024
# No reply has more, decompressed.
BODY_BYTES_MAX: Final = 1024 * 1024 * 1024
PASSED_ON: Final = ("Content-Type", "Content-Encoding", "Content-Length", "ETag", "Vary")
# Denials that no refill ends.
STANDSTILLS: Final = frozenset({"paused", "not_synced"})
# The broker's refusals of a caller. For Keepa, 402 means that the key lacks access.
OF_CALLER: Final[Mapping[str, HTTPStatus]] = {
    Reason.UNKNOWN_TOKEN: HTTPStatus.BAD_REQUEST,
    Reason.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    Reason.WRONG_ROLE: HTTPStatus.PAYMENT_REQUIRED,
    Reason.FOREIGN_LEASE: HTTPStatus.PAYMENT_REQUIRED,
}
RETRY_MIN_S: Final = 1.0


class TopLevel(msgspec.Struct, rename="camel"):
    """The fields of a reply that the gateway reads; all others are passed over."""

    error: Any = msgspec.UNSET
    processing_time_in_ms: Any = msgspec.UNSET
    refill_in: Any = msgspec.UNSET
    refill_rate: Any = msgspec.UNSET
    timestamp: Any = msgspec.UNSET
    token_flow_reduction: Any = msgspec.UNSET
    tokens_consumed: Any = msgspec.UNSET
    tokens_left: Any = msgspec.UNSET


_TOP_LEVEL: Final = msgspec.json.Decoder(TopLevel)


def top_level(body: bytes | bytearray) -> dict[str, Any]:
    """Returns the envelope's fields and `error`, as far as *body* has them.

    Raises:
        msgspec.DecodeError: *body* is no JSON object.
    """
    fields: dict[str, Any] = msgspec.to_builtins(_TOP_LEVEL.decode(body))
    return fields


class Flight:
    """One call, with the callers that wait for its reply."""

    def __init__(self, asked: Asked, caller: Caller, deadline_s: float, reel: Reel) -> None:
        self.asked = asked
        self.caller = caller
        self.deadline_s = deadline_s
        self.reel = reel
        self.head: asyncio.Future[Head] = asyncio.get_running_loop().create_future()
        # Set in the step in which the call is sent: from then on nothing cancels it.
        self.is_committed = False
        self.callers = 0
        self.task: asyncio.Task[None] | None = None

    @property
    def is_joinable(self) -> bool:
        """Whether another caller can still get the whole reply."""
        is_over = self.head.done() and self.head.exception() is not None
        return self.reel.is_joinable and not is_over

    def fail(self, refusal: Refusal) -> None:
        """Answers every caller with *refusal*, or breaks off the reply that has begun."""
        if self.head.done():
            self.reel.end(broken=True)
        else:
            self.head.set_exception(refusal)
            # Every caller may have gone.
            self.head.exception()


class Flights:
    """Makes calls.

    Args:
        broker: Leases the tokens.
        upstream: Keepa.
        cache: Takes the replies that are to be repeated.
        metrics: Counts.
        keepa_key: Keepa's real key, which no reply may show.
        away_max_s: Longest wait for a broker that is away, in seconds.
    """

    def __init__(
        self,
        broker: AsyncBrokerClient,
        upstream: Upstream,
        cache: Cache,
        metrics: GatewayMetrics,
        *,
        keepa_key: str,
        away_max_s: float,
    ) -> None:
        self._broker = broker
        self._upstream = upstream
        self._cache = cache
        self._metrics = metrics
        self._keepa_key = keepa_key.encode()
        self._away_max_s = away_max_s
        self._shared: dict[tuple[str, ...], Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def join(
        self, asked: Asked, caller: Caller
    ) -> AsyncIterator[tuple[Flight, Reader, bool]]:
        """Joins the identical call under way, or begins one.

        Yields the call, the caller's place in its reply, and whether it was under way. A
        call that has not been sent ends with the block of its last caller.
        """
        key = sharing_key(asked, caller)
        flight = self._shared.get(key) if key else None
        is_shared = flight is not None and flight.is_joinable
        if flight is None or not is_shared:
            flight = self._begin(asked, caller, key)
        flight.callers += 1
        reader = flight.reel.join()
        try:
            yield flight, reader, is_shared
        finally:
            flight.reel.leave(reader)
            flight.callers -= 1
            if not flight.callers and not flight.is_committed and flight.task is not None:
                flight.task.cancel()

    async def close(self, timeout_s: float) -> None:
        """Ends the waits; reads calls that have been sent for up to *timeout_s* seconds."""
        self._broker.stop_waiting()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _begin(self, asked: Asked, caller: Caller, key: tuple[str, ...] | None) -> Flight:
        kept = max(KEPT_BYTES_MAX, self._cache.entry_bytes_max(asked.endpoint))
        deadline_s = time.monotonic() + asked.max_wait_s
        flight = Flight(asked, caller, deadline_s, Reel(kept))
        flight.task = asyncio.get_running_loop().create_task(self._fly(flight))
        self._tasks.add(flight.task)
        flight.task.add_done_callback(self._tasks.discard)
        if key is not None:
            self._shared[key] = flight
            flight.task.add_done_callback(lambda _: self._forget(key, flight))
        return flight

    def _forget(self, key: tuple[str, ...], flight: Flight) -> None:
        if self._shared.get(key) is flight:
            del self._shared[key]

    async def _fly(self, flight: Flight) -> None:
        try:
            with spans.begin("gateway", attributes={"to": flight.asked.endpoint}):
                while not await self._attempt(flight):
                    pass
        except Refusal as refusal:
            flight.fail(refusal)
        except Exception:
            log.exception("unexpected error in a call", endpoint=flight.asked.endpoint)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            text = "the gateway failed: its log has the reason"
            flight.fail(Refusal(status, "internalError", text, reason="internal"))
        except BaseException:
            flight.fail(unavailable("the gateway is shutting down", reason="stopping"))
            raise

    async def _attempt(self, flight: Flight) -> bool:
        """Makes the call once; returns False if it is to be tried again.

        Raises:
            Refusal: It can't be made, or has no usable reply.
        """
        asked, wait_s = flight.asked, flight.deadline_s - time.monotonic()
        price = asked.price
        try:
            with self._metrics.waiting.track_inprogress():
                leasing = self._broker.lease(
                    price.operation,
                    units=price.units,
                    tokens_per_unit=price.tokens_per_unit,
                    priority=asked.priority,
                    max_wait_s=max(0.0, wait_s),
                    absence_max_s=self._away_max_s,
                    behalf=flight.caller.behalf,
                )
                lease = await leasing.__aenter__()
        except BrokerClientError as exc:
            raise _no_lease(exc) from None
        try:
            self._metrics.granted(flight.caller.identity, asked.endpoint, lease.waited_s)
            return await self._call(flight, lease)
        except LeaseLostError:
            return False
        finally:
            await leasing.__aexit__(None, None, None)

    async def _call(self, flight: Flight, lease: AsyncLease) -> bool:
        lease.calling()
        flight.is_committed = True
        began_s = time.monotonic()
        arrival = Arrival(flight, lease, self._keepa_key)
        try:
            with (
                self._metrics.open.track_inprogress(),
                spans.begin("call", kind=SpanKind.CLIENT),
            ):
                async with self._upstream.call(flight.asked) as reply:
                    await arrival.read(reply)
        except (UpstreamError, BodyError) as exc:
            await self._broken(flight, lease, arrival, exc)
        envelope = arrival.envelope
        tokens = envelope.tokens_consumed if envelope else 0
        duration_s = time.monotonic() - began_s
        self._metrics.replied(flight.caller.identity, flight.asked.endpoint, duration_s, tokens)
        if arrival.is_refusal:
            await lease.settle_refused(envelope)
            if flight.deadline_s - time.monotonic() < RETRY_MIN_S:
                wait_s = envelope.refill_in_ms / 1000 if envelope else RETRY_MIN_S
                raise no_tokens(wait_s, "Keepa has no tokens left", reason="keepa_refused")
            log.warning("Keepa refused a call that has a lease; waiting again",
                        endpoint=flight.asked.endpoint)  # fmt: skip
            flight.is_committed = False
            return False
        await arrival.finish()
        if arrival.is_worth_keeping and flight.reel.kept is not None:
            self._cache.put(flight.asked, flight.caller, flight.head.result(), flight.reel.kept)
        await arrival.settled()
        return True

    async def _broken(
        self, flight: Flight, lease: AsyncLease, arrival: "Arrival", exc: UpstreamError | BodyError
    ) -> None:
        """Settles a call without a whole reply. Raises Refusal."""
        log.warning("no usable reply", endpoint=flight.asked.endpoint, problem=str(exc))
        text = f"{exc}: try again"
        if isinstance(exc, UpstreamError) and not exc.sent:
            await lease.settle_not_sent()
            raise unavailable(text, reason="keepa_away")
        # The envelope of a reply that broke off behind it holds all the same.
        await lease.settle_replied(arrival.envelope)
        late = isinstance(exc, UpstreamError) and exc.late
        status = HTTPStatus.GATEWAY_TIMEOUT if late else HTTPStatus.BAD_GATEWAY
        reason = "keepa_late" if late else "keepa_cut"
        raise Refusal(status, "unavailable", text, reason=reason, retry_s=5.0)


class Arrival:
    """One reply as it comes in: hands it on, reads its envelope, keeps the key in."""

    def __init__(self, flight: Flight, lease: AsyncLease, keepa_key: bytes) -> None:
        self._flight = flight
        self._lease = lease
        self._key = keepa_key
        # What is held back, as it travels and decoded.
        self._held: list[bytes] = []
        self._held_text = bytearray()
        # Reads a reply that has outgrown what is held.
        self._skeleton: Skeleton | None = None
        # The last bytes that were read: the key may lie across two pieces.
        self._tail = b""
        self._shows_key = False
        self._head = Head(0, {}, "")
        self._fields: dict[str, Any] | None = None
        self._settling: asyncio.Task[None] | None = None

    @property
    def envelope(self) -> Envelope | None:
        """The reply's envelope as far as it has come."""
        return Envelope.from_body(self._fields)

    @property
    def is_refusal(self) -> bool:
        """Whether Keepa made no call because there are too few tokens."""
        if self._head.status == TOO_MANY_REQUESTS:
            return True
        kind, message = error_of(self._fields)
        return bool(kind) and is_refusal(f"{kind} {message}", self._head.status, self.envelope)

    @property
    def is_worth_keeping(self) -> bool:
        """Whether the same request may get this reply again."""
        is_good = self._fields is not None and not any(error_of(self._fields))
        return self._head.status == HTTPStatus.OK and is_good and not self._shows_key

    async def read(self, reply: aiohttp.ClientResponse) -> None:
        """Reads *reply* to its end; begins to hand it on when it has outgrown what is held.

        Raises:
            BodyError: The reply is cut or damaged.
            UpstreamError: It would show the key.
        """
        headers = {name: reply.headers[name] for name in PASSED_ON if name in reply.headers}
        encoding = headers.get("Content-Encoding", "identity").strip().lower()
        self._head = Head(reply.status, headers, encoding)
        inflate = Inflate(encoding, BODY_BYTES_MAX)
        try:
            async for chunk in reply.content.iter_any():
                for piece in inflate.pieces(chunk):
                    self._look_at(piece)
                if self._flight.head.done():
                    if self._shows_key:
                        raise UpstreamError("the reply quotes the key", sent=True)
                    self._settle_early()
                    await self._flight.reel.write(chunk)
                    continue
                self._held.append(chunk)
                if self._skeleton is not None and not self._shows_key:
                    await self._hand_on()
            inflate.finish()
        finally:
            self._fields = self._top_level()

    async def finish(self) -> None:
        """Hands the rest on, and begins the settle in the same turn of the loop.

        So the settle costs the caller no time. A caller that has the reply, and asks for the
        count, is behind it in the connection to the broker.
        """
        is_small = not self._flight.head.done()
        if is_small:
            self._mask()
            self._flight.head.set_result(self._head)
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle())
        if is_small:
            await self._write_held()
        self._flight.reel.end()

    async def settled(self) -> None:
        """Waits until the settle has been taken, or is repeated in the background."""
        assert self._settling is not None
        await self._settling

    async def _hand_on(self) -> None:
        self._flight.head.set_result(self._head)
        await self._write_held()

    async def _write_held(self) -> None:
        for chunk in self._held:
            await self._flight.reel.write(chunk)
        self._held.clear()

    def _look_at(self, piece: bytes) -> None:
        self._shows_key = self._shows_key or self._key in self._tail + piece
        self._tail = (self._tail + piece)[-len(self._key) :]
        if self._skeleton is not None:
            self._skeleton.feed(piece)
            return
        self._held_text += piece
        if len(self._held_text) > HELD_BYTES_MAX:
            self._scan()

    def _scan(self) -> Skeleton:
        """Changes from holding the text to scanning it."""
        self._skeleton = Skeleton()
        self._skeleton.feed(bytes(self._held_text))
        self._held_text.clear()
        return self._skeleton

    def _top_level(self) -> dict[str, Any] | None:
        """The reply's fields. A small one is decoded at once, which is faster."""
        if self._skeleton is None:
            try:
                return top_level(self._held_text)
            except (msgspec.DecodeError, RecursionError):
                # It is cut, or no JSON.
                return self._scan().fields
        return self._skeleton.fields

    def _settle_early(self) -> None:
        if self._settling is None and self._skeleton is not None and self._skeleton.has_envelope:
            self._fields = self._skeleton.fields
            self._settling = asyncio.create_task(self._settle())

    async def _settle(self) -> None:
        await self._lease.settle_replied(self.envelope)

    def _mask(self) -> None:
        """Blanks out the key, should Keepa quote the request in an error's text."""
        if not self._shows_key:
            return
        inflate = Inflate(self._head.encoding, BODY_BYTES_MAX)
        body = b"".join(inflate.feed(chunk) for chunk in self._held).replace(self._key, b"***")
        headers = {"Content-Type": self._head.headers.get("Content-Type", "application/json")}
        headers["Content-Length"] = str(len(body))
        self._head = Head(self._head.status, headers, "identity")
        self._held = [body]


def sharing_key(asked: Asked, caller: Caller) -> tuple[str, ...] | None:
    """Returns what calls have in common that share a reply; None for those that can't.

    Callers of one role share. A caller of a higher class does not wait in the place of a
    lower one.
    """
    if asked.method != "GET":
        return None
    return (caller.role, asked.priority.name, *asked.identical)


def _no_lease(exc: BrokerClientError) -> Refusal:
    """Returns the answer to a caller that gets no lease."""
    if isinstance(exc, LeaseDeniedError):
        return _denied(exc)
    reason = exc.reason if isinstance(exc, BrokerRefusedError) else ""
    if reason in OF_CALLER:
        return rejected(str(exc), reason=reason, status=OF_CALLER[reason])
    if isinstance(exc, BrokerAwayError):
        return unavailable(str(exc), reason="broker_away")
    if isinstance(exc, BrokerRefusedError):
        # A person must act, but not the caller.
        return unavailable(str(exc), reason=reason or "broker_refused", retry_s=60.0)
    return unavailable(str(exc), reason="stopping")


def _denied(exc: LeaseDeniedError) -> Refusal:
    reason, retry_s = exc.reason.lower(), max(exc.retry_delay_s, RETRY_MIN_S)
    if reason == "too_large":
        most = f"; at most {exc.largest_units} fit" if exc.largest_units else ""
        text = f"the account's bucket can never hold what this call may cost{most} ({exc})"
        return Refusal(HTTPStatus.BAD_REQUEST, "requestTooLarge", text, reason=reason)
    if reason in STANDSTILLS:
        return unavailable(str(exc), reason=reason, retry_s=retry_s)
    return no_tokens(retry_s, str(exc), reason=reason)
