"""The programs of the stack, with the command and environment of each.

Every command is the one that runs outside the stack; the environment gives it the
addresses of the others.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.local.program import Program
from deploy.local.settings import StackSettings, child_environment

OnLine = Callable[[str, str], None]


class Parts:
    """Makes the programs; each writes a log of its own.

    Args:
        environment: Variables of all programs, added to this process's own.
        logs: Folder of the logs.
        on_line: Takes a program's name and a line of its output, from any thread.
    """

    def __init__(self, environment: Mapping[str, str], logs: Path, on_line: OnLine) -> None:
        self._environment = dict(environment)
        self._logs = logs
        self._on_line = on_line

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
        """The migration; it brings the tables up to date and ends."""
        return self._program("migrate", "fetcher", "migrate")

    def broker(self) -> Program:
        """The broker, the owner of the tokens."""
        return self._program("broker", "broker", "serve")

    def alert(self) -> Program:
        """The sender of alerts, to the channels in ALERTS_FILE."""
        return self._program("alert", "fetcher", "alert")

    def console(self) -> Program:
        """The console of deals."""
        return self._program("console", "fetcher", "console")

    def gateway(self) -> Program:
        """The gateway: Keepa's API for other programs."""
        return self._program("gateway", "fetcher.gateway", "serve")

    def fetcher(self, number: int) -> Program:
        """Fetcher *number*."""
        return self._program(f"fetcher-{number}", "fetcher", "run")

    def _program(self, name: str, module: str, *arguments: str) -> Program:
        return Program(
            name,
            [sys.executable, "-m", module, *arguments],
            environment=child_environment(self._environment),
            log_path=self._logs / f"{name}.log",
            on_line=lambda line: self._on_line(name, line),
        )
