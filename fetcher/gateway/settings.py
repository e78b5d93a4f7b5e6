"""Settings of the gateway: the environment, then `.env`; read nowhere else."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    model_validator,
)

from protos.channel.access import Access
from protos.channel.credential_files import CredentialError
from protos.process.addresses import Listen
from protos.process.environment import SettingsError
from protos.process.settings import (
    Address,
    BaseUrl,
    ConnectionSettings,
    LogSettings,
    RequiredKeepaSettings,
    ScrapeSettings,
    duration,
    read_secret,
)


def _seconds_by_endpoint(text: str) -> dict[str, int]:
    seconds = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, equals, number = part.partition("=")
        if not equals or not name or not number.isdecimal():
            raise ValueError("must be seconds by endpoint, such as product=600,search=3600")
        seconds[name.strip("/").lower()] = int(number)
    return seconds


def _cached(text: str) -> str:
    _seconds_by_endpoint(text)
    return text


def _half_a_day(value: timedelta) -> timedelta:
    if value > timedelta(hours=12):
        raise ValueError("must be at most 12h")
    return value


Duration = Annotated[timedelta, BeforeValidator(duration), AfterValidator(_half_a_day)]


class GatewaySettings(RequiredKeepaSettings, ConnectionSettings, ScrapeSettings, LogSettings):
    """Settings of `keepa-gateway serve`."""

    gateway_listen: Address = "127.0.0.1:8902"
    """Where the gateway serves Keepa's API."""
    gateway_http_listen: Address = "127.0.0.1:9467"
    """Where the gateway serves metrics and health."""
    gateway_max_wait: Duration = timedelta(minutes=10)
    """Longest wait of a call for its tokens; beyond it the caller gets Keepa's 429, with the time
    to wait. `X-Max-Wait` asks for less, in seconds."""
    gateway_broker_wait: Duration = timedelta(seconds=10)
    """Longest wait of a call for a broker that is away; beyond it the caller gets a 503."""
    gateway_interim: Duration = timedelta(seconds=4)
    """Time between two interim replies (`100 Continue`) to a caller that waits: they keep clients
    with a short read timeout from giving up. `0` for none, where a proxy in between takes offence
    at them."""
    gateway_cache: Annotated[str, AfterValidator(_cached)] = ""
    """Seconds for which replies are repeated for free, by endpoint: `product=600,search=3600`.
    Empty: no cache."""
    gateway_cache_bytes: PositiveInt = 64 * 1024 * 1024
    """Most bytes of all cached replies, as compressed by Keepa."""
    gateway_allow_anyone: bool = False
    """At a broker without identities: serve other machines too, which then need no token."""
    gateway_allow_plaintext: bool = False
    """Allow plain http on an address that other machines can reach."""
    gateway_tls_cert_file: Path | None = None
    """The gateway's certificate (PEM); with it the gateway speaks TLS."""
    gateway_tls_key_file: Path | None = None
    """The key of the certificate (PEM)."""

    keepa_connect_timeout_s: PositiveFloat = 30.0
    """Seconds to connect to Keepa; as in Keepa's own Java client."""
    keepa_read_timeout_s: PositiveFloat = 120.0
    """Longest silence of Keepa, in seconds; calls with offers take up to 20 s."""

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.gateway_tls_cert_file is None) != (self.gateway_tls_key_file is None):
            raise ValueError(
                "GATEWAY_TLS_CERT_FILE and GATEWAY_TLS_KEY_FILE belong together: set both or none"
            )
        plaintext = self.gateway_tls_cert_file is None and not self.gateway_allow_plaintext
        if plaintext and not Listen.parse(self.gateway_listen).is_local:
            raise ValueError(
                f"GATEWAY_LISTEN: {self.gateway_listen} can be reached from other machines in"
                " plaintext, and callers' tokens with it: set GATEWAY_TLS_CERT_FILE and"
                " GATEWAY_TLS_KEY_FILE, or GATEWAY_ALLOW_PLAINTEXT=true where the network is"
                " protected"
            )
        return self

    @property
    def cache_seconds(self) -> dict[str, int]:
        """How long replies are repeated, in seconds by endpoint."""
        return _seconds_by_endpoint(self.gateway_cache)

    @property
    def serves_anyone(self) -> bool:
        """Whether callers need no identity at a broker without identities."""
        return self.gateway_allow_anyone or Listen.parse(self.gateway_listen).is_local

    def require_access(self) -> Access:
        """Returns how to connect to the broker.

        Raises:
            SettingsError: A file can't be used.
        """
        try:
            self.access.check(self.broker_address)
        except CredentialError as exc:
            problem = str(exc)
        else:
            return self.access
        raise SettingsError([problem])


def _local(text: str) -> str:
    if not Listen.parse(text).is_local:
        raise ValueError("must be an address of this machine only: MCP clients need no sign-in")
    return text


class McpSettings(LogSettings):
    """Settings of `keepa-gateway mcp`."""

    mcp_gateway_url: BaseUrl = "http://127.0.0.1:8902"
    """The gateway that makes the calls."""
    mcp_token_file: Path | None = None
    """A file with the token of the MCP server's identity at the broker; without identities,
    none is needed."""
    mcp_spend_limit_tokens: NonNegativeInt = 10
    """A tool that costs more names its cost first, and spends it only when it is called again with
    that number."""
    mcp_listen: Annotated[Address, AfterValidator(_local)] = "127.0.0.1:8903"
    """Where `keepa-gateway mcp --http` serves, at the path /mcp."""

    def read_token(self) -> SecretStr:
        """Returns the token; the name "mcp" without one.

        Raises:
            SettingsError: The file is unreadable or empty.
        """
        if self.mcp_token_file is None:
            return SecretStr("mcp")
        return SecretStr(read_secret("MCP_TOKEN_FILE", self.mcp_token_file, "the token"))
