"""The broker process: puts the parts together, runs them, takes them down.

Order of the end: health says no, everybody who waits is sent away to try again,
settles and renewals that are under way finish, the ports close.
"""

import asyncio
import signal
import time
from datetime import timedelta
from functools import partial
from typing import Any, Final

import grpc
import structlog
import uvloop

from broker.access.budgets_file import POLL_S, BudgetsFile
from broker.access.identities import IdentityBook
from broker.access.tls import TlsFiles
from broker.access.watched_files import Followed
from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.budgets import Budget
from broker.core.limits import Limits
from broker.keepa_status import KeepaSync
from broker.rpc.gate import Gate
from broker.rpc.introspection import Introspection
from broker.rpc.service import TokenBrokerService
from broker.rpc.tracing import TracedCalls
from broker.runtime import BrokerRuntime
from broker.settings import ServeSettings
from broker.telemetry import http
from broker.telemetry.metrics import BrokerMetrics
from protos.channel import options
from protos.process.addresses import Listen, ListenError
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# What the broker may take to stop is 5 s; answers under way get most of it.
STOP_GRACE_S: Final = 3.0


def run(settings: ServeSettings, *, traced: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; *traced* continues the traces of clients.

    Raises:
        BudgetsFileError: the budgets can't be used.
        ListenError: an address can't be listened on.
        CredentialError: a file of certificates or identities can't be used.
    """
    uvloop.run(serve(settings, traced=traced))


async def serve(settings: ServeSettings, *, traced: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; see `run`."""
    stop = _stop_signal()
    keepa = KeepaSync(settings.keepa_base_url, settings.keepa_api_key)
    path = settings.broker_budgets_file
    file = None if path is None else BudgetsFile(path)
    runtime = BrokerRuntime(_allocator(settings, file.budgets if file else ()), keepa)
    metrics = BrokerMetrics(runtime)
    fingerprint = settings.key_fingerprint
    routes = http.application(
        runtime, metrics.registry, keepa_url=settings.keepa_base_url, key_fingerprint=fingerprint
    )
    service = TokenBrokerService(runtime, metrics, key_fingerprint=fingerprint)
    book = _identities(settings)
    interceptors = _interceptors(book, metrics, traced=traced)
    server = grpc.aio.server(options=options.SERVER, interceptors=interceptors)
    pb_grpc.add_TokenBrokerServiceServicer_to_server(service, server)
    introspection = Introspection(server)
    grpc_listen = _bind(server, Listen.parse(settings.broker_listen), _credentials(settings))
    http_listen = Listen.parse(settings.broker_http_listen)
    async with http.serving(routes, http_listen) as http_listen:
        ready = asyncio.create_task(introspection.follow(runtime.synced))
        await server.start()
        runtime.start()
        log.info(
            "broker listening",
            grpc=str(grpc_listen),
            http=str(http_listen),
            security=_security(settings),
            keepa=settings.keepa_base_url,
            key_fingerprint=fingerprint,
            epoch=runtime.allocator.ledger.epoch,
        )
        if settings.broker_start_paused:
            log.warning("granting paused by BROKER_START_PAUSED; `tokenbroker resume` ends it")
        following = [] if file is None else [asyncio.create_task(file.follow(runtime))]
        if book is not None:
            following.append(asyncio.create_task(_follow_shares(book, runtime)))
        await stop.wait()
        log.info("broker stopping")
        ready.cancel()
        for task in following:
            task.cancel()
        await introspection.stop()
        runtime.stop()
        await server.stop(STOP_GRACE_S)
    keepa.close()
    log.info("broker stopped")


def _security(settings: ServeSettings) -> str:
    """What protects the gRPC port, for people who read the log."""
    if settings.broker_tls_client_ca_file is not None:
        return "mutual TLS"
    transport = "plaintext" if settings.broker_tls_cert_file is None else "TLS"
    return f"{transport}, {'tokens' if settings.broker_identities_file else 'open to everybody'}"


def _allocator(settings: ServeSettings, budgets: tuple[Budget, ...]) -> Allocator:
    horizon = settings.broker_debt_horizon
    config = AllocatorConfig(
        floor_tokens=settings.broker_floor_tokens,
        debt_horizon_ms=None if horizon is None else horizon // timedelta(milliseconds=1),
        lease_ttl_ms=settings.broker_lease_ttl_ms,
        lease_age_ms_max=settings.broker_lease_age_max // timedelta(milliseconds=1),
        recovery_grace_ms=settings.broker_recovery_grace_ms,
        budgets=budgets,
        limits=Limits(
            waits=settings.broker_caller_waits_max,
            leases=settings.broker_caller_leases_max,
            reserved_share=settings.broker_caller_share_max,
            signed=settings.broker_identities_file is not None,
        ),
    )
    # Without a journal the wall clock makes epochs grow; nothing else is read from it.
    epoch = time.time_ns() // 1_000_000
    allocator = Allocator(config, epoch=epoch, started_ms=BrokerRuntime.now_ms())
    allocator.paused = settings.broker_start_paused
    return allocator


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _identities(settings: ServeSettings) -> Followed[IdentityBook] | None:
    """The callers that the broker knows; None where it serves everybody."""
    path = settings.broker_identities_file
    return None if path is None else Followed([path], partial(IdentityBook.read, path))


async def _follow_shares(book: Followed[IdentityBook], runtime: BrokerRuntime) -> None:
    """Keep *runtime* to the greatest shares that the identities file sets, until cancelled."""
    in_force: tuple[Budget, ...] = ()
    while True:
        if (budgets := book.now().budgets) != in_force:
            in_force = budgets
            runtime.set_shares(budgets)
        await asyncio.sleep(POLL_S)


def _interceptors(
    book: Followed[IdentityBook] | None, metrics: BrokerMetrics, *, traced: bool
) -> list[grpc.aio.ServerInterceptor]:  # type: ignore[type-arg] # generic in stubs only
    interceptors: list[Any] = [TracedCalls()] if traced else []
    if book is not None:
        # The first: whoever is not let in begins no span.
        interceptors.insert(0, Gate(book, metrics.refused))
    return interceptors


def _credentials(settings: ServeSettings) -> grpc.ServerCredentials | None:
    """What TLS is spoken with; None for plaintext."""
    cert, key = settings.broker_tls_cert_file, settings.broker_tls_key_file
    if cert is None or key is None:
        return None
    return TlsFiles(cert, key, settings.broker_tls_client_ca_file).credentials()


def _bind(
    server: grpc.aio.Server, listen: Listen, credentials: grpc.ServerCredentials | None
) -> Listen:
    listen.check_free("BROKER_LISTEN")
    try:
        if credentials is None:
            port = server.add_insecure_port(listen.grpc_target)
        else:
            port = server.add_secure_port(listen.grpc_target, credentials)
    except RuntimeError:
        # Taken between the check and now.
        raise ListenError(f"BROKER_LISTEN: {listen} can't be listened on: try again") from None
    return Listen(listen.host, port)
