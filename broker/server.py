"""The broker process: builds the parts, runs them and stops them.

To stop, it reports NOT_SERVING, ends all waits with UNAVAILABLE, lets settles and
renewals in progress finish, and closes the ports.
"""

import asyncio
import os
import secrets
import signal
import socket
import time
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog
import uvloop

from broker.access.budgets_file import POLL_S, BudgetsFile
from broker.access.identities import IdentityBook
from broker.access.tls import TlsFiles
from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.budgets import Budget
from broker.core.elector import Elector, Term
from broker.core.limits import Limits
from broker.keepa_status import KeepaSync
from broker.rpc.gate import Gate
from broker.rpc.introspection import Introspection
from broker.rpc.requests import Ttl
from broker.rpc.service import TokenBrokerService
from broker.rpc.tracing import TracedCalls
from broker.runtime import BrokerRuntime
from broker.settings import ServeSettings
from broker.telemetry import http
from broker.telemetry.metrics import BrokerMetrics
from protos.channel import options
from protos.process.addresses import Listen, ListenError
from protos.process.watched_files import Followed
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from protos.web.serving import serving

if TYPE_CHECKING:
    from broker.journal.leadership import Leadership

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# The broker may take 5 s to stop; RPCs in progress get most of it.
STOP_GRACE_S: Final = 3.0
MS: Final = timedelta(milliseconds=1)


def run(settings: ServeSettings, *, traced: bool = False) -> None:
    """Serves until SIGTERM or SIGINT; *traced* continues the traces of clients.

    Raises:
        BudgetsFileError: the budgets can't be used.
        ListenError: an address can't be listened on.
        CredentialError: a file of certificates or identities can't be used.
    """
    uvloop.run(serve(settings, traced=traced))


async def serve(settings: ServeSettings, *, traced: bool = False) -> None:
    """Serves until SIGTERM or SIGINT; see `run`."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    keepa = KeepaSync(settings.keepa_base_url, settings.keepa_api_key)
    path = settings.broker_budgets_file
    file = None if path is None else BudgetsFile(path)
    elector = _elector(settings) if settings.broker_database_url.get_secret_value() else None
    # Without a database, only the wall clock makes epochs grow across restarts.
    epoch = 0 if elector else _now_epoch()
    allocator = _allocator(settings, file.budgets if file else (), epoch)
    runtime = BrokerRuntime(allocator, keepa, elector)
    metrics = BrokerMetrics(runtime)
    fingerprint = settings.key_fingerprint
    routes = http.application(
        runtime, metrics.registry, keepa_url=settings.keepa_base_url, key_fingerprint=fingerprint
    )
    server, book = _grpc_server(settings, runtime, metrics, traced=traced)
    introspection = Introspection(server)
    grpc_listen = _bind(server, settings)
    http_listen = Listen.parse(settings.broker_http_listen)
    async with serving(
        routes, http_listen, setting="BROKER_HTTP_LISTEN", name=http.SERVER
    ) as http_listen:
        following = [asyncio.create_task(introspection.follow(runtime))]
        await server.start()
        leadership: Leadership | None = None
        if elector is None:
            runtime.start()
        else:
            leadership = _leadership(settings, elector, runtime, str(grpc_listen))
            following.append(asyncio.create_task(leadership.follow()))
        log.info(
            "broker listening",
            grpc=str(grpc_listen),
            http=str(http_listen),
            security=_security(settings),
            keepa=settings.keepa_base_url,
            key_fingerprint=fingerprint,
            epoch=epoch or None,
        )
        if settings.broker_start_paused:
            log.warning("granting paused by BROKER_START_PAUSED; `tokenbroker resume` ends it")
        following += _follow_files(runtime, file, book)
        await stop.wait()
        log.info("broker stopping")
        for task in following:
            task.cancel()
        await introspection.stop()
        runtime.stop()
        # Nothing is granted any more, so a standby may take over before the ports close.
        if leadership is not None:
            await leadership.hand_over()
        await server.stop(STOP_GRACE_S)
    keepa.close()
    log.info("broker stopped")


def _grpc_server(
    settings: ServeSettings, runtime: BrokerRuntime, metrics: BrokerMetrics, *, traced: bool
) -> tuple[grpc.aio.Server, Followed[IdentityBook] | None]:
    """The server with the service behind its gate, and the identities that the gate lets in."""
    book: Followed[IdentityBook] | None = None
    interceptors: list[Any] = [TracedCalls()] if traced else []
    if (identities := settings.broker_identities_file) is not None:
        book = Followed([identities], partial(IdentityBook.read, identities))
        # The first: a refused call begins no span.
        interceptors.insert(0, Gate(book, metrics.refused))
    server = grpc.aio.server(options=options.SERVER, interceptors=interceptors)
    service = TokenBrokerService(
        runtime,
        metrics,
        key_fingerprint=settings.key_fingerprint,
        ttl=Ttl(settings.broker_lease_ttl_ms),
    )
    pb_grpc.add_TokenBrokerServiceServicer_to_server(service, server)
    return server, book


def _security(settings: ServeSettings) -> str:
    """The protection of the gRPC port, for the log."""
    if settings.broker_tls_client_ca_file is not None:
        return "mutual TLS"
    transport = "plaintext" if settings.broker_tls_cert_file is None else "TLS"
    return f"{transport}, {'tokens' if settings.broker_identities_file else 'no authentication'}"


def _allocator(settings: ServeSettings, budgets: tuple[Budget, ...], epoch: int) -> Allocator:
    horizon = settings.broker_debt_horizon
    config = AllocatorConfig(
        floor_tokens=settings.broker_floor_tokens,
        debt_horizon_ms=None if horizon is None else horizon // MS,
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


def _leadership(
    settings: ServeSettings, elector: Elector, runtime: BrokerRuntime, listen: str
) -> "Leadership":
    # Imported here: a broker without a database does without the driver's memory.
    from broker.journal.leader_row import LeaderRow  # noqa: PLC0415 - see above
    from broker.journal.leadership import Leadership  # noqa: PLC0415 - see above

    row = LeaderRow(
        settings.broker_database_url.get_secret_value(),
        account=settings.key_fingerprint,
        holder=elector.holder,
        address=settings.broker_advertise or listen,
    )

    async def succeed(term: Term) -> Allocator:
        return _allocator(settings, (), term.epoch)

    return Leadership(elector, row, runtime, succeed)


def _follow_files(
    runtime: BrokerRuntime, file: BudgetsFile | None, book: Followed[IdentityBook] | None
) -> list[asyncio.Task[None]]:
    """Tasks that apply changes of the budgets and the identities to *runtime*."""
    tasks = []
    if file is not None:
        tasks.append(asyncio.create_task(file.follow(runtime)))
    if book is not None:
        tasks.append(asyncio.create_task(_follow_shares(book, runtime)))
    return tasks


async def _follow_shares(book: Followed[IdentityBook], runtime: BrokerRuntime) -> None:
    """Applies the maximum shares of the identities file to *runtime* until cancelled."""
    applied: tuple[Budget, ...] = ()
    while True:
        if (budgets := book.now().budgets) != applied:
            applied = budgets
            runtime.set_shares(budgets)
        await asyncio.sleep(POLL_S)


def _bind(server: grpc.aio.Server, settings: ServeSettings) -> Listen:
    """Listens in TLS or plaintext, as *settings* have it; returns the address with its port."""
    listen = Listen.parse(settings.broker_listen)
    cert, key = settings.broker_tls_cert_file, settings.broker_tls_key_file
    credentials = None
    if cert is not None and key is not None:
        credentials = TlsFiles(cert, key, settings.broker_tls_client_ca_file).credentials()
    listen.check_free("BROKER_LISTEN")
    try:
        if credentials is None:
            port = server.add_insecure_port(listen.grpc_target)
        else:
            port = server.add_secure_port(listen.grpc_target, credentials)
    except RuntimeError:
        # Another process took the port after the check.
        raise ListenError(f"BROKER_LISTEN: {listen} can't be listened on: try again") from None
    return Listen(listen.host, port)
