"""The HTTP edge: one aiohttp server with the replies of api.keepa.com."""

import asyncio
import gzip
import json
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import IO, Any, Final

from aiohttp import web

from deploy.keepa_simulator.account import Account
from deploy.keepa_simulator.control import add_control_routes
from deploy.keepa_simulator.envelope import empty_envelope, envelope
from deploy.keepa_simulator.exchange import INVALID_PARAMETER, Answer, Query, RequestError, Written
from deploy.keepa_simulator.faults import Effects
from deploy.keepa_simulator.journal import Call
from deploy.keepa_simulator.kept import Kept
from deploy.keepa_simulator.options import Options, fingerprint
from deploy.keepa_simulator.simulator import SELECTING_PATHS, SLOW_PATHS, Endpoint, Simulator

# Speed matters more than size on a loopback.
_GZIP_LEVEL: Final = 1
_HEADERS: Final = {
    "Content-Type": "application/json;charset=UTF-8",
    "Content-Encoding": "gzip",
}
_HANG_S: Final = 600.0
_DRIP_CHUNKS: Final = 20
_NOT_JSON: Final = b"<html><body>Bad gateway</body></html>"
_REFUSED: Final = 429
SHUTDOWN_TIMEOUT_S: Final = 1.0


def _server_clock() -> Callable[[], int]:
    """Unix milliseconds that never jump, even if the system's clock does."""
    start_ms, start = time.time() * 1000, time.monotonic()
    return lambda: int(start_ms + (time.monotonic() - start) * 1000)


def _reply_text(fields: Mapping[str, Any]) -> str:
    items = (
        f"{json.dumps(name)}: {value if isinstance(value, Written) else json.dumps(value)}"
        for name, value in fields.items()
    )
    return "{" + ", ".join(items) + "}"


class _Exchange:
    """One call on its way through the server.

    Args:
        simulator: Answers the call.
        now_ms: The server's clock.
        request: The HTTP request.
    """

    def __init__(
        self, simulator: Simulator, now_ms: Callable[[], int], request: web.Request
    ) -> None:
        self._simulator = simulator
        self._now_ms = now_ms
        self._request = request
        self._started_ms = now_ms()
        self._path = "/" + request.path.strip("/")
        name = fingerprint(request.query.get("key", ""))
        self._account = simulator.accounts.get(name)
        simulator.advance(self._started_ms)
        self._effects = simulator.faults.on_call(self._path, self._started_ms)
        self._call = simulator.journal.begin(
            time_ms=self._started_ms,
            account=name if self._account else "",
            method=request.method,
            path=self._path,
        )
        self._call.faults = self._effects.names

    async def run(self) -> web.StreamResponse:
        """Answers the call."""
        try:
            if self._account is None:
                status, text = 400, self._invalid_key()
            else:
                status, text = await self._outcome(self._account)
            return await _Delivery(self._request, self._call, self._effects).send(status, text)
        except ConnectionResetError:
            # The client has disconnected; the server made no mistake.
            return web.Response()
        finally:
            self._simulator.journal.finish(self._call)

    def _invalid_key(self) -> str:
        error = RequestError(400, "", INVALID_PARAMETER).error
        bare = empty_envelope(started_ms=self._started_ms, ended_ms=self._now_ms())
        return _reply_text({"error": error, **bare})

    async def _outcome(self, account: Account) -> tuple[int, str]:
        """Charges the tokens and returns status and body."""
        self._call.before = account.balance
        body = await self._request.text() if self._request.method == "POST" else None
        if self._path in SELECTING_PATHS:
            self._call.selection = body or self._request.query.get("selection")
        try:
            status, answer = await self._answer(account, body)
        except RequestError as exc:
            status, answer = exc.status, Answer({"error": exc.error}, 0)
        if self._simulator.options.charge_at == "start":
            self._charge(account, answer.cost, self._now_ms())
        await self._take_time()
        ended_ms = self._now_ms()
        if self._simulator.options.charge_at == "end":
            self._charge(account, answer.cost, ended_ms)
        self._note(answer)
        tokens = envelope(
            account,
            started_ms=self._started_ms,
            ended_ms=ended_ms,
            consumed=answer.cost,
            skew_ms=self._effects.skew_ms,
        )
        self._call.after = account.balance
        self._call.duration_ms = ended_ms - self._started_ms
        if self._effects.pad_mb:
            # At its front, so that the envelope comes last.
            padding = {"padding": _padding(self._effects.pad_mb)}
            return status, _reply_text({**padding, **answer.fields, **tokens})
        return status, _reply_text({**answer.fields, **tokens})

    def _charge(self, account: Account, tokens: int, now_ms: int) -> None:
        account.charge(tokens, now_ms)
        if tokens:
            self._simulator.keep()

    async def _answer(self, account: Account, body: str | None) -> tuple[int, Answer]:
        effects = self._effects
        if effects.throttled:
            return _REFUSED, Answer({}, 0)
        if self._request.method not in ("GET", "POST"):
            raise RequestError(405, "method not allowed")
        if effects.status is not None and not effects.charged:
            return effects.status, Answer({"error": _server_error(effects.status)}, 0)
        if self._path == "/token":
            return 200, Answer({}, 0)
        endpoint = self._simulator.endpoints.get(self._path)
        if endpoint is None:
            raise RequestError(404, "no such request", "notFound")
        if not account.admit(self._started_ms):
            return _REFUSED, Answer({}, 0)
        answer = await self._ask(endpoint, body)
        if effects.status is not None:
            return effects.status, Answer({"error": _server_error(effects.status)}, answer.cost)
        return 200, answer if effects.charged else answer.without_cost()

    async def _ask(self, endpoint: Endpoint, body: str | None) -> Answer:
        parameters = {name: it for name, it in self._request.query.items() if name != "key"}
        query = Query(parameters, body, self._started_ms)
        if self._effects.unsorted and self._path == "/deal":
            return self._simulator.deals.answer(query, ignore_order=True)
        if self._path in SLOW_PATHS:
            return await asyncio.to_thread(endpoint, query)
        return endpoint(query)

    async def _take_time(self) -> None:
        low, high = self._simulator.options.latency_ms
        delay_ms = self._simulator.rng.uniform(low, high) + self._effects.delay_ms
        if delay_ms > 0:
            await asyncio.sleep(delay_ms / 1000)

    def _note(self, answer: Answer) -> None:
        self._call.consumed = answer.cost
        self._call.rows = answer.rows
        self._call.asins = answer.asins


def _padding(mb: float) -> list[str]:
    """Texts of *mb* million characters together; half their size when compressed."""
    lines = int(mb * 1_000)
    return [Random(line).randbytes(500).hex() for line in range(lines)]  # noqa: S311 - no secret


def _server_error(status: int) -> dict[str, str]:
    kind = "paymentRequired" if status == 402 else "internalServerError"  # noqa: PLR2004 - HTTP
    return {"details": "", "message": "The request could not be executed.", "type": kind}


class _Delivery:
    """Sends a reply, or the part that a fault leaves of it."""

    def __init__(self, request: web.Request, call: Call, effects: Effects) -> None:
        self._request = request
        self._call = call
        self._effects = effects

    async def send(self, status: int, text: str) -> web.StreamResponse:
        """Sends the reply; the journal records whether all of it was sent."""
        effects = self._effects
        if effects.hangs:
            await self._hang()
        if effects.hangs or effects.reset:
            self._reset()
            return web.Response()
        body = _NOT_JSON if effects.garbage else text.encode()
        data = gzip.compress(body, _GZIP_LEVEL, mtime=0)
        response = web.StreamResponse(status=status, headers=_HEADERS)
        response.content_length = len(data)
        self._call.status = status
        await response.prepare(self._request)
        if effects.cut_at is not None:
            await response.write(data[: int(len(data) * effects.cut_at)])
            self._close()
            return response
        await self._write(response, data)
        await response.write_eof()
        self._call.delivered = not effects.garbage and self._is_open()
        return response

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        if not self._effects.drip_ms:
            await response.write(data)
            return
        size = -(-len(data) // _DRIP_CHUNKS)
        for start in range(0, len(data), size):
            await response.write(data[start : start + size])
            await asyncio.sleep(self._effects.drip_ms / _DRIP_CHUNKS / 1000)

    def _is_open(self) -> bool:
        transport = self._request.transport
        return transport is not None and not transport.is_closing()

    async def _hang(self) -> None:
        """Sends nothing until the client gives up."""
        deadline = time.monotonic() + _HANG_S
        while self._is_open() and time.monotonic() < deadline:  # noqa: ASYNC110 - aiohttp has no event for it
            await asyncio.sleep(0.05)

    def _close(self) -> None:
        if self._request.transport is not None:
            self._request.transport.close()

    def _reset(self) -> None:
        """Aborts the connection; the client sees a reset."""
        transport = self._request.transport
        if transport is None:
            return
        connection = transport.get_extra_info("socket")
        # Lingering for zero seconds makes the kernel send RST instead of FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def application(simulator: Simulator, now_ms: Callable[[], int]) -> web.Application:
    """The routes of api.keepa.com, and ``/_simulator/…`` beside them."""

    async def call(request: web.Request) -> web.StreamResponse:
        return await _Exchange(simulator, now_ms, request).run()

    app = web.Application(client_max_size=4 * 1024**2)
    add_control_routes(app, simulator, now_ms)
    app.router.add_route("*", "/{path:.*}", call)
    return app


def _simulator(options: Options, now_ms: int, journal_file: IO[str] | None) -> Simulator:
    """A simulator, where an earlier process with the same files has ended."""
    kept = Kept(options.state) if options.state else None
    simulator = Simulator(options, now_ms, journal_file, kept)
    if kept is not None and options.journal is not None:
        text = options.journal.read_text(encoding="utf-8")
        simulator.journal.load(text.splitlines())
        if journal_file is not None and not text.endswith("\n"):
            journal_file.write("\n")
    return simulator


def _journal_file(path: Path | None) -> IO[str] | None:
    return path.open("a", encoding="utf-8") if path else None


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    """Listens on every address of *host*; 0.0.0.0 and :: are every interface, IPv4 and IPv6."""
    if host in {"0.0.0.0", "::"} and socket.has_dualstack_ipv6():  # noqa: S104 - the caller named it
        bound = socket.create_server(
            ("::", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True
        )
        await web.SockSite(runner, bound, backlog=1024).start()
    else:
        await web.TCPSite(runner, host, port, backlog=1024).start()


async def serve(options: Options, host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM; prints its address on standard output once ready.

    Args:
        options: Settings of the simulator.
        host: Address to listen on.
        port: Port to listen on; 0 picks a free one.

    Raises:
        OSError: The port is taken, or a file can't be written.
    """
    now_ms = _server_clock()
    journal_file = _journal_file(options.journal)
    simulator = _simulator(options, now_ms(), journal_file)
    runner = web.AppRunner(
        application(simulator, now_ms), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S
    )
    await runner.setup()
    try:
        await _listen(runner, host, port)
        # After many fast events this takes a second or two. Callers wait meanwhile, and are served
        # at once when the server is ready: else its first call would hold up all others.
        simulator.catch_up(now_ms())
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        bound_port = runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        print(f"keepa-simulator listening on http://{shown}:{bound_port}", flush=True)  # noqa: T201 - the documented line
        await stop.wait()
    finally:
        await runner.cleanup()
        if journal_file is not None:
            journal_file.close()
