"""The broker process: builds the parts, runs them and stops them.

To stop, it reports NOT_SERVING, ends all waits with UNAVAILABLE, lets settles and
renewals in progress finish, and closes the ports.
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
from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.budgets import Budget
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

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# The broker may take 5 s to stop; RPCs in progress get most of it.
STOP_GRACE_S: Final = 3.0


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
    runtime = BrokerRuntime(_allocator(settings, file.budgets if file else ()), keepa)
    metrics = BrokerMetrics(runtime)
    fingerprint = settings.key_fingerprint
    routes = http.application(
        runtime, metrics.registry, keepa_url=settings.keepa_base_url, key_fingerprint=fingerprint
    )
    service = TokenBrokerService(
        runtime, metrics, key_fingerprint=fingerprint, ttl=Ttl(settings.broker_lease_ttl_ms)
    )
    book: Followed[IdentityBook] | None = None
    interceptors: list[Any] = [TracedCalls()] if traced else []
    if (identities := settings.broker_identities_file) is not None:
        book = Followed([identities], partial(IdentityBook.read, identities))
        # The first: a refused call begins no span.
        interceptors.insert(0, Gate(book, metrics.refused))
    server = grpc.aio.server(options=options.SERVER, interceptors=interceptors)
    pb_grpc.add_TokenBrokerServiceServicer_to_server(service, server)
    introspection = Introspection(server)
    grpc_listen = _bind(server, settings)
    http_listen = Listen.parse(settings.broker_http_listen)
    async with serving(
        routes, http_listen, setting="BROKER_HTTP_LISTEN", name=http.SERVER
    ) as http_listen:
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
    """The protection of the gRPC port, for the log."""
    if settings.broker_tls_client_ca_file is not None:
        return "mutual TLS"
    transport = "plaintext" if settings.broker_tls_cert_file is None else "TLS"
    return f"{transport}, {'tokens' if settings.broker_identities_file else 'no authentication'}"


def _allocator(settings: ServeSettings, budgets: tuple[Budget, ...]) -> Allocator:
    horizon = settings.broker_debt_horizon
    config = AllocatorConfig(
        floor_tokens=settings.broker_floor_tokens,
        debt_horizon_ms=None if horizon is None else horizon // timedelta(milliseconds=1),
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
    # Without a journal, only the wall clock makes epochs grow across restarts.
    epoch = time.time_ns() // 1_000_000
    allocator = Allocator(config, epoch=epoch, started_ms=BrokerRuntime.now_ms())
    allocator.paused = settings.broker_start_paused
    return allocator


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
