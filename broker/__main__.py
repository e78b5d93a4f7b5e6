"""The `tokenbroker` command."""

import sys
from typing import Final

import typer

from broker.settings import ServeSettings, SettingsError, load

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

app = typer.Typer(
    name="tokenbroker",
    help="One authoritative token count for every worker that shares a Keepa account.",
    no_args_is_help=True,
    add_completion=False,
    # Its tracebacks show local variables, and the key may be among them.
    pretty_exceptions_enable=False,
)


@app.callback()
def tokenbroker() -> None:
    """One authoritative token count for every worker that shares a Keepa account."""


@app.command()
def serve() -> None:
    """Run the broker; settings come from the environment and .env."""
    # The other commands shouldn't wait for the server's imports.
    from broker import logs, server  # noqa: PLC0415
    from broker.listen import ListenError  # noqa: PLC0415

    settings = load(ServeSettings)
    key = settings.keepa_api_key.get_secret_value()
    logs.configure(settings.log_level, settings.log_format, secrets=[key])
    try:
        server.run(settings)
    except ListenError as exc:
        _fail(exc, EXIT_FAILED)


def _fail(exc: Exception, code: int) -> None:
    print(f"tokenbroker: {exc}", file=sys.stderr)
    raise SystemExit(code)


def main() -> None:
    """Run the command; a wrong setting exits 2, any other failure 1."""
    try:
        app()
    except SettingsError as exc:
        _fail(exc, EXIT_USAGE)


if __name__ == "__main__":
    main()
