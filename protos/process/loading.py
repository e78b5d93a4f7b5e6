"""Loading many modules at once, at the start of a program."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def loading(*, without: tuple[str, ...] = ()) -> Iterator[None]:
    """Makes the imports of a block cheaper.

    The collector rests: modules are not garbage, and to look at them again and again takes a
    tenth of the time of loading them.

    Args:
        without: Optional libraries that no module finds while the block runs, unless they are
            loaded already. structlog loads rich and Pygments wherever they are installed, for
            tracebacks in colour, which no server writes. Source: Python reference, "The
            module cache": None in a module's place makes its import fail.
    """
    loaded: dict[str, Any] = sys.modules
    hidden = [name for name in without if name not in loaded]
    loaded.update(dict.fromkeys(hidden))
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
        for name in hidden:
            del loaded[name]
