"""Settings of the fetcher: the environment, then `.env`; read nowhere else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, field_validator, model_validator

from protos.channel.access import Access
from protos.channel.credential_files import CredentialError
from protos.process.environment import ENV_FILE, SettingsError
from protos.process.settings import (
    Address,
    ClientSettings,
    KeepaSettings,
    LogSettings,
    ScrapeSettings,
    Secrets,
    content_of,
    read_secret,
)


class Settings(KeepaSettings, ClientSettings, ScrapeSettings, LogSettings):
    """The settings of the `dealfetcher` commands; each command requires what it needs."""

    keepa_connect_timeout_s: PositiveFloat = 30.0
    """Seconds to connect to Keepa; as in Keepa's own Java client."""
    keepa_read_timeout_s: PositiveFloat = 120.0
    """Seconds to wait for Keepa's reply; calls with offers take up to 20 s."""
    # Below four megabytes an ordinary page of deals would count as too large.
    keepa_reply_max_bytes: Annotated[int, Field(ge=4 * 1024 * 1024)] = 32 * 1024 * 1024
    """Most bytes of a reply, decompressed; a fetcher may need seven times as much memory."""

    database_url: SecretStr | None = None
    """URL of Postgres, 15 or newer: `postgresql://user:password@host:5432/deals`."""
    database_url_file: Path | None = None
    """A file that holds the URL, such as a mounted secret."""
    database_fetcher_url_file: Path | None = None
    """For `dealfetcher migrate --roles`: a file with the URL of the fetchers' role."""
    database_reader_url_file: Path | None = None
    """The same for the role of metrics and console, which only reads."""
    database_broker_url_file: Path | None = None
    """The same for the broker's role, which has the schema `tokenbroker` for itself."""

    queries: Path = Path("deploy/queries")
    """Folder of deal queries."""
    calls_in_flight: Annotated[int, Field(ge=1, le=64)] = 4
    """Calls of each kind, pages and details, that the process makes at once. One that waits for
    tokens is none. Each takes up to two megabytes. The process opens up to twice as many
    connections to Postgres and one more, but at most 16."""
    page_attempts_max: PositiveInt = 8
    """Tries before a page is put aside; a 429 is not a try."""
    poll_speed: PositiveFloat = 1.0
    """How many times faster than real time intervals pass: for simulators."""
    retry_delay_s: PositiveFloat = 2.0
    """First pause after a failed try, in seconds; it doubles with each further one."""
    claim_ttl_s: Annotated[float, Field(ge=1)] = 30.0
    """How long a dead process keeps a page, in seconds."""
    finish_seconds: PositiveFloat = 2.5
    """How long a stop waits for calls under way, in seconds; at most CLAIM_TTL_S. Calls with many
    offers take 20 s. Replies that have come are written: that may take up to 5 s more."""
    retention_days: PositiveInt = 90
    """`dealfetcher prune` deletes what was not seen for longer."""
    history_days: PositiveInt = 730
    """`dealfetcher prune` rolls prices older than `RETENTION_DAYS` up to one row a day, and
    deletes them after this time."""

    alerts_file: Path | None = None
    """The channels of alerts (TOML), for `dealfetcher alert`; unset: alerts wait."""
    alert_attempts_max: PositiveInt = 16
    """Tries before a message is set aside; with the pause below, about eight hours."""
    alert_retry_delay_s: PositiveFloat = 5.0
    """First pause after a failed delivery, in seconds; it doubles up to an hour."""
    alerts_retention_days: PositiveInt = 30
    """`dealfetcher prune` deletes alerts that were delivered, or set aside, longer ago."""

    metrics_listen: Address = "127.0.0.1:9465"
    """Where `dealfetcher metrics` serves."""

    console_listen: Address = "127.0.0.1:9466"
    """Where `dealfetcher console` serves."""
    console_database_url: SecretStr | None = None
    """The console's URL of Postgres for reading, of a role that may only SELECT. Unset: it reads
    with `DATABASE_URL`. Marks and requeueing always use `DATABASE_URL`; without it, the console
    only reads."""
    console_database_url_file: Path | None = None
    """A file that holds this URL."""
    console_identities_file: Path | None = None
    """Identities and roles, as the broker's `BROKER_IDENTITIES_FILE`; without it the console is
    open, on loopback only."""
    console_open: bool = False
    """Show the console to every caller that reaches an address other than loopback, to read
    only: where the network is protected."""
    console_images: bool = True
    """Show product images, which browsers load from Amazon."""
    console_tls_cert_file: Path | None = None
    """The console's certificate (PEM); with it the console speaks TLS."""
    console_tls_key_file: Path | None = None
    """The key of this certificate (PEM)."""
    console_tls_client_ca_file: Path | None = None
    """Client certificates of this CA (PEM) are identities too."""

    @property
    def console_tls(self) -> tuple[Path, Path] | None:
        """Certificate and key of the console; None for plaintext.

        Raises:
            SettingsError: Only one of them is set, or a CA without them.
        """
        cert, key = self.console_tls_cert_file, self.console_tls_key_file
        if cert is not None and key is not None:
            return cert, key
        if cert or key or self.console_tls_client_ca_file:
            names = "CONSOLE_TLS_CERT_FILE and CONSOLE_TLS_KEY_FILE"
            raise SettingsError([f"{names} belong together: set both or none"])
        return None

    def console_database_urls(self) -> tuple[str, str | None]:
        """Returns the console's URLs of Postgres: for reading, and for writing if it may.

        Raises:
            SettingsError: None is set, or one is unusable.
        """
        reading = _url_in(
            "CONSOLE_DATABASE_URL_FILE", self.console_database_url, self.console_database_url_file
        )
        if reading is None:
            both = self.require_database_url()
            return both, both
        return reading, _url_in("DATABASE_URL_FILE", self.database_url, self.database_url_file)

    @field_validator("database_url", "console_database_url")
    @classmethod
    def _is_postgres(cls, url: SecretStr | None) -> SecretStr | None:
        return None if url is None else _postgres_url(url.get_secret_value())

    @model_validator(mode="after")
    def _keeps_its_claims(self) -> Self:
        # Simulations with very short claims leave the default as it is.
        is_set = "finish_seconds" in self.model_fields_set
        if is_set and self.finish_seconds > self.claim_ttl_s:
            raise ValueError(
                f"FINISH_SECONDS: must not exceed CLAIM_TTL_S ({self.claim_ttl_s:g}), or another"
                " fetcher would pay for the same page again: lower the one or raise the other"
            )
        return self

    def require_api_key(self) -> str:
        """Returns the Keepa key.

        Raises:
            SettingsError: There is none; the message lists the places searched.
        """
        key = self.read_api_key()
        if not key:
            raise SettingsError([_missing("KEEPA_API_KEY", "your key, shown on keepa.com/#!api")])
        return key

    def require_database_url(self) -> str:
        """Returns the URL of Postgres.

        Raises:
            SettingsError: It is not set, or unusable.
        """
        url = _url_in("DATABASE_URL_FILE", self.database_url, self.database_url_file)
        if url is None:
            remedy = "for example postgresql://user:password@127.0.0.1:5432/deals"
            raise SettingsError([_missing("DATABASE_URL", remedy)])
        return url

    def require_role_urls(self) -> dict[str, str]:
        """Returns the URL of each role that has a file which exists, by purpose.

        Raises:
            SettingsError: None is given, or one is unusable.
        """
        files = {
            "fetcher": self.database_fetcher_url_file,
            "reader": self.database_reader_url_file,
            "broker": self.database_broker_url_file,
        }
        urls: dict[str, str] = {}
        problems: list[str] = []
        for purpose, file in files.items():
            # Kubernetes mounts no file for a Secret that the operator has left out.
            if file is None or not file.exists():
                continue
            setting = f"DATABASE_{purpose.upper()}_URL_FILE"
            try:
                text = read_secret(setting, file, "the URL")
                urls[purpose] = _postgres_url(text).get_secret_value()
            except ValueError as exc:
                problems.append(str(exc) if setting in str(exc) else f"{setting}: {exc}")
        if not urls and not problems:
            names = ", ".join(f"DATABASE_{purpose.upper()}_URL_FILE" for purpose in files)
            problems = [f"{names}: --roles needs one of them, with a file that exists"]
        if problems:
            raise SettingsError(problems)
        return urls

    def require_alerts_file(self) -> Path:
        """Returns the channels file.

        Raises:
            SettingsError: It is not set.
        """
        if self.alerts_file is None:
            remedy = "a file with your channels; fetcher/README.md has an example"
            raise SettingsError([_missing("ALERTS_FILE", remedy)])
        return self.alerts_file

    def require_access(self) -> Access:
        """Returns how to connect to the broker.

        Raises:
            SettingsError: A file can't be used, or a token would travel in plaintext.
        """
        access = self.access
        try:
            access.check(self.broker_address)
        except CredentialError as exc:
            problem = str(exc)
        else:
            return access
        raise SettingsError([problem])


class FetcherSecrets(Secrets):
    """The fetcher's secrets: the database's password too."""

    alerts_file: Path | None = None
    database_url: str = ""
    database_url_file: Path | None = None
    database_fetcher_url_file: Path | None = None
    database_reader_url_file: Path | None = None
    database_broker_url_file: Path | None = None
    console_database_url: str = ""
    console_database_url_file: Path | None = None
    # libpq's own variable.
    pgpassword: str = ""

    def texts(self) -> Iterator[str]:
        """Yields each secret; some may be empty."""
        yield from super().texts()
        yield self.pgpassword
        files = (
            self.database_url_file,
            self.database_fetcher_url_file,
            self.database_reader_url_file,
            self.database_broker_url_file,
            self.console_database_url_file,
        )
        for url in (self.database_url, self.console_database_url, *map(content_of, files)):
            if url:
                # As in _postgres_url.
                from protos.postgres.url import secrets_of  # noqa: PLC0415 - see there

                yield from secrets_of(url)
        if self.alerts_file is not None:
            # As above: only processes that deliver alerts have the file.
            from fetcher.alerts.channels import secrets_in  # noqa: PLC0415 - as above

            yield from secrets_in(self.alerts_file)


def _url_in(variable: str, url: SecretStr | None, path: Path | None) -> str | None:
    """Returns the URL that is set, else the one in *path*, which *variable* names."""
    if url is not None:
        return url.get_secret_value()
    if path is None:
        return None
    text = read_secret(variable, path, "the URL")
    try:
        return _postgres_url(text).get_secret_value()
    except ValueError as exc:
        problem = f"{variable}: {exc}"
    raise SettingsError([problem])


def _postgres_url(text: str) -> SecretStr:
    # Only commands that use Postgres pay for its driver.
    from protos.postgres.url import check_database_url  # noqa: PLC0415 - see above

    return SecretStr(check_database_url(text))


def _missing(variable: str, remedy: str) -> str:
    env_file = ENV_FILE.absolute()
    looked = f"{env_file}{'' if env_file.exists() else ' (no such file)'}"
    return (
        f"{variable}: not set. Looked in the environment ({variable}, {variable}_FILE) and in "
        f"{looked}. Set it to {remedy}"
    )
