"""Steps the wall clock of the programs under test, and of no others."""

import struct
from pathlib import Path
from typing import Final

HOUR_MS: Final = 3_600_000
LAYOUT: Final = struct.Struct("qq")


class WallClock:
    """The offset of the programs' wall clock, in a file that they share; see sitecustomize.py.

    It moves what Python's `time` shows: the sources of epochs and of a page's time without
    a reply. Clocks that only move forward stay, as when a real clock is set.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.step(0)

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment."""
        return {"pythonpath": str(Path(__file__).parent), "chaos_clock": str(self._path)}

    def step(self, offset_ms: int) -> None:
        """Sets all clocks to the machine's, and *offset_ms* ahead."""
        if not self._path.exists():
            self._path.write_bytes(LAYOUT.pack(0, 0))
        with self._path.open("r+b") as file:
            file.write(LAYOUT.pack(offset_ms, 0))

    @property
    def shown(self) -> int:
        """How often a program has read the clock since the last step."""
        return int(LAYOUT.unpack(self._path.read_bytes())[1])
