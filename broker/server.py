"""The broker process: builds the parts, runs them and stops them.

To stop, it reports NOT_SERVING, ends all waits with UNAVAILABLE, lets settles and
renewals in progress finish, and closes the ports.
"""

import asyncio
import gc
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Final

import grpc
import structlog
import uvloop

from broker.access.budgets_file import POLL_S
from broker.access.followed_files import FollowedFiles
from broker.access.identities import IdentityBook
from broker.calendar import present
from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.budgets import Budget
from broker.core.elector import Elector, Term
from broker.core.limits import Limits
from broker.keepa_status import KeepaSync
from broker.rpc.gate import Gate
from broker.rpc.introspection import Introspection
from broker.rpc.layers import Layer, LayeredServer
from broker.rpc.measured import MeasuredCalls
from broker.rpc.pace import PacedCalls
from broker.rpc.requests import Ttl
from broker.rpc.service import TokenBrokerService
from broker.rpc.tracing import TracedCalls
from broker.runtime import BrokerRuntime
from broker.settings import ServeSettings
from broker.telemetry.metrics import BrokerMetrics
from broker.telemetry.process_metrics import ProcessMetrics
from protos.channel import options
from protos.process.addresses import Listen, ListenError
from protos.process.watched_files import Followed
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from broker.journal.journal import Journal
    from broker.journal.leadership import Leadership

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# The broker may take 5 s to stop; RPCs in progress get most of it.
STOP_GRACE_S: Final = 3.0
FLUSH_S: Final = 0.5
# The libraries of the HTTP port wait so long for Keepa's first answer, which grants follow. Where
# none comes, and in a standby, the port is what shows why.
KEEPA_FIRST_S: Final = 1.0
# Objects made before the first of three generations is collected, and collections of one
# before the next. A call makes some fifty, and few are in cycles: the default of 700 spends
# a seventh of the processor's time.
GC_THRESHOLDS: Final = (10_000, 20, 20)
MS: Final = timedelta(milliseconds=1)


def run(settings: ServeSettings, *, traced: bool = False) -> None:
    """Serves until SIGTERM or SIGINT; *traced* continues the traces of clients.

    Raises:
        BudgetsFileError: the budgets can't be used.
        ListenError: an address can't be listened on.
        CredentialError: a file of certificates or identities can't be used.
        DatabaseNotSetUpError: the journal's tables or rights are missing.
    """
    _spare_collections()
    uvloop.run(serve(settings, traced=traced))


async def serve(settings: ServeSettings, *, traced: bool = False) -> None:
    """Serves until SIGTERM or SIGINT; see `run`."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    keepa = KeepaSync(settings.keepa_base_url, settings.keepa_api_key)
    files = FollowedFiles.of(settings)
    elector = _elector(settings) if settings.database_url else None
    journal = await _journal(settings, elector.holder) if elector else None
    # Without a database, only the wall clock makes epochs grow across restarts.
    epoch = 0 if elector else _now_epoch()
    budgets = files.budgets.budgets if files.budgets else ()
    allocator = _allocator(settings, budgets, epoch)
    runtime = BrokerRuntime(allocator, keepa, elector, journal)
    metrics = BrokerMetrics(runtime)
    process = ProcessMetrics(metrics.registry, files.states, files.expiries_s)
    server = _grpc_server(settings, runtime, metrics, process, files.book, traced=traced)
    introspection = Introspection(server)
    grpc_listen = _bind(server, settings, files)
    async with _http_port(settings, runtime, metrics, files, stop) as http_listen:
        following = [
            asyncio.create_task(introspection.follow(runtime)),
            asyncio.create_task(process.measure_lag()),
            asyncio.create_task(runtime.follow_calendar()),
        ]
        await server.start()
        leadership: Leadership | None = None
        if elector is None:
            runtime.start()
        else:
            leadership = _leadership(settings, elector, runtime, grpc_listen)
            following.append(asyncio.create_task(leadership.follow()))
        log.info(
            "broker listening",
            grpc=str(grpc_listen),
            http=str(http_listen),
            security=_security(settings),
            keepa=settings.keepa_base_url,
            key_fingerprint=settings.key_fingerprint,
            epoch=epoch or None,
            journal="off: set BROKER_DATABASE_URL" if journal is None else "on",
        )
        if settings.broker_start_paused:
            log.warning("granting paused by BROKER_START_PAUSED; `tokenbroker resume` ends it")
        if files.budgets is not None:
            following.append(asyncio.create_task(files.budgets.follow(runtime)))
        if files.book is not None:
            following.append(asyncio.create_task(_follow_shares(files.book, runtime)))
        await stop.wait()
        log.info("broker stopping")
        for task in following:
            task.cancel()
        await introspection.stop()
        await _stop(runtime, leadership, server)
    keepa.close()
    log.info("broker stopped")


def _spare_collections() -> None:
    """Lets the collector look at less, and less often."""
    # What is there by now stays, and none of it is garbage: to look at all modules takes 75 ms.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _stop(
    runtime: BrokerRuntime, leadership: "Leadership | None", server: grpc.aio.Server
) -> None:
    """Ends the waits, writes the journal, hands over, and lets RPCs in progress finish."""
    journal = runtime.journal
    runtime.stop()
    # Before another broker leads: from then on nothing of this one is written.
    if journal is not None:
        await journal.flush(FLUSH_S)
    # Nothing is granted any more, so a standby may take over before the ports close.
    if leadership is not None:
        await leadership.hand_over()
    await server.stop(STOP_GRACE_S)
    if journal is not None:
        await journal.stop(FLUSH_S)


def _grpc_server(
    settings: ServeSettings,
    runtime: BrokerRuntime,
    metrics: BrokerMetrics,
    process: ProcessMetrics,
    book: Followed[IdentityBook] | None,
    *,
    traced: bool,
) -> grpc.aio.Server:
    # The outermost first: a refused call is counted, but has no span. The time for which a call
    # is held back is no time of the handler.
    layers: list[Layer] = [PacedCalls(metrics.held_back), MeasuredCalls(process.called)]
    if book is not None:
        layers.append(Gate(book, metrics.refused))
    if traced:
        layers.append(TracedCalls())
    server = LayeredServer(grpc.aio.server(options=options.SERVER), layers)
    service = TokenBrokerService(
        runtime,
        metrics,
        key_fingerprint=settings.key_fingerprint,
        ttl=Ttl(settings.broker_lease_ttl_ms),
        traced=traced,
    )
    pb_grpc.add_TokenBrokerServiceServicer_to_server(service, server)
    return server


@asynccontextmanager
async def _http_port(
    settings: ServeSettings,
    runtime: BrokerRuntime,
    metrics: BrokerMetrics,
    files: FollowedFiles,
    stop: asyncio.Event,
) -> AsyncIterator[Listen]:
    """Serves the HTTP port while the context lasts; yields its address. A failure sets *stop*.

    The port is open at once, so that a taken one ends the start. Its libraries take a quarter
    of the time that all modules take to load, and no grant needs them: they load behind the
    first one. Until then a request waits in the sockets' backlog.

    Raises:
        ListenError: The address can't be listened on.
    """
    listen = Listen.parse(settings.broker_http_listen)
    sockets = listen.bind("BROKER_HTTP_LISTEN")

    async def serve_pages() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(KEEPA_FIRST_S):
                await runtime.synced.wait()
        # A thread, so that calls are answered meanwhile. If the broker is stopped, the end of
        # the event loop waits for it: an import can't be given up.
        await asyncio.to_thread(import_module, "broker.http_port")
        from broker import http_port  # noqa: PLC0415 - see above

        gc.freeze()
        await http_port.serve(sockets, settings, runtime, metrics, files)

    serving = asyncio.create_task(serve_pages())
    serving.add_done_callback(lambda _: stop.set())
    try:
        yield Listen(listen.host, sockets[0].getsockname()[1])
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
        for each in sockets:
            each.close()


def _security(settings: ServeSettings) -> str:
    """The protection of the gRPC port, for the log."""
    if settings.broker_tls_client_ca_file is not None:
        return "mutual TLS"
    transport = "plaintext" if settings.broker_tls_cert_file is None else "TLS"
    return f"{transport}, {'tokens' if settings.broker_identities_file else 'no authentication'}"


def _allocator(settings: ServeSettings, budgets: tuple[Budget, ...], epoch: int) -> Allocator:
    config = AllocatorConfig(
        floor_tokens=settings.broker_floor_tokens,
        debt_horizon_ms=settings.broker_debt_horizon // MS,
        lease_age_ms_max=settings.broker_lease_age_max // MS,
        recovery_grace_ms=settings.broker_recovery_grace_ms,
        budgets=budgets,
        limits=Limits(
            waits=settings.broker_caller_waits_max,
            leases=settings.broker_caller_leases_max,
            reserved_share=settings.broker_caller_share_max,
            signed=settings.broker_identities_file is not None,
        ),
    )
    allocator = Allocator(config, epoch=epoch, started_ms=BrokerRuntime.now_ms())
    allocator.paused = settings.broker_start_paused
    # What a journal remembers can then be counted for the days it belongs to.
    zones = allocator.budgets.time_zones
    allocator.budgets.set_periods(present(zones, BrokerRuntime.now_ms()))
    return allocator


def _now_epoch() -> int:
    return time.time_ns() // 1_000_000


def _elector(settings: ServeSettings) -> Elector:
    return Elector(
        # Unique per start; people recognise the process by it.
        f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}",
        ttl_ms=settings.broker_leader_ttl // MS,
        # Larger than the epochs of brokers that ran without a database.
        epoch_min=_now_epoch(),
        sole=settings.broker_leadership == "sole",
    )


async def _journal(settings: ServeSettings, leader: str) -> "Journal":
    """The journal, ready to write; Postgres may be away. The leader row names it *leader*.

    Raises:
        DatabaseNotSetUpError: the role may not create what is missing.
    """
    # Imported here: as for the leadership.
    from broker.journal.journal import Journal  # noqa: PLC0415 - see above

    journal = Journal(
        settings.database_url,
        settings.key_fingerprint,
        BrokerRuntime.now_ms,
        leader=leader,
        signed=settings.broker_identities_file is not None,
        months_kept=settings.broker_journal_months,
    )
    await journal.prepare()
    return journal


def _leadership(
    settings: ServeSettings, elector: Elector, runtime: BrokerRuntime, listen: Listen
) -> "Leadership":
    # Imported here: a broker without a database does without the driver's memory.
    from broker.journal.leader_row import LeaderRow  # noqa: PLC0415 - see above
    from broker.journal.leadership import Leadership  # noqa: PLC0415 - see above

    row = LeaderRow(
        settings.database_url,
        account=settings.key_fingerprint,
        holder=elector.holder,
        address=settings.broker_advertise or listen.as_seen_by_others,
    )

    async def succeed(term: Term) -> Allocator:
        allocator = _allocator(settings, runtime.budgets, term.epoch)
        if runtime.journal is not None:
            await runtime.journal.restore(allocator)
        return allocator

    return Leadership(elector, row, runtime, succeed)


async def _follow_shares(book: Followed[IdentityBook], runtime: BrokerRuntime) -> None:
    """Applies shares and weights of the identities file to *runtime* until cancelled."""
    applied: tuple[tuple[Budget, ...], dict[str, float]] = ((), {})
    while True:
        identities = book.now()
        if (shares := (identities.budgets, identities.weights)) != applied:
            applied = shares
            runtime.set_shares(*shares)
        await asyncio.sleep(POLL_S)


def _bind(server: grpc.aio.Server, settings: ServeSettings, files: FollowedFiles) -> Listen:
    """Listens in TLS or plaintext, as *settings* have it; returns the address with its port."""
    listen = Listen.parse(settings.broker_listen)
    listen.check_free("BROKER_LISTEN")
    try:
        if files.tls is None or files.certificates is None:
            port = server.add_insecure_port(listen.grpc_target)
        else:
            credentials = files.tls.credentials(files.certificates)
            port = server.add_secure_port(listen.grpc_target, credentials)
    except RuntimeError:
        # Another process took the port after the check.
        raise ListenError(f"BROKER_LISTEN: {listen} can't be listened on: try again") from None
    return Listen(listen.host, port)
