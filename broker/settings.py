"""Settings of the broker, from the environment, then from `.env`; no other module reads them."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    SecretStr,
    model_validator,
)

from protos.process.addresses import Listen
from protos.process.environment import SettingsError
from protos.process.settings import (
    Address,
    Environment,
    LogSettings,
    RequiredKeepaSettings,
    ScrapeSettings,
    Secrets,
    content_of,
    duration,
    key_fingerprint,
    read_secret,
)

LEASE_AGE_MIN: Final = timedelta(minutes=2)
LEASE_AGE_MAX: Final = timedelta(days=1)
LEADER_TTL_MIN: Final = timedelta(seconds=1)
LEADER_TTL_MAX: Final = timedelta(minutes=1)


def _age(value: timedelta) -> timedelta:
    if not LEASE_AGE_MIN <= value <= LEASE_AGE_MAX:
        raise ValueError("must be at least 2m, as the longest call takes, and at most 24h")
    return value


def _leader_ttl(value: timedelta) -> timedelta:
    if not LEADER_TTL_MIN <= value <= LEADER_TTL_MAX:
        raise ValueError("must be from 1s to 60s")
    return value


def _replaced_by_horizon(value: object) -> None:
    if value is None:
        return
    raise ValueError(
        "is replaced by BROKER_DEBT_HORIZON: unset it, and set there the time in which"
        " refill may pay a debt back, such as 60s (0: no debt)"
    )


def _postgres_url(value: SecretStr) -> SecretStr:
    if value.get_secret_value():
        # Only brokers with a database pay for its driver.
        from protos.postgres.url import check_database_url  # noqa: PLC0415 - see above

        check_database_url(value.get_secret_value())
    return value


class JournalSettings(Environment):
    """The broker's database: journal and leadership."""

    broker_database_url: Annotated[SecretStr, AfterValidator(_postgres_url)] = SecretStr("")
    """Postgres for the journal, and for leadership among several brokers; unset, the broker
    remembers nothing over a restart, and is the only one."""
    broker_database_url_file: Path | None = None
    """A file that holds the URL, such as a mounted secret."""
    broker_journal_months: PositiveInt = 12
    """Whole months for which the journal keeps single records; its sums stay."""

    @model_validator(mode="after")
    def _read_database_url(self) -> Self:
        name = "BROKER_DATABASE_URL_FILE"
        if not self.broker_database_url.get_secret_value() and self.broker_database_url_file:
            text = read_secret(name, self.broker_database_url_file, "the URL")
            try:
                self.broker_database_url = _postgres_url(SecretStr(text))
            except ValueError as exc:
                problem = f"{name}: {exc}"
            else:
                return self
            raise SettingsError([problem])
        return self

    @property
    def database_url(self) -> str:
        """The URL of the database; empty without one."""
        return self.broker_database_url.get_secret_value()

    def require_database_url(self) -> str:
        """The URL of the database.

        Raises:
            SettingsError: None is set.
        """
        if not self.database_url:
            problem = (
                "BROKER_DATABASE_URL is not set: set it, or BROKER_DATABASE_URL_FILE, to the"
                " broker's database, for example postgresql://user:password@127.0.0.1:5432/deals"
            )
            raise SettingsError([problem])
        return self.database_url


class BrokerSecrets(Secrets):
    """The broker's secrets: the database's password too."""

    broker_database_url: str = ""
    broker_database_url_file: Path | None = None
    # libpq's own variable.
    pgpassword: str = ""

    def texts(self) -> Iterator[str]:
        """Yields each secret; some may be empty."""
        yield from super().texts()
        yield self.pgpassword
        for url in (self.broker_database_url, content_of(self.broker_database_url_file)):
            if url:
                # As in _postgres_url.
                from protos.postgres.url import secrets_of  # noqa: PLC0415 - see there

                yield from secrets_of(url)


class ServeSettings(RequiredKeepaSettings, JournalSettings, ScrapeSettings, LogSettings):
    """Settings of `tokenbroker serve`."""

    broker_listen: Address = "127.0.0.1:50051"
    """Where the broker serves gRPC."""
    broker_http_listen: Address = "127.0.0.1:9464"
    """Where the broker serves its page (`/`), metrics and health."""
    broker_http_open: bool = False
    """Show the page to every caller that reaches an address other than loopback, to read only:
    where the network is protected, and without `BROKER_IDENTITIES_FILE`."""
    broker_http_tls_cert_file: Path | None = None
    """The certificate of the HTTP port (PEM); with it the port speaks TLS."""
    broker_http_tls_key_file: Path | None = None
    """The key of this certificate (PEM)."""
    broker_http_tls_client_ca_file: Path | None = None
    """Client certificates of this CA (PEM) are identities on the HTTP port too."""
    broker_floor_tokens: NonNegativeInt = 0
    """Tokens that are never granted: room for other users of the key."""
    broker_debt_horizon: Annotated[timedelta, BeforeValidator(duration)] = timedelta(minutes=15)
    """Refill time that may pay back what a lone call takes below zero: `90s`, `5m`, or `0` for no
    debt. Keepa admits any call above zero, so debt costs only the wait for it."""
    # Replaced by the horizon; kept so that an old setting is refused and not ignored.
    broker_max_debt_tokens: Annotated[None, BeforeValidator(_replaced_by_horizon)] = None
    broker_lease_ttl_ms: PositiveInt = 15_000
    """How long a silent client keeps its lease; the client's heartbeat renews it."""
    broker_lease_age_max: Annotated[timedelta, BeforeValidator(duration), AfterValidator(_age)] = (
        timedelta(minutes=10)
    )
    """Greatest age of a lease: renewals prolong no lease beyond it, because no call takes that
    long but a thread may hang."""
    broker_caller_waits_max: PositiveInt = 4_000
    """Most requests of one identity that may wait; without identities, of one holder. More
    are refused with RESOURCE_EXHAUSTED. One connection carries 4,096 calls at once: beside so
    many waits there is room for settles."""
    broker_caller_leases_max: PositiveInt = 5_000
    """Most open leases of one identity, or of one holder, likewise."""
    broker_caller_share_max: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a full bucket that the leases of one identity, or of one holder, may hold; a
    caller that holds nothing gets one lease in any case."""
    broker_recovery_grace_ms: NonNegativeInt = 3_000
    """How long a restarted broker waits for living clients to renew."""
    broker_start_paused: bool = False
    """Grant nothing until `tokenbroker resume`; without a journal, an operator's pause ends with
    the process."""
    broker_budgets_file: Path | None = None
    """Limits for groups of callers, see below."""
    broker_leadership: Literal["shared", "sole"] = "shared"
    """With a database: `shared` for a leader and standbys, which grants nothing while Postgres
    is away for longer than BROKER_LEADER_TTL; `sole` for a broker without standbys, which
    then goes on."""
    broker_leader_ttl: Annotated[
        timedelta, BeforeValidator(duration), AfterValidator(_leader_ttl)
    ] = timedelta(seconds=4)
    """How long a leader leads without an answer of Postgres. A standby takes over after a
    quarter more."""
    broker_advertise: str = ""
    """Address of this broker that standbys name as the leader's; default: BROKER_LISTEN, with
    the machine's name if that means every interface."""
    broker_tls_cert_file: Path | None = None
    """The broker's certificate (PEM); with it the broker speaks TLS."""
    broker_tls_key_file: Path | None = None
    """The key of the certificate (PEM)."""
    broker_tls_client_ca_file: Path | None = None
    """Every client must present a certificate of this CA (PEM)."""
    broker_identities_file: Path | None = None
    """Identities and their roles; without it, every caller that reaches the port may do
    everything."""
    broker_allow_plaintext: bool = False
    """Allow plaintext on an address that other machines can reach."""

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.broker_tls_cert_file is None) != (self.broker_tls_key_file is None):
            raise ValueError(
                "BROKER_TLS_CERT_FILE and BROKER_TLS_KEY_FILE belong together: set both or none"
            )
        http = self.broker_http_tls_cert_file, self.broker_http_tls_key_file
        if (http[0] is None) != (http[1] is None) or (
            self.broker_http_tls_client_ca_file is not None and http[0] is None
        ):
            raise ValueError(
                "BROKER_HTTP_TLS_CERT_FILE and BROKER_HTTP_TLS_KEY_FILE belong together: set"
                " both or none"
            )
        if self.broker_tls_client_ca_file is not None:
            if self.broker_tls_cert_file is None:
                raise ValueError(
                    "BROKER_TLS_CLIENT_CA_FILE is for TLS: set BROKER_TLS_CERT_FILE and"
                    " BROKER_TLS_KEY_FILE too"
                )
            if self.broker_identities_file is None:
                raise ValueError(
                    "BROKER_TLS_CLIENT_CA_FILE needs BROKER_IDENTITIES_FILE, which sets what"
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
        """Short hash of the key, with which broker and fetchers compare their keys."""
        return key_fingerprint(self.keepa_api_key.get_secret_value())
