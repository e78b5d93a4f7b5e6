"""Starting a command of the package; names the extra to install if a library is missing.

Needs the standard library only: `pip install keepa-token-broker` installs the commands
without their libraries.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Final

from protos.process.command import EXIT_FAILED
from protos.process.loading import loading

PACKAGE: Final = "keepa-token-broker"
OWN_MODULES: Final = frozenset({"broker", "fetcher", "protos", "deploy"})


def run(module: str, extra: str) -> None:
    """Calls `main()` of *module*; exits with its result.

    Args:
        module: The command's module.
        extra: The extra of the package that holds the command's libraries.
    """
    try:
        with loading():
            command = import_module(module)
        code = command.main()
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if not missing or missing in OWN_MODULES:
            raise
        name = Path(sys.argv[0]).name
        remedy = f"pip install '{PACKAGE}[{extra}]'"
        sys.stderr.write(f"{name}: the library {missing} is not installed: {remedy}\n")
        code = EXIT_FAILED
    raise SystemExit(code)
