"""The option `--version`, the same for every command of the package."""

import sys
from typing import Annotated

import typer

from protos.process.extras import PACKAGE


def package_version() -> str:
    """Returns the installed version."""
    # A third of the time that a command's help takes; only this option needs it.
    from importlib.metadata import version  # noqa: PLC0415 - see above

    return version(PACKAGE)


def _show(context: typer.Context, wanted: bool) -> None:  # noqa: FBT001 - typer passes it so
    if wanted:
        sys.stdout.write(f"{context.info_name} {package_version()}\n")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_show, is_eager=True, help="Show the version and exit."),
]
