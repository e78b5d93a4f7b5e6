"""Settings: the environment, then `.env`; the only place that reads either.

A malformed or missing setting becomes a `SettingsError`, one line a problem,
which names the variable and the remedy and never repeats a value: it may be the key.
"""

import hashlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from fetcher.errors import SettingsError
from protos.channel.access import Access, read_token
from protos.channel.credential_files import CredentialError

ENV_FILE: Final = Path(".env")
FINGERPRINT_DIGITS: Final = 12

OtlpProtocol = Literal["grpc", "http/protobuf"]


class LogLevel(StrEnum):
    """Least severity that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How log lines look; auto is console on a terminal, else JSON."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


def _base_url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in {"http", "https"} or not url.hostname or url.query:
        raise ValueError("must look like https://api.keepa.com")
    return text.rstrip("/")


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError("must look like 127.0.0.1:50051")
    return text


class Environment(BaseSettings):
    """Settings that are read, or said to be wrong, as a whole."""

    @classmethod
    def load(cls) -> Self:
        """Read the environment and `.env`.

        Raises:
            SettingsError: Something is malformed.
        """
        try:
            return cls()
        except ValidationError as exc:
            problems = [
                f"{'.'.join(map(str, error['loc'])).upper()}: "
                f"{error['msg'].removeprefix('Value error, ')}"
                for error in exc.errors(include_url=False, include_input=False)
            ]
        raise SettingsError(problems)


class Settings(Environment):
    """What the `dealfetcher` commands read; each command asks for what it needs."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_ignore_empty=True,
        extra="ignore",
        # A rejected value may be the key.
        hide_input_in_errors=True,
    )

    keepa_api_key: SecretStr | None = None
    # Mounted secrets; the file's content is the value.
    keepa_api_key_file: Path | None = None
    keepa_base_url: Annotated[str, AfterValidator(_base_url)] = "https://api.keepa.com"
    # As in Keepa's own Java client; offers take up to 20 s.
    keepa_connect_timeout_s: PositiveFloat = 30.0
    keepa_read_timeout_s: PositiveFloat = 120.0

    database_url: SecretStr | None = None
    database_url_file: Path | None = None

    broker_address: Annotated[str, AfterValidator(_address)] = "127.0.0.1:50051"
    # PEM files; with a CA the broker is spoken to by TLS, with a certificate as its owner.
    broker_tls_ca_file: Path | None = None
    broker_tls_client_cert_file: Path | None = None
    broker_tls_client_key_file: Path | None = None
    # A name to look for in the broker's certificate instead of the address.
    broker_tls_server_name: str = ""
    # Who has no certificate shows a token.
    broker_token_file: Path | None = None

    # Folder of deal queries.
    queries: Path = Path("deploy/queries")
    # Tries before a page is put aside; a 429 is not a try.
    page_attempts_max: PositiveInt = 8
    # How many times as fast intervals pass: for simulators whose world turns faster.
    poll_speed: PositiveFloat = 1.0
    # First pause after a failed try; it doubles with each further one.
    retry_delay_s: PositiveFloat = 2.0
    # Longest a dead process keeps a page from the others.
    claim_ttl_s: Annotated[float, Field(ge=1)] = 30.0
    # `dealfetcher prune` deletes what was not seen for longer.
    retention_days: PositiveInt = 90

    # Where `dealfetcher metrics` serves Prometheus.
    metrics_listen: Annotated[str, AfterValidator(_address)] = "127.0.0.1:9465"

    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.AUTO

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, url: SecretStr | None) -> SecretStr | None:
        return None if url is None else _postgres_url(url.get_secret_value())

    def require_api_key(self) -> str:
        """The Keepa key.

        Raises:
            SettingsError: There is none; the message says where it was looked for.
        """
        if self.keepa_api_key is not None:
            key = self.keepa_api_key.get_secret_value().strip()
        elif self.keepa_api_key_file is not None:
            key = _read_secret("KEEPA_API_KEY_FILE", self.keepa_api_key_file)
        else:
            raise SettingsError([_missing("KEEPA_API_KEY", "your key, shown on keepa.com/#!api")])
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise SettingsError(["KEEPA_API_KEY: empty, or holds blanks: copy the key again"])
        return key

    def require_database_url(self) -> str:
        """Where Postgres is.

        Raises:
            SettingsError: Nobody said so.
        """
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        if self.database_url_file is None:
            remedy = "for example postgresql://user:password@127.0.0.1:5432/deals"
            raise SettingsError([_missing("DATABASE_URL", remedy)])
        text = _read_secret("DATABASE_URL_FILE", self.database_url_file)
        try:
            return _postgres_url(text).get_secret_value()
        except ValueError as exc:
            problem = f"DATABASE_URL_FILE: {exc}"
        raise SettingsError([problem])

    def require_access(self) -> Access:
        """How to get at the broker.

        Raises:
            SettingsError: A file can't be used, or a token would travel in plaintext.
        """
        access = Access(
            self.broker_tls_ca_file,
            self.broker_tls_client_cert_file,
            self.broker_tls_client_key_file,
            self.broker_tls_server_name,
            self.broker_token_file,
        )
        try:
            access.check(self.broker_address)
        except CredentialError as exc:
            problem = str(exc)
        else:
            return access
        raise SettingsError([problem])

    def secrets(self) -> list[str]:
        """Every text that must never be shown."""
        found: list[str] = []
        for secret in (self.require_api_key, self._database_password, self._token):
            try:
                found.append(secret())
            except SettingsError:
                continue
        return [text for text in found if text]

    def _token(self) -> str:
        try:
            return read_token(self.broker_token_file) if self.broker_token_file else ""
        except CredentialError:
            return ""

    def _database_password(self) -> str:
        return unquote(urlsplit(self.require_database_url()).password or "")


class TracingSettings(Environment):
    """Whether spans are sent; OpenTelemetry's SDK reads the rest of its variables itself.

    It knows the environment only, so these are not looked for in `.env` either.
    """

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", hide_input_in_errors=True
    )

    otel_sdk_disabled: bool = False
    otel_traces_exporter: Literal["otlp", "none"] | None = None
    otel_exporter_otlp_endpoint: str | None = None
    otel_exporter_otlp_traces_endpoint: str | None = None
    otel_exporter_otlp_protocol: OtlpProtocol = "http/protobuf"
    otel_exporter_otlp_traces_protocol: OtlpProtocol | None = None

    @property
    def protocol(self) -> OtlpProtocol | None:
        """How spans travel to a collector; None: nobody wants them."""
        endpoint = self.otel_exporter_otlp_endpoint or self.otel_exporter_otlp_traces_endpoint
        exporter = self.otel_traces_exporter or ("otlp" if endpoint else "none")
        if self.otel_sdk_disabled or exporter == "none":
            return None
        return self.otel_exporter_otlp_traces_protocol or self.otel_exporter_otlp_protocol


def key_fingerprint(api_key: str) -> str:
    """A short hash that tells keys apart and gives none away; the broker makes the same."""
    digest = hashlib.sha256(f"keepa-token-broker:{api_key}".encode()).hexdigest()
    return digest[:FINGERPRINT_DIGITS]


def _postgres_url(text: str) -> SecretStr:
    if urlsplit(text).scheme not in {"postgresql", "postgres"}:
        raise ValueError("must look like postgresql://user:password@127.0.0.1:5432/deals")
    return SecretStr(text)


def _read_secret(variable: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no text"
        problem = f"{variable}: can't read {path.absolute()}: {reason}"
    raise SettingsError([problem])


def _missing(variable: str, remedy: str) -> str:
    env_file = ENV_FILE.absolute()
    looked = f"{env_file}{'' if env_file.exists() else ' (no such file)'}"
    return (
        f"{variable}: not set. Looked in the environment ({variable}, {variable}_FILE) and in "
        f"{looked}. Set it to {remedy}"
    )
