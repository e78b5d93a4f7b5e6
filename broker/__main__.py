"""The `tokenbroker` command.

Each command imports what it alone needs: most of them end sooner than pydantic or the server
would load. tests/test_starts.py holds what each of them loads.
"""

from enum import StrEnum
from typing import Annotated

import typer

from broker.commands.connection import CommandError, Target
from broker.commands.spans import parse_span
from protos.channel.credential_files import CredentialError
from protos.postgres.errors import DatabaseError
from protos.process.addresses import ListenError
from protos.process.command import EXIT_FAILED, EXIT_USAGE, run_command
from protos.process.environment import SettingsError, broker_access
from protos.process.loading import loading
from protos.process.version import Version


class Format(StrEnum):
    """Output formats of the commands."""

    TABLE = "table"
    JSON = "json"


Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="Broker address (default: BROKER_ADDRESS).", metavar="HOST:PORT"
    ),
]
Output = Annotated[Format, typer.Option("--output", "-o", help="Output format.")]

app = typer.Typer(
    name="tokenbroker",
    help="One authoritative token count for every worker that shares a Keepa account.",
    no_args_is_help=True,
    rich_markup_mode=None,
    # Typer's tracebacks show local variables, and the key may be among them.
    pretty_exceptions_enable=False,
)


@app.callback()
def tokenbroker(_version: Version = False) -> None:
    """One authoritative token count for every worker that shares a Keepa account."""


@app.command()
def serve() -> None:
    """Run the broker.

    Settings come from the environment, then from .env.

    Example: KEEPA_API_KEY_FILE=/run/secrets/keepa tokenbroker serve
    """
    with loading(without=("rich",)):
        from broker import server
        from broker.access.budgets_file import BudgetsFileError
        from broker.rpc.tracing import SERVICE
        from broker.settings import BrokerSecrets, ServeSettings
        from protos.process import logs, tracing
        from protos.process.settings import TracingSettings

        # A setting of a database loads its driver.
        settings, protocol = ServeSettings.load(), TracingSettings.load().protocol
    logs.configure(
        settings.log_level,
        settings.log_format,
        secrets=BrokerSecrets.known(),
    )
    try:
        with tracing.exporting(SERVICE, protocol):
            server.run(settings, traced=protocol is not None)
    except BudgetsFileError as exc:
        raise SettingsError([str(exc)]) from None


@app.command()
def status(address: Address = None, output: Output = Format.TABLE) -> None:
    """Show the bucket: balance, next refill, leases, drift.

    Example: tokenbroker status -o json | jq .available
    """
    from broker.commands import inspect

    inspect.status(_target(address), as_json=output is Format.JSON)


@app.command()
def watch(address: Address = None, output: Output = Format.TABLE) -> None:
    """Show the bucket, open leases and waiting requests, live.

    Press Ctrl-C to stop. Without a terminal, prints one line per change, or JSON lines.

    Example: tokenbroker watch --address broker.example:50051
    """
    from broker.commands import watch as watching

    watching.watch(_target(address), as_json=output is Format.JSON)


@app.command()
def leases(address: Address = None, output: Output = Format.TABLE) -> None:
    """List open leases, and waiting requests with their ETA.

    Example: tokenbroker leases -o json | jq '.waiting[] | [.holder, .eta]'
    """
    from broker.commands import inspect

    inspect.leases(_target(address), as_json=output is Format.JSON)


@app.command()
def sync(address: Address = None, output: Output = Format.TABLE) -> None:
    """Read Keepa's token count now.

    The broker sends the request, which costs no tokens.

    Example: tokenbroker sync && tokenbroker status
    """
    from broker.commands import inspect

    inspect.sync(_target(address), as_json=output is Format.JSON)


@app.command()
def pause(address: Address = None, output: Output = Format.TABLE) -> None:
    """Stop granting leases.

    Open leases continue, new requests wait.

    Example: tokenbroker pause; use the key elsewhere; tokenbroker resume
    """
    from broker.commands import inspect

    inspect.pause(_target(address), as_json=output is Format.JSON)


@app.command()
def resume(address: Address = None, output: Output = Format.TABLE) -> None:
    """Resume granting leases.

    Example: tokenbroker resume
    """
    from broker.commands import inspect

    inspect.resume(_target(address), as_json=output is Format.JSON)


class By(StrEnum):
    """What `tokenbroker spend` sums up by."""

    HOLDER = "holder"
    IDENTITY = "identity"
    OPERATION = "operation"
    HOUR = "hour"
    DAY = "day"


@app.command()
def spend(
    by: Annotated[By, typer.Option(help="What each row sums up.")] = By.HOLDER,
    since: Annotated[
        str, typer.Option(help="How far back: 90m, 24h or 7d.", metavar="DURATION")
    ] = "24h",
    address: Address = None,
    output: Output = Format.TABLE,
) -> None:
    """Show the tokens spent, from the broker's journal.

    Counts whole quarters of an hour; hours and days are UTC.

    Example: tokenbroker spend --by operation --since 7d -o json | jq .total_tokens
    """
    from broker.commands import accounting

    back = parse_span("--since", since)
    accounting.spend(_target(address), by.value, back, as_json=output is Format.JSON)


@app.command()
def explain(
    name: Annotated[str, typer.Argument(metavar="LEASE_ID|HOLDER")],
    address: Address = None,
    output: Output = Format.TABLE,
) -> None:
    """Show the story of a lease, or the latest records of a holder.

    Reads the broker's journal: the request, the reason for the wait, the grant, the cost of
    the call, and the count in Keepa's reply.

    Example: tokenbroker explain fetcher-1/7f3a
    """
    from broker.commands import accounting

    accounting.explain(_target(address), name, as_json=output is Format.JSON)


@app.command()
def audit(
    since: Annotated[
        str | None,
        typer.Option(help="How far back: 90m, 24h or 7d (default: all).", metavar="DURATION"),
    ] = None,
    tolerance: Annotated[
        int, typer.Option(help="Tokens that may be unexplained.", min=0, metavar="TOKENS")
    ] = 0,
    account: Annotated[
        str | None,
        typer.Option(help="Key fingerprint, if the journal has several.", metavar="FINGERPRINT"),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Replay the journal and name the tokens it does not explain.

    Compares the journal with Keepa's own counts. Reads BROKER_DATABASE_URL directly, not
    through the broker. Exits 1 if more tokens than tolerated are unexplained.

    Example: tokenbroker audit --since 24h -o json | jq .unexplained_tokens
    """
    from broker.commands import audit as auditing
    from broker.settings import JournalSettings

    back = None if since is None else parse_span("--since", since)
    database_url = JournalSettings.load().require_database_url()
    as_json = output is Format.JSON
    if not auditing.run(database_url, account, back, tolerance, as_json=as_json):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def migrate() -> None:
    """Create or update the journal's tables.

    `tokenbroker serve` does the same at its start. Use this command if the database role of
    the broker may not create tables.

    Example: BROKER_DATABASE_URL_FILE=/run/secrets/owner tokenbroker migrate
    """
    from broker.journal import schema
    from broker.settings import JournalSettings

    settings = JournalSettings.load()
    names = schema.migrate(settings.require_database_url(), settings.broker_journal_months)
    for name in names:
        print(f"applied {name}")
    if not names:
        print("The journal's tables are up to date.")


def _target(option: str | None) -> Target:
    address, access = broker_access()
    return Target(option or address, access)


def _secrets() -> list[str]:
    from broker.settings import BrokerSecrets

    return BrokerSecrets.known()


def main() -> None:
    """Runs the command; exits with 2 for a wrong setting, with 1 for any other failure."""
    run_command(
        "tokenbroker",
        app,
        exit_codes={
            SettingsError: EXIT_USAGE,
            CredentialError: EXIT_USAGE,
            ListenError: EXIT_FAILED,
            CommandError: EXIT_FAILED,
            DatabaseError: EXIT_FAILED,
        },
        secrets=_secrets,
    )


if __name__ == "__main__":
    main()
