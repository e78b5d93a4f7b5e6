"""Runs a module like `python -m`, and writes where its main thread spends its time.

    python -m tests.bench.sampled FILE MODULE [ARGUMENT ...]

A thread samples the main thread's stack, which costs little and needs no library. The file
holds collapsed stacks (`outer;inner count`), as flame graph programs take them.
"""

import runpy
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Final

EVERY_S: Final = 0.002
# Frames of the loop and of the start are the same in every sample.
DEEPEST: Final = 60
# Else the sampler would wait for the main thread to sleep, and see mostly that.
SWITCH_S: Final = 0.0002


def stack(frame: FrameType | None) -> str:
    """The functions of a stack, the outermost first."""
    names: list[str] = []
    while frame is not None and len(names) < DEEPEST:
        code = frame.f_code
        module = str(frame.f_globals.get("__name__", "?"))
        names.append(f"{module}.{code.co_name}")
        frame = frame.f_back
    return ";".join(reversed(names))


def sample(counts: Counter[str], main: int, stop: threading.Event) -> None:
    """Counts the main thread's stacks until *stop*."""
    while not stop.wait(EVERY_S):
        counts[stack(sys._current_frames().get(main))] += 1


def main() -> None:
    """Runs the module with its arguments; writes the file when it ends."""
    file, module, *arguments = sys.argv[1:]
    counts: Counter[str] = Counter()
    stop = threading.Event()
    identity = threading.get_ident()
    sampler = threading.Thread(target=sample, args=(counts, identity, stop), daemon=True)
    sys.argv = [module, *arguments]
    sys.setswitchinterval(SWITCH_S)
    sampler.start()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        stop.set()
        sampler.join()
        lines = [f"{stack} {count}" for stack, count in counts.most_common()]
        Path(file).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
