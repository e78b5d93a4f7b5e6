"""Serving the console of deals."""

import asyncio
import secrets
import signal
from contextlib import ExitStack
from functools import partial
from urllib.parse import urlsplit

import structlog

from fetcher.console.application import console
from fetcher.console.context import ConsoleContext, console_pages
from fetcher.postgres import Database
from fetcher.query_folder import QueryFolder
from fetcher.settings import FetcherSecrets, Settings
from protos.channel.credential_files import CredentialError
from protos.process import logs
from protos.process.addresses import Listen, ListenError
from protos.process.environment import SettingsError
from protos.process.identities import IdentityFile, Role
from protos.process.watched_files import Followed
from protos.web.door import Door
from protos.web.serving import serving
from protos.web.tls import HttpTls

log = structlog.get_logger(__name__)

NAME = "dealfetcher"
IDENTITIES = "CONSOLE_IDENTITIES_FILE"
# Pages are read by several visitors at once.
CONNECTIONS = 8


def serve_console(settings: Settings) -> None:
    """Serves the console until a signal comes.

    Raises:
        SettingsError: A setting can't be used.
    """
    logs.configure(settings.log_level, settings.log_format, secrets=FetcherSecrets.known())
    try:
        asyncio.run(_serve(settings))
    except (ListenError, CredentialError) as exc:
        problem = str(exc)
    else:
        return
    raise SettingsError([problem])


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    read_url, write_url = settings.console_database_urls()
    pair, client_ca = settings.console_tls, settings.console_tls_client_ca_file
    tls = None if pair is None else HttpTls("CONSOLE_TLS", *pair, client_ca)
    with ExitStack() as stack:
        reading = stack.enter_context(Database(read_url, connections_max=CONNECTIONS))
        writing = None if write_url is None else stack.enter_context(Database(write_url))
        context = ConsoleContext(
            reading=reading,
            writing=writing,
            folder=QueryFolder(settings.queries),
            door=_door(settings, secret_url=write_url or read_url),
            images=settings.console_images,
            silent_s=settings.claim_ttl_s,
            pages=console_pages(),
        )
        async with serving(
            console(context, secure=tls is not None),
            Listen.parse(settings.console_listen),
            setting="CONSOLE_LISTEN",
            name=NAME,
            tls=None if tls is None else tls.context(),
        ) as listen:
            scheme = "http" if tls is None else "https"
            log.info("console served", address=f"{scheme}://{listen}", writes=writing is not None)
            await stop.wait()


def _door(settings: Settings, *, secret_url: str) -> Door:
    path = settings.console_identities_file
    identities = None
    if path is not None:
        identities = Followed([path], partial(IdentityFile.read, IDENTITIES, path)).now
    if Listen.parse(settings.console_listen).is_local:
        open_role: Role | None = Role.OPERATOR
    else:
        open_role = Role.VIEWER if settings.console_open else None
    # Sessions survive a restart, and hold for every replica, if the database has a password.
    password = urlsplit(secret_url).password
    return Door(
        NAME,
        identities=identities,
        setting=IDENTITIES,
        open_role=open_role,
        secret=secret_url.encode() if password else secrets.token_bytes(),
        secure=settings.console_tls is not None,
    )
