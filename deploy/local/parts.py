"""The programs of the stack: how each is started, and with which settings.

Every one is the same command that runs outside the stack; only the environment
tells it where the others are.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.local.program import Program
from deploy.local.settings import StackSettings, child_environment

Hear = Callable[[str, str], None]


class Parts:
    """Makes the programs; each writes a log of its own.

    Args:
        environment: What all programs get to know beside our own environment.
        logs: Folder of the logs.
        hear: Called with the program's name and a line that it wrote, from any thread.
    """

    def __init__(self, environment: Mapping[str, str], logs: Path, hear: Hear) -> None:
        self._environment = dict(environment)
        self._logs = logs
        self._hear = hear

    def simulator(self, settings: StackSettings, port: int) -> Program:
        """The stand-in for Keepa, on a port of 127.0.0.1."""
        return self._program(
            "simulator",
            "deploy.keepa_simulator",
            "serve",
            f"--listen=127.0.0.1:{port}",
            f"--rate={settings.simulator_rate}",
            f"--initial-tokens={settings.simulator_tokens}",
            f"--tick-seconds={settings.simulator_tick_s}",
            f"--cache-seconds={settings.simulator_cache_s}",
            f"--deal-speed={settings.simulator_speed}",
        )

    def migration(self) -> Program:
        """Brings the tables up to date, and ends."""
        return self._program("migrate", "fetcher", "migrate")

    def broker(self) -> Program:
        """The one that owns the tokens."""
        return self._program("broker", "broker", "serve")

    def fetcher(self, number: int) -> Program:
        """One of the fetchers."""
        return self._program(f"fetcher-{number}", "fetcher", "run")

    def _program(self, name: str, module: str, *arguments: str) -> Program:
        return Program(
            name,
            [sys.executable, "-m", module, *arguments],
            environment=child_environment(self._environment),
            log_path=self._logs / f"{name}.log",
            on_line=lambda line: self._hear(name, line),
        )
