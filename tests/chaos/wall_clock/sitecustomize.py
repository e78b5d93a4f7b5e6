"""Sets the wall clock of a Python process apart from the machine's.

Python imports this module at its start if the folder is in PYTHONPATH. What `time.time` and
`time.time_ns` return is then ahead by the offset in the file CHAOS_CLOCK; see `WallClock`.
"""

import mmap
import os
import struct
import sys
import time
from pathlib import Path

LAYOUT = struct.Struct("qq")


def _shift() -> None:
    with Path(os.environ["CHAOS_CLOCK"]).open("r+b") as file:
        shared = mmap.mmap(file.fileno(), LAYOUT.size)
    real_ns = time.time_ns

    def time_ns(depth: int = 1) -> int:
        # gRPC hands absolute deadlines to its core, which has the machine's clock.
        if sys._getframe(depth).f_globals["__name__"].startswith("grpc"):
            return real_ns()
        offset_ms, shown = LAYOUT.unpack_from(shared)
        if offset_ms:
            LAYOUT.pack_into(shared, 0, offset_ms, shown + 1)
        return real_ns() + int(offset_ms) * 1_000_000

    time.time_ns = time_ns
    time.time = lambda: time_ns(2) / 1e9


if "CHAOS_CLOCK" in os.environ:
    _shift()
