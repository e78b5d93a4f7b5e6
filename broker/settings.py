"""Settings: the environment, then `.env`; the only place that reads either.

A malformed or missing setting becomes a `SettingsError`, one line that names the
variable and the remedy and never repeats a value: it may be the key.
"""

import hashlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    NonNegativeInt,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from protos.channel.access import Access
from protos.process.addresses import Listen

FINGERPRINT_DIGITS: Final = 12


class SettingsError(Exception):
    """A setting is missing or malformed; the message names it and the remedy."""


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


def _address(text: str) -> str:
    Listen.parse(text)
    return text


def _base_url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in {"http", "https"} or not url.hostname or url.query:
        raise ValueError("must look like https://api.keepa.com")
    return text.rstrip("/")


Address = Annotated[str, AfterValidator(_address)]
OtlpProtocol = Literal["grpc", "http/protobuf"]

CONFIG: Final = SettingsConfigDict(
    env_file=".env",
    env_ignore_empty=True,
    extra="ignore",
    # A rejected value may be the key.
    hide_input_in_errors=True,
)


class ServeSettings(BaseSettings):
    """What `tokenbroker serve` needs."""

    model_config = CONFIG

    keepa_api_key: SecretStr = SecretStr("")
    # A mounted secret; the file's content is the key.
    keepa_api_key_file: Path | None = None
    keepa_base_url: Annotated[str, AfterValidator(_base_url)] = "https://api.keepa.com"
    broker_listen: Address = "127.0.0.1:50051"
    broker_http_listen: Address = "127.0.0.1:9464"
    # Tokens that are never granted: room for other users of the same key.
    broker_floor_tokens: NonNegativeInt = 0
    # How far below zero a lone lease may take the balance.
    broker_max_debt_tokens: NonNegativeInt = 0
    # A heartbeat renews it, so this is how long a dead client's lease stays open.
    broker_lease_ttl_ms: PositiveInt = 15_000
    # After a start without a journal, how long living clients have to renew.
    broker_recovery_grace_ms: NonNegativeInt = 3_000
    # Limits for holders and operations; see budgets_file.py.
    broker_budgets_file: Path | None = None
    # PEM files; with a certificate the broker speaks TLS, with a CA it asks for one.
    broker_tls_cert_file: Path | None = None
    broker_tls_key_file: Path | None = None
    broker_tls_client_ca_file: Path | None = None
    # Who may do what; without it whoever gets through may do everything.
    broker_identities_file: Path | None = None
    # Plaintext on addresses that other machines reach: the network must protect it.
    broker_allow_plaintext: bool = False
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.AUTO

    @model_validator(mode="after")
    def _read_key(self) -> Self:
        key = self.keepa_api_key.get_secret_value().strip()
        if self.keepa_api_key_file is not None and not key:
            key = _read_secret(self.keepa_api_key_file)
        if not key:
            raise ValueError(
                "KEEPA_API_KEY is not set: export it, or name a file that holds it"
                " in KEEPA_API_KEY_FILE"
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError("KEEPA_API_KEY holds blanks or strange characters: copy it again")
        self.keepa_api_key = SecretStr(key)
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.broker_tls_cert_file is None) != (self.broker_tls_key_file is None):
            raise ValueError(
                "BROKER_TLS_CERT_FILE and BROKER_TLS_KEY_FILE belong together: set both or none"
            )
        if self.broker_tls_client_ca_file is not None:
            if self.broker_tls_cert_file is None:
                raise ValueError(
                    "BROKER_TLS_CLIENT_CA_FILE is for TLS: set BROKER_TLS_CERT_FILE and"
                    " BROKER_TLS_KEY_FILE too"
                )
            if self.broker_identities_file is None:
                raise ValueError(
                    "BROKER_TLS_CLIENT_CA_FILE needs BROKER_IDENTITIES_FILE, which tells what"
                    " each certificate may do"
                )
        plaintext = self.broker_tls_cert_file is None and not self.broker_allow_plaintext
        if plaintext and not Listen.parse(self.broker_listen).is_local:
            raise ValueError(
                f"BROKER_LISTEN: {self.broker_listen} can be reached from other machines in"
                " plaintext: set BROKER_TLS_CERT_FILE and BROKER_TLS_KEY_FILE, or"
                " BROKER_ALLOW_PLAINTEXT=true where the network is protected"
            )
        return self

    @property
    def key_fingerprint(self) -> str:
        """Short hash of the key, fit for people to see and compare."""
        return key_fingerprint(self.keepa_api_key)


class TracingSettings(BaseSettings):
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


class ClientSettings(BaseSettings):
    """What the commands that talk to a running broker need."""

    model_config = CONFIG

    # A gRPC target: host:port, or dns:///name:port.
    broker_address: str = "127.0.0.1:50051"
    # PEM files; with a CA the commands speak TLS, with a certificate they show it.
    broker_tls_ca_file: Path | None = None
    broker_tls_client_cert_file: Path | None = None
    broker_tls_client_key_file: Path | None = None
    # A name to look for in the broker's certificate instead of the address.
    broker_tls_server_name: str = ""
    broker_token_file: Path | None = None

    @property
    def access(self) -> Access:
        """How to get at the broker."""
        return Access(
            self.broker_tls_ca_file,
            self.broker_tls_client_cert_file,
            self.broker_tls_client_key_file,
            self.broker_tls_server_name,
            self.broker_token_file,
        )


def key_fingerprint(key: SecretStr) -> str:
    """Tell keys apart without telling them: the first digits of a salted SHA-256."""
    text = "keepa-token-broker:" + key.get_secret_value()
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]


def _read_secret(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not a text file"
        raise ValueError(f"KEEPA_API_KEY_FILE: {path} can't be read ({reason})") from None
    if not key:
        raise ValueError(f"KEEPA_API_KEY_FILE: {path} is empty: put the key in it")
    return key


AnySettings = TypeVar("AnySettings", bound=BaseSettings)


def load(settings: type[AnySettings]) -> AnySettings:
    """Read *settings* from the environment.

    Raises:
        SettingsError: a variable is missing or malformed.
    """
    try:
        return settings()
    except ValidationError as exc:
        problems = "; ".join(
            _line(tuple(error["loc"]), error["msg"]) for error in exc.errors(include_input=False)
        )
        raise SettingsError(problems) from None


def _line(location: tuple[int | str, ...], message: str) -> str:
    # Our own validators name the variable themselves where pydantic can't.
    message = message.removeprefix("Value error, ")
    name = ".".join(str(part) for part in location).upper()
    return f"{name}: {message}" if name else message
