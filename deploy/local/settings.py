"""Settings of the local stack: the environment, then `.env`; read nowhere else.

Two of them choose the Keepa: KEEPA_BASE_URL names one, KEEPA_API_KEY alone means the real
one, and without either the stack starts a simulator.
"""

import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import (
    Field,
    HttpUrl,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    field_validator,
    model_validator,
)

from deploy.local.ports import free_port
from protos.process.addresses import Listen
from protos.process.settings import Address, Environment, LogLevel

# Keepa's own, as measured and documented (keepa-api.md, sections 1 and 4).
TICK_S: Final = 60.2
CACHE_S: Final = 120.0
REAL_KEEPA: Final = "https://api.keepa.com"
_FETCHERS_MAX: Final = 200


class Keepa(StrEnum):
    """The source of the tokens that the stack spends."""

    SIMULATOR = "simulator"
    REAL = "the real one"
    NAMED = "KEEPA_BASE_URL"


class StackSettings(Environment):
    """The settings of `make run`."""

    run_seconds: PositiveFloat | None = None
    """Seconds to run once everything has started; unset: until Ctrl-C."""
    fetchers: Annotated[int, Field(ge=0, le=_FETCHERS_MAX)] = 3
    """Number of fetchers."""
    keepa_base_url: HttpUrl | None = None
    """Base URL of another Keepa, such as your own simulator; `make run` then starts none."""
    keepa_api_key: SecretStr = SecretStr("")
    """Your key; without it, `make run` starts the simulator."""
    keepa_api_key_file: Path | None = None
    """A file that holds the key."""
    database_url: SecretStr = SecretStr("")
    """URL of your Postgres, 15 or newer; without it, `make run` starts one."""
    database_url_file: Path | None = None
    """A file that holds the URL."""
    broker_database_url: SecretStr = SecretStr("")
    """URL of the journal's database; without it, the journal is in the Postgres that
    `make run` starts. With a Postgres of yours there is none: set it to the same URL."""
    broker_database_url_file: Path | None = None
    """A file that holds this URL."""
    broker_listen: Address = "127.0.0.1:50051"
    """Address of the broker's gRPC server."""
    broker_http_listen: Address = "127.0.0.1:9464"
    """Address of the broker's metrics and health endpoints."""
    gateway_listen: Address = "127.0.0.1:8902"
    """Address of the gateway, which serves Keepa's API to other programs."""
    gateway_http_listen: Address = "127.0.0.1:9467"
    """Address of the gateway's metrics and health endpoints."""
    console_listen: Address = "127.0.0.1:9466"
    """Address of the console of deals."""
    data_dir: Path = Path(".local")
    """Folder of Postgres data and logs."""
    queries: Path = Path("deploy/queries")
    """Folder of deal queries."""
    alerts_file: Path | None = None
    """The channels of alerts (TOML); without it, alerts wait in the database."""
    log_level: LogLevel = LogLevel.INFO
    """Lowest logged severity: `debug`, `info`, `warning` or `error`."""
    simulator_speed: Annotated[float, Field(ge=1, le=600)] = 30.0
    """Without a key: speed-up of the simulator. A tick takes 60.2 s divided by this."""
    simulator_rate: PositiveInt = 5
    """Without a key: tokens per tick; the bucket holds 60 ticks."""
    simulator_tokens: int = 20
    """Without a key: tokens at the start; few, to show waits."""

    @field_validator(
        "broker_listen",
        "broker_http_listen",
        "gateway_listen",
        "gateway_http_listen",
        "console_listen",
    )
    @classmethod
    def _choose_port(cls, text: str) -> str:
        # The other programs need the port before the broker starts.
        listen = Listen.parse(text)
        return str(listen if listen.port else Listen(listen.host, free_port(listen.host)))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.keepa is Keepa.NAMED and not (
            self.keepa_api_key.get_secret_value() or self.keepa_api_key_file
        ):
            raise ValueError(
                "KEEPA_BASE_URL is set, so KEEPA_API_KEY (or KEEPA_API_KEY_FILE) must be too;"
                " unset both to use the simulator"
            )
        if not self.queries.is_dir():
            raise ValueError(f"QUERIES: {self.queries} is no folder: name one with query files")
        return self

    @property
    def keepa(self) -> Keepa:
        """The Keepa to use."""
        if self.keepa_base_url:
            return Keepa.NAMED
        has_key = self.keepa_api_key.get_secret_value() or self.keepa_api_key_file
        return Keepa.REAL if has_key else Keepa.SIMULATOR

    @property
    def simulator_tick_s(self) -> float:
        """Seconds from one tick of the simulator to the next."""
        return TICK_S / self.simulator_speed

    @property
    def simulator_cache_s(self) -> float:
        """Seconds for which the simulator repeats the reply to a selection."""
        return CACHE_S / self.simulator_speed

    @property
    def keepa_url(self) -> str:
        """Base URL of a Keepa other than the stack's simulator."""
        return str(self.keepa_base_url or REAL_KEEPA).rstrip("/")

    @property
    def broker_address(self) -> str:
        """The broker's address for programs on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.rpc.host, self.rpc.host)  # noqa: S104 - the user set it
        return str(Listen(host, self.rpc.port))

    @property
    def runs_postgres(self) -> bool:
        """Whether the stack starts its own Postgres."""
        return not (self.database_url.get_secret_value() or self.database_url_file)

    @property
    def brings_journal(self) -> bool:
        """Whether the stack's own Postgres holds the broker's journal."""
        return self.runs_postgres and not self._names_journal

    @property
    def journal_is_off(self) -> bool:
        """Whether the broker has no database: Postgres is the user's, the journal not set."""
        return not (self.runs_postgres or self._names_journal)

    @property
    def _names_journal(self) -> bool:
        return bool(self.broker_database_url.get_secret_value() or self.broker_database_url_file)

    @property
    def rpc(self) -> Listen:
        """Address of the broker's gRPC server."""
        return Listen.parse(self.broker_listen)

    @property
    def http(self) -> Listen:
        """Address of the broker's metrics and health endpoints."""
        return Listen.parse(self.broker_http_listen)


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program of the stack: this process's own with *changes*."""
    # Lines must arrive when they are written, and in JSON.
    return {**os.environ, "PYTHONUNBUFFERED": "1", "LOG_FORMAT": "json", **changes}
