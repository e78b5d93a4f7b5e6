"""Runs a broker in which the module of the HTTP port loads only once a file exists.

    python -m tests.broker.held_pages FILE serve

Slow modules, as on a busy machine, but for as long as a test needs. Prints which modules the
broker has loaded by then. What stands in the file is the reason why the module can't load.
"""

import json
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final

from protos.process.addresses import ListenError

HELD: Final = "broker.http_port"
POLL_S: Final = 0.02


class Gatekeeper:
    """Finds no module, but lets `HELD` be looked for elsewhere only once *released* exists."""

    def __init__(self, released: Path) -> None:
        self._released = released

    def find_spec(self, name: str, _path: object, _target: object = None) -> ModuleSpec | None:
        """As the import system asks; see `importlib.abc.MetaPathFinder`."""
        if name == HELD:
            sys.stdout.write(json.dumps({"event": "held", "modules": [*sys.modules]}) + "\n")
            sys.stdout.flush()
            while not self._released.exists():
                time.sleep(POLL_S)
            if reason := self._released.read_text():
                raise ListenError(reason)
        return None


if __name__ == "__main__":
    sys.meta_path.insert(0, Gatekeeper(Path(sys.argv.pop(1))))
    from broker.__main__ import main

    main()
