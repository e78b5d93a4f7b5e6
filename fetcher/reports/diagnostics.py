"""The checks of `dealfetcher doctor`: one finding per line, each with its remedy."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit

from fetcher.broker_client import BrokerClient, BrokerClientError, BucketView
from fetcher.errors import DatabaseError, KeepaError, KeepaResponseError
from fetcher.keepa import Keepa
from fetcher.postgres import health
from fetcher.postgres.database import Connection, connect
from fetcher.postgres.errors import GRANT, MIGRATE
from fetcher.postgres.schema import applied_migrations, known_migrations, known_tables
from fetcher.postgres.workers import SILENT_CLAIMS
from fetcher.query_folder import QueryFolder
from fetcher.replies.units import span_words
from fetcher.scans.page_facts import STALE_AFTER_MS
from fetcher.settings import Settings
from protos.process.environment import SettingsError
from protos.process.settings import key_fingerprint

KEEPA_HOST: Final = "api.keepa.com"
MISSING_KEY: Final = "set KEEPA_API_KEY or KEEPA_API_KEY_FILE; keepa.com/#!api shows your key"
PACKAGE: Final = "keepa-token-broker"
STALE_S: Final = STALE_AFTER_MS // 1000


class State(StrEnum):
    """The severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; *remedy* is what to do about it."""

    subject: str
    state: State
    text: str
    remedy: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Checks everything, one after the other; a failed check does not stop the rest."""
    yield Finding("version", State.OK, f"{PACKAGE} {version(PACKAGE)}")
    yield from _examine_queries(settings)
    yield from _examine_tokens(settings)
    yield from _examine_database(settings)


def _examine_queries(settings: Settings) -> Iterator[Finding]:
    folder = QueryFolder(settings.queries)
    folder.refresh()
    book = folder.book
    for error in book.errors:
        yield Finding("queries", State.FAILED, str(error), "dealfetcher queries check")
    if not book.queries:
        where = settings.queries.absolute()
        yield Finding(
            "queries", State.FAILED, f"no usable query in {where}", "set QUERIES or add a file"
        )
    else:
        yield Finding("queries", State.OK, f"{len(book.queries)} usable")


def _examine_tokens(settings: Settings) -> Iterator[Finding]:
    api_key = bucket = unreadable = None
    try:
        api_key = settings.read_api_key() or None
    except SettingsError as exc:
        unreadable = str(exc)
    try:
        access = settings.require_access()
        with BrokerClient(settings.broker_address, access=access) as broker:
            bucket = broker.get_bucket(timeout_s=3.0)
    except SettingsError as exc:
        yield Finding("broker", State.FAILED, str(exc), "correct the setting")
    except BrokerClientError as exc:
        remedy = "start it with tokenbroker serve, or set BROKER_ADDRESS"
        yield Finding("broker", State.FAILED, str(exc), remedy)
    else:
        text = f"{bucket.state}, {bucket.available} tokens available, {bucket.waiting} waiting"
        if api_key is not None and bucket.key_fingerprint not in {"", key_fingerprint(api_key)}:
            remedy = "give broker and fetchers the same KEEPA_API_KEY"
            yield Finding("broker", State.FAILED, "it counts for another key", remedy)
        elif bucket.state != "serving":
            yield Finding("broker", State.WARNING, text, "see tokenbroker status")
        else:
            yield Finding("broker", State.OK, text)
    if api_key is not None:
        yield from _examine_keepa(settings, api_key, bucket)
    elif unreadable is not None:
        yield Finding("key", State.FAILED, unreadable, "correct the setting")
    else:
        yield _no_key_finding(settings, bucket)


def _no_key_finding(settings: Settings, bucket: BucketView | None) -> Finding:
    """Judges a missing key: a simulator needs none, and a serving broker has its own."""
    if bucket is not None and bucket.state == "serving":
        text = "none is set here, and none is needed: the broker asks Keepa with its own"
        return Finding("key", State.OK, text)
    if urlsplit(settings.keepa_base_url).hostname != KEEPA_HOST:
        text = "none is set here, and KEEPA_BASE_URL names no Keepa that asks for one"
        return Finding("key", State.OK, text)
    return Finding("key", State.FAILED, "KEEPA_API_KEY is not set", MISSING_KEY)


def _examine_keepa(
    settings: Settings, api_key: str, bucket: BucketView | None
) -> Iterator[Finding]:
    with Keepa(api_key, base_url=settings.keepa_base_url, connect_timeout_s=5.0) as keepa:
        try:
            envelope = keepa.token_status().envelope
        except KeepaResponseError as exc:
            yield Finding(
                "key", State.FAILED, str(exc), "check KEEPA_API_KEY and the subscription"
            )
            return
        except KeepaError as exc:
            yield Finding("Keepa", State.FAILED, str(exc), "check the network and KEEPA_BASE_URL")
            return
    yield Finding("key", State.OK, f"accepted, fingerprint {key_fingerprint(api_key)}")
    if envelope is None:
        yield Finding("Keepa", State.WARNING, "answers without a balance", "try again")
        return
    text = f"{envelope.tokens_left} tokens left, {envelope.refill_rate} a tick"
    yield Finding("Keepa", State.OK, text)
    if bucket is not None:
        text = f"broker {bucket.balance}, Keepa {envelope.tokens_left}"
        # Between the two requests a call may be charged, or a refill may come.
        explained = bucket.reserved + envelope.refill_rate
        if abs(envelope.tokens_left - bucket.balance) <= explained:
            yield Finding("count", State.OK, text)
        else:
            remedy = "tokenbroker sync; if it returns, another program uses the key"
            yield Finding("count", State.WARNING, text, remedy)


def _examine_database(settings: Settings) -> Iterator[Finding]:
    try:
        with connect(settings.require_database_url()) as connection:
            yield Finding("Postgres", State.OK, f"version {health.server_version(connection)}")
            applied, known = applied_migrations(connection), known_migrations()
            if missing := known - applied:
                yield Finding("schema", State.FAILED, f"lacks {_names(missing)}", MIGRATE)
                return
            if newer := applied - known:
                text = f"has {_names(newer)}, which this version lacks"
                yield Finding("schema", State.WARNING, text, "update this program")
            else:
                yield Finding("schema", State.OK, "up to date")
            if health.is_read_only(connection):
                remedy = "see why the server takes no writes: a standby, or a full disk"
                yield Finding("Postgres", State.FAILED, "read-only", remedy)
            if lacking := health.without_rights(connection, known_tables()):
                text = f"the role may not read and write {', '.join(lacking)}"
                yield Finding("rights", State.FAILED, text, GRANT)
            yield from _examine_collection(connection, settings)
    except SettingsError as exc:
        yield Finding("Postgres", State.FAILED, str(exc), "correct the setting")
    except DatabaseError as exc:
        yield Finding("Postgres", State.FAILED, exc.problem, exc.remedy)


def _examine_collection(connection: Connection, settings: Settings) -> Iterator[Finding]:
    for row in health.freshness(connection):
        yield from _freshness(row)
    stuck = health.stuck(connection)
    for count, what in ((stuck["dead"], "pages"), (stuck["dead_products"], "products")):
        if count:
            remedy = "dealfetcher pages dead, then dealfetcher pages requeue"
            yield Finding("dead letters", State.WARNING, f"{count} {what} put aside", remedy)
    if stuck["failing"]:
        text = f"{stuck['failing']} pages failed and are to be tried again: {stuck['error']}"
        yield Finding("failing pages", State.WARNING, text, "see Keepa above, and the log")
    expired = stuck["expired"]
    remedy = "start a fetcher: dealfetcher run" if expired else ""
    text = f"{stuck['ready']} pages and {stuck['wanted']} products wait, {expired} claims expired"
    yield Finding("work", State.WARNING if expired else State.OK, text, remedy)
    rows = health.workers(connection)
    alive_s = SILENT_CLAIMS * settings.claim_ttl_s
    if all(row["seen_ago_s"] >= alive_s for row in rows):
        yield Finding("fetchers", State.FAILED, "none is alive", "dealfetcher run")
    for row in rows:
        name = f"{row['holder']} {row['version']}"
        if row["seen_ago_s"] < alive_s:
            yield Finding("fetchers", State.OK, f"{name}: {row['doing']}")
        else:
            # A fetcher that has not left was killed, or can't do its work.
            text = f"{name} has not worked for {span_words(row['seen_ago_s'])}: {row['doing']}"
            remedy = "if it still runs, its log names the cause; restart it"
            yield Finding("fetchers", State.WARNING, text, remedy)


def _freshness(row: dict[str, Any]) -> Iterator[Finding]:
    subject = f"query {row['query']}"
    age_s, moved_s = row["newest_age_s"], row["moved_ago_s"]
    if row["watermark"] is None:
        yield Finding(
            subject, State.WARNING, "nothing has been read in full yet", "dealfetcher scans"
        )
    elif moved_s > STALE_S:
        text = f"watermark {row['watermark']:%F %T} has not moved for {span_words(moved_s)}"
        yield Finding(subject, State.WARNING, text, "see dealfetcher scans -q")
    elif age_s is not None and age_s > STALE_S:
        text = f"the newest deal served is {span_words(age_s)} old"
        yield Finding(
            subject, State.WARNING, text, "dealfetcher verify-sort; is the filter right?"
        )
    else:
        text = f"read up to {row['watermark']:%F %T}, moved {span_words(moved_s)} ago"
        newest = "" if age_s is None else f"; newest deal {span_words(age_s)} old when served"
        yield Finding(subject, State.OK, text + newest)
    if row["gaps"]:
        text = f"{row['gaps']} gaps wait to be read"
        yield Finding(subject, State.WARNING, text, "raise max_pages, or give it more tokens")


def _names(migrations: Iterable[str]) -> str:
    return ", ".join(sorted(migrations))
