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

    run_seconds: PositiveFloat | None = None
    """Stop this long after everything has started; unset: on Ctrl-C."""
    fetchers: Annotated[int, Field(ge=0, le=_FETCHERS_MAX)] = 3
    """Number of fetchers."""
    keepa_base_url: HttpUrl | None = None
    """Another Keepa, such as a simulator of yours; `make run` then starts none."""
    keepa_api_key: SecretStr = SecretStr("")
    """Your key; without it, `make run` starts the simulator."""
    keepa_api_key_file: Path | None = None
    """A file that holds the key."""
    database_url: SecretStr = SecretStr("")
    """Your Postgres, 15 or newer; without it, `make run` brings one."""
    database_url_file: Path | None = None
    """A file that holds the URL."""
    broker_listen: Address = "127.0.0.1:50051"
    """Where the broker serves gRPC."""
    broker_http_listen: Address = "127.0.0.1:9464"
    """Where the broker serves metrics and health."""
    data_dir: Path = Path(".local")
    """Folder of Postgres data and logs."""
    queries: Path = Path("deploy/queries")
    """Folder of deal queries."""
    log_level: LogLevel = LogLevel.INFO
    """Least severity that is logged: `debug`, `info`, `warning` or `error`."""
    simulator_speed: Annotated[float, Field(ge=1, le=600)] = 30.0
    """Without a key: how many times faster than real time Keepa's world runs. A tick takes 60.2 s
    divided by this."""
    simulator_rate: PositiveInt = 5
    """Without a key: tokens per tick; the bucket holds 60 ticks."""
    simulator_tokens: int = 20
    """Without a key: tokens at the start; few, so that waits can be seen."""

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
