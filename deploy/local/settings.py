"""Settings of the local stack: the environment, then `.env`; read nowhere else.

Which Keepa is used follows from two of them: KEEPA_BASE_URL names one, KEEPA_API_KEY
alone means the real one, and with neither a simulator is started.
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
    """Whose tokens are spent."""

    SIMULATOR = "simulator"
    REAL = "the real one"
    NAMED = "KEEPA_BASE_URL"


class StackSettings(Environment):
    """What `make run` honours."""

    # The stack stops by itself after this time; unset means on Ctrl-C.
    run_seconds: PositiveFloat | None = None
    fetchers: Annotated[int, Field(ge=0, le=_FETCHERS_MAX)] = 3
    keepa_base_url: HttpUrl | None = None
    keepa_api_key: SecretStr = SecretStr("")
    keepa_api_key_file: Path | None = None
    # A server of yours; unset means one of ours, under DATA_DIR. May hold a password.
    database_url: SecretStr = SecretStr("")
    database_url_file: Path | None = None
    broker_listen: Address = "127.0.0.1:50051"
    broker_http_listen: Address = "127.0.0.1:9464"
    # Postgres data and logs.
    data_dir: Path = Path(".local")
    queries: Path = Path("deploy/queries")
    log_level: LogLevel = LogLevel.INFO
    # How many times as fast the simulator's world turns: its ticks, its deals, its cache,
    # and how often the fetchers ask. At 30 a tick takes 2 s, so refilling is seen.
    simulator_speed: Annotated[float, Field(ge=1, le=600)] = 30.0
    # Tokens that a tick brings; the bucket holds 60 ticks.
    simulator_rate: PositiveInt = 5
    # What the bucket holds at the start: little, so that waiting is seen.
    simulator_tokens: int = 20

    @field_validator("broker_listen", "broker_http_listen")
    @classmethod
    def _choose_port(cls, text: str) -> str:
        # The others must know the port before the broker has one.
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
        """Which Keepa to use."""
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
        """Base URL of a Keepa that is no simulator of ours."""
        return str(self.keepa_base_url or REAL_KEEPA).rstrip("/")

    @property
    def broker_address(self) -> str:
        """Where programs of this machine find the broker."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.rpc.host, self.rpc.host)  # noqa: S104 - what was asked for
        return str(Listen(host, self.rpc.port))

    @property
    def runs_postgres(self) -> bool:
        """Whether the stack brings its own Postgres."""
        return not (self.database_url.get_secret_value() or self.database_url_file)

    @property
    def rpc(self) -> Listen:
        """Where the broker serves gRPC."""
        return Listen.parse(self.broker_listen)

    @property
    def http(self) -> Listen:
        """Where the broker serves metrics and health."""
        return Listen.parse(self.broker_http_listen)


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment for a program of the stack: our own with *changes*."""
    # Lines must arrive when they are written, and in a form that can be read.
    return {**os.environ, "PYTHONUNBUFFERED": "1", "LOG_FORMAT": "json", **changes}
