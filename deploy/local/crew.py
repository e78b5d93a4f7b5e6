"""Programs that are kept running: the crew restarts one that ends."""

import time
from collections.abc import Callable

from deploy.local.program import EXIT_BAD_SETTING, Program, how_it_ended, stop_together
from deploy.local.restarts import Restart


class Crew:
    """The programs, with a restart plan for each.

    Args:
        announce: Takes a line about every end.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._restarts: dict[Program, Restart] = {}

    @property
    def running(self) -> int:
        """Number of programs that run now."""
        return sum(program.running for program in self._restarts)

    @property
    def restarts(self) -> int:
        """Number of unexpected ends, over all programs."""
        return sum(restart.count for restart in self._restarts.values())

    def start(self, program: Program, **this_time: str) -> None:
        """Adds *program* and starts it; *this_time* are variables of its first start."""
        self._restarts[program] = Restart()
        program.start(**this_time)

    def tend(self) -> None:
        """Detects programs that ended, and restarts those that are due.

        Raises:
            ProgramError: a program rejected its settings; a restart would not mend that.
        """
        now_s = time.monotonic()
        for program, restart in self._restarts.items():
            if program.running:
                continue
            if restart.due_s is None:
                self._plan(program, restart, now_s)
            elif restart.take_due(now_s):
                program.start()

    def stop(self) -> list[Program]:
        """Stops all; returns those that had to be killed."""
        return stop_together(self._restarts)

    def kill(self) -> None:
        """Kills all at once."""
        for program in self._restarts:
            program.kill()

    def _plan(self, program: Program, restart: Restart, now_s: float) -> None:
        code = program.returncode
        if code == EXIT_BAD_SETTING:
            program.check(code)
        delay_s = restart.ended(started_s=program.started_s, now_s=now_s)
        self._announce(
            f"{program.name} ended ({how_it_ended(code)}); starting again in {delay_s:.1f} s"
        )
