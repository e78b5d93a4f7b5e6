"""Settings that every process reads the same way: the environment first, then `.env`.

A missing or malformed setting becomes a `SettingsError`: one line per problem, with the
variable and the remedy, and never with the value, because that may be the key.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from protos.channel.access import Access, is_loopback
from protos.process.addresses import Listen
from protos.process.environment import (
    BROKER_ADDRESS,
    ENCODING,
    ENV_FILE,
    SettingsError,
    check_target,
    env_file_error,
)
from protos.process.text_file import NotUtf8Error, read_text

FINGERPRINT_DIGITS: Final = 12


DURATION: Final = re.compile(r"(\d+)(ms|s|m|h|)")
UNITS: Final = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
}


class LogLevel(StrEnum):
    """Least severity that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """Form of the log lines; auto is console on a terminal, else JSON."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


def _listen(text: str) -> str:
    Listen.parse(text)
    return text


def _target(text: str) -> str:
    check_target(text)
    return text


def _base_url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in {"http", "https"} or not url.hostname or url.query:
        raise ValueError("must look like https://api.keepa.com")
    if url.username is not None or url.password is not None:
        # The address is logged and shown by /healthz.
        raise ValueError("must hold no user and password: the key stands in KEEPA_API_KEY")
    return text.rstrip("/")


def duration(value: object) -> object:
    """Converts a whole number with a unit, or of seconds, to a timedelta: for a validator.

    Raises:
        ValueError: It is none.
    """
    if value is None or isinstance(value, timedelta):
        return value
    match = DURATION.fullmatch(str(value).strip())
    if match is None:
        raise ValueError("must be a whole number of seconds, or have a unit: 500ms, 90s, 5m, 1h")
    return int(match[1]) * UNITS[match[2]]


# An address to listen on.
Address = Annotated[str, AfterValidator(_listen)]
# A gRPC target to connect to: host:port, dns:///name:port or unix:path.
Target = Annotated[str, AfterValidator(_target)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
OtlpProtocol = Literal["grpc", "http/protobuf"]


class Environment(BaseSettings):
    """Settings that are read, or rejected, as a whole."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_file_encoding=ENCODING,
        env_ignore_empty=True,
        extra="ignore",
        # A rejected value may be the key.
        hide_input_in_errors=True,
        # No command reads all settings: a class that is not read costs no time at the start.
        defer_build=True,
    )

    @classmethod
    def load(cls) -> Self:
        """Reads the environment and `.env`.

        Raises:
            SettingsError: A variable is missing or malformed.
        """
        try:
            return cls()
        except ValidationError as exc:
            problems = [
                _line(tuple(error["loc"]), error["msg"])
                for error in exc.errors(include_url=False, include_input=False)
            ]
        except (OSError, UnicodeDecodeError) as exc:
            problems = env_file_error(exc).problems
        # Outside the handler: the cause in a traceback would show the values.
        raise SettingsError(problems)


class LogSettings(Environment):
    """Level and form of a process's log."""

    log_level: LogLevel = LogLevel.INFO
    """Least severity that is logged: `debug`, `info`, `warning` or `error`."""
    log_format: LogFormat = LogFormat.AUTO
    """`console`, `json`, or `auto`: console on a terminal, else JSON."""


class ScrapeSettings(Environment):
    """Access to a program's metrics and health."""

    metrics_token_file: Path | None = None
    """A file with the bearer token that opens metrics and `/healthz`, as in the `authorization`
    of a scrape job. Without it they are open on loopback, and to viewers where the page has
    identities; `/livez` and `/readyz` are open in any case."""
    metrics_open: bool = False
    """Open metrics and `/healthz` to every caller on other addresses than loopback too: where
    the network is protected."""


class KeepaSettings(Environment):
    """The Keepa account."""

    keepa_api_key: SecretStr = SecretStr("")
    """The Keepa key."""
    keepa_api_key_file: Path | None = None
    """A file that holds the key, such as a mounted secret."""
    keepa_base_url: BaseUrl = "https://api.keepa.com"
    """Another Keepa, such as a simulator."""
    keepa_allow_plaintext: bool = False
    """Allow plain http to another machine, which carries the key in the clear: for simulators."""

    @model_validator(mode="after")
    def _protect_key(self) -> Self:
        url = urlsplit(self.keepa_base_url)
        exposed = url.scheme == "http" and not is_loopback(url.hostname or "")
        if exposed and not self.keepa_allow_plaintext:
            raise ValueError(
                f"KEEPA_BASE_URL: plain http would carry the key to {url.hostname} in the"
                " clear: use https, or set KEEPA_ALLOW_PLAINTEXT=true for a simulator"
            )
        return self

    def read_api_key(self) -> str:
        """Returns the Keepa key, from the variable or else the file; empty if neither is set.

        Raises:
            SettingsError: The file is unreadable or empty, or its text can't be a key.
        """
        key = self.keepa_api_key.get_secret_value().strip()
        if not key and self.keepa_api_key_file is not None:
            key = read_secret("KEEPA_API_KEY_FILE", self.keepa_api_key_file, "the key")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise SettingsError(["KEEPA_API_KEY holds blanks or odd characters: copy it again"])
        return key


class RequiredKeepaSettings(KeepaSettings):
    """The Keepa account of a process that can't start without its key."""

    @model_validator(mode="after")
    def _read_key(self) -> Self:
        key = self.read_api_key()
        if not key:
            raise ValueError(
                "KEEPA_API_KEY is not set: export it, or name a file that holds it in"
                " KEEPA_API_KEY_FILE"
            )
        self.keepa_api_key = SecretStr(key)
        return self


class ConnectionSettings(Environment):
    """The broker's address, and the files of a client's certificates."""

    broker_address: Target = BROKER_ADDRESS
    """Where clients find the broker: host:port, or any gRPC target; several, with commas
    between, for a leader and its standbys."""
    broker_tls_ca_file: Path | None = None
    """Clients: CA of the broker's certificate (PEM); turns TLS on."""
    broker_tls_client_cert_file: Path | None = None
    """Clients: their own certificate (PEM)."""
    broker_tls_client_key_file: Path | None = None
    """Clients: the key of their certificate (PEM)."""
    broker_tls_server_name: str = ""
    """Clients: the name that the broker's certificate must hold instead of the address."""

    @property
    def access(self) -> Access:
        """The files, unread and unchecked."""
        return Access(
            self.broker_tls_ca_file,
            self.broker_tls_client_cert_file,
            self.broker_tls_client_key_file,
            self.broker_tls_server_name,
        )


class ClientSettings(ConnectionSettings):
    """The same, and the file of a client's token."""

    broker_token_file: Path | None = None
    """Clients: a file with a bearer token, where there is no client certificate."""

    @property
    def access(self) -> Access:
        """The files, unread and unchecked."""
        return replace(super().access, token_file=self.broker_token_file)


class Secrets(Environment):
    """The texts that must never be shown, even if other settings are wrong."""

    keepa_api_key: str = ""
    keepa_api_key_file: Path | None = None
    broker_token_file: Path | None = None

    @classmethod
    def known(cls) -> list[str]:
        """Returns all secrets that can be read; none if `.env` can't be read."""
        try:
            return [text for text in cls.load().texts() if text]
        except SettingsError:
            return []

    def texts(self) -> Iterator[str]:
        """Yields each secret; some may be empty."""
        yield self.keepa_api_key.strip()
        yield content_of(self.keepa_api_key_file)
        yield content_of(self.broker_token_file)


class TracingSettings(Environment):
    """Whether spans are sent; OpenTelemetry's SDK reads the rest of its variables itself."""

    # The SDK reads the environment only, and so does this class.
    model_config = SettingsConfigDict(env_file=None)

    otel_sdk_disabled: bool = False
    """Send no traces, even if other variables are set."""
    otel_traces_exporter: Literal["otlp", "none"] | None = None
    """`otlp` sends traces to a collector on this machine; `none` sends none."""
    otel_exporter_otlp_endpoint: str | None = None
    """The collector's address for traces."""
    otel_exporter_otlp_traces_endpoint: str | None = None
    """The same, for traces only."""
    otel_exporter_otlp_protocol: OtlpProtocol = "http/protobuf"
    """`grpc` or `http/protobuf`."""
    otel_exporter_otlp_traces_protocol: OtlpProtocol | None = None
    """The same, for traces only."""

    @property
    def protocol(self) -> OtlpProtocol | None:
        """The protocol in which spans go to the collector; None if no collector is named."""
        endpoint = self.otel_exporter_otlp_endpoint or self.otel_exporter_otlp_traces_endpoint
        exporter = self.otel_traces_exporter or ("otlp" if endpoint else "none")
        if self.otel_sdk_disabled or exporter == "none":
            return None
        return self.otel_exporter_otlp_traces_protocol or self.otel_exporter_otlp_protocol


def key_fingerprint(api_key: str) -> str:
    """Returns the first digits of a salted SHA-256: they identify a key and reveal nothing."""
    digest = hashlib.sha256(f"keepa-token-broker:{api_key}".encode()).hexdigest()
    return digest[:FINGERPRINT_DIGITS]


def read_secret(variable: str, path: Path, content: str) -> str:
    """Returns the text of the file that *variable* names, without blanks around it.

    Args:
        variable: The setting, for errors.
        path: The file.
        content: What belongs in the file, for errors.

    Raises:
        SettingsError: The file is unreadable or empty.
    """
    try:
        text = read_text(path).strip()
    except (OSError, NotUtf8Error) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        problem = f"{variable}: can't read {path.absolute()}: {reason}"
    else:
        if text:
            return text
        problem = f"{variable}: {path.absolute()} is empty: put {content} in it"
    # Outside the handler: the cause in a traceback would show the content.
    raise SettingsError([problem])


def content_of(path: Path | None) -> str:
    """Returns the text of a secret's file; empty if there is none; never raises."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() if path else ""
    except (OSError, ValueError):
        # A path with a null character is a ValueError.
        return ""


def _line(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    # Validators of a whole class have no location; their texts name the variable.
    name = ".".join(map(str, location)).upper()
    return f"{name}: {message}" if name else message
