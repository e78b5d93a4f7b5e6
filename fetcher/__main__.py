"""The `dealfetcher` command."""

from datetime import timedelta
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from fetcher.broker_client import BrokerClientError
from fetcher.commands.output import Format, Output
from fetcher.deals.formats import ExportFormat
from fetcher.errors import DatabaseError, FetcherError
from fetcher.settings import FetcherSecrets, Settings
from protos.process.command import EXIT_FAILED, EXIT_USAGE, run_command
from protos.process.environment import SettingsError
from protos.process.loading import loading
from protos.process.version import Version

app = typer.Typer(
    name="dealfetcher",
    help="Collect Keepa deals into Postgres, with every token leased from the token broker.",
    no_args_is_help=True,
    rich_markup_mode=None,
    # Its tracebacks show local variables, and the key may be among them.
    pretty_exceptions_enable=False,
)
deals_app = typer.Typer(no_args_is_help=False, rich_markup_mode=None)
queries_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Check the query files."
)
pages_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List or requeue pages that failed too often.",
)
history_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Fill the price history."
)
app.add_typer(history_app, name="history")
app.add_typer(deals_app, name="deals")
app.add_typer(queries_app, name="queries")
app.add_typer(pages_app, name="pages")
alerts_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List, retry or test the delivery of alerts.",
)
app.add_typer(alerts_app, name="alerts")

Query = Annotated[
    str | None, typer.Option("--query", "-q", metavar="NAME", help="Only this query.")
]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="Maximum number of rows.")]


@app.callback()
def dealfetcher(_version: Version = False) -> None:
    """Collect Keepa deals into Postgres, with every token leased from the token broker."""


@app.command()
def migrate(
    roles: Annotated[
        bool,
        typer.Option("--roles", help="Create the roles of DATABASE_…_URL_FILE; grant rights."),
    ] = False,
) -> None:
    """Create or update the database tables.

    Safe to repeat, also from several places at once. With --roles, fetchers, readers and
    the broker get roles of their own with the least rights.

    Example: DATABASE_URL=postgresql://localhost/deals dealfetcher migrate
    """
    from fetcher.commands.run import migrate_database

    applied, done = migrate_database(Settings.load(), roles=roles)
    print(f"applied: {', '.join(applied)}" if applied else "nothing to do")
    for line in done:
        print(line)


@app.command()
def run(
    run_seconds: Annotated[
        float | None,
        typer.Option("--run-seconds", min=0, metavar="SECONDS", help="Stop after this time."),
    ] = None,
) -> None:
    """Collect deals until stopped.

    Ctrl-C or SIGTERM stops it. Run as many of these as you like.

    Example: KEEPA_API_KEY_FILE=/run/secrets/keepa dealfetcher run
    """
    with loading(without=("rich",)):
        from fetcher.commands.run import run_fetcher

    run_fetcher(Settings.load(), seconds=run_seconds)


@app.command()
def metrics() -> None:
    """Serve the collection's metrics to Prometheus.

    One such process is enough for all fetchers.

    Example: DATABASE_URL=postgresql://localhost/deals dealfetcher metrics
    """
    with loading(without=("rich",)):
        from fetcher.commands.metrics import serve_metrics

    serve_metrics(Settings.load())


@app.command("console")
def console_() -> None:
    """Serve pages of deals for a browser.

    Without CONSOLE_IDENTITIES_FILE it serves this machine only, and needs no sign-in.

    Example: DATABASE_URL=postgresql://localhost/deals dealfetcher console
    """
    with loading(without=("rich",)):
        from fetcher.commands.console import serve_console

    serve_console(Settings.load())


@app.command()
def alert() -> None:
    """Deliver alerts until stopped.

    Ctrl-C or SIGTERM stops it. Run as many of these as you like.

    Example: ALERTS_FILE=alerts.toml dealfetcher alert
    """
    with loading(without=("rich",)):
        from fetcher.commands.alerts import deliver_alerts

    deliver_alerts(Settings.load())


Channel = Annotated[
    str | None, typer.Option("--channel", "-c", metavar="NAME", help="Only this channel.")
]


@alerts_app.command("list")
def list_alerts(
    channel: Channel = None,
    state: Annotated[
        str | None,
        typer.Option(
            "--state", "-s", metavar="STATE", help="Only waiting, claimed, delivered or dead."
        ),
    ] = None,
    limit: Limit = 20,
    output: Output = Format.TABLE,
) -> None:
    """List the newest messages, with their last error.

    Example: dealfetcher alerts list --state dead
    """
    from fetcher.commands.alerts import show_messages

    url = Settings.load().require_database_url()
    show_messages(url, channel=channel, state=state, limit=limit, output=output)


@alerts_app.command()
def retry(
    message: Annotated[
        int | None, typer.Argument(help="Number of a message (default: all that failed).")
    ] = None,
    channel: Channel = None,
    output: Output = Format.TABLE,
) -> None:
    """Deliver failed messages again, those that were set aside too.

    Example: dealfetcher alerts retry --channel team
    """
    from fetcher.commands.alerts import retry_failed

    url = Settings.load().require_database_url()
    retry_failed(url, channel=channel, message=message, output=output)


@alerts_app.command()
def test(channel: str) -> None:
    """Send a test message to a channel now; exits 1 if it is not accepted.

    Example: dealfetcher alerts test team
    """
    from fetcher.commands.alerts import test_channel

    test_channel(Settings.load().require_alerts_file(), channel)


@alerts_app.command("alive")
def alerts_alive() -> None:
    """Check that a process of this host delivers alerts.

    Exits 0 if one of this machine or container has reported lately, else 1.

    Example: docker compose exec alert dealfetcher alerts alive
    """
    from fetcher.commands.alive import why_no_sender

    if (reason := why_no_sender(Settings.load())) is not None:
        raise FetcherError(reason)


@app.command()
def alive() -> None:
    """Check that a fetcher of this host is at work.

    Exits 0 if one of this machine or container has reported lately, else 1.

    Example: docker compose exec fetcher dealfetcher alive
    """
    from fetcher.commands.alive import why_not_alive

    if (reason := why_not_alive(Settings.load())) is not None:
        raise FetcherError(reason)


@app.command()
def ready() -> None:
    """Check that the fetcher of this host has begun to work.

    Exits 0 once it has read its settings and seen the tables, and the broker serves it.
    For startup probes: `alive` checks a fetcher that runs.

    Example: kubectl exec deployment/fetcher -- dealfetcher ready
    """
    from fetcher.commands.ready import why_not_ready

    if (reason := why_not_ready(Settings.load())) is not None:
        raise FetcherError(reason)


@app.command()
def scans(
    query: Query = None,
    limit: Limit = 20,
    wide: Annotated[bool, typer.Option("--wide", "-w", help="All columns.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """List the newest scans: what they read, why they ended.

    Example: dealfetcher scans -q books -o json | jq '.[0].end_reason'
    """
    from fetcher.commands.look import show_scans

    url = Settings.load().require_database_url()
    show_scans(url, query=query, limit=limit, wide=wide, output=output)


@deals_app.callback(invoke_without_command=True)
def deals(
    context: typer.Context,
    query: Query = None,
    state: Annotated[
        str | None,
        typer.Option(
            "--state", "-s", metavar="STATE", help="Only accepted, rejected or pending deals."
        ),
    ] = None,
    limit: Limit = 20,
    output: Output = Format.TABLE,
    *,
    export: Annotated[
        ExportFormat | None,
        typer.Option("--format", "-f", help="Write all deals as this, instead of a table."),
    ] = None,
    to: Annotated[
        str, typer.Option("--to", metavar="FILE", help="File to write, or - for stdout.")
    ] = "-",
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            "-w",
            metavar="NAME=VALUE",
            help="Filter of the export, as in the console's addresses; repeatable.",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="WHEN",
            help="Export changes only: since 24h, since 2026-11-25T12:00Z, or from a cursor on.",
        ),
    ] = None,
    cursor: Annotated[
        Path | None,
        typer.Option("--cursor", metavar="FILE", help="Export what is new since FILE's place."),
    ] = None,
    sort: Annotated[
        str | None, typer.Option("--sort", metavar="ORDER", help="Order of the export.")
    ] = None,
) -> None:
    """List the newest deals, or export all with --format.

    Example: dealfetcher deals --query books --state accepted
    """
    if context.invoked_subcommand is not None:
        return
    if export is not None:
        from fetcher.commands.export import export_deals

        named = {"query": query, "state": state}
        pairs = [f"{name}={value}" for name, value in named.items() if value is not None]
        export_deals(
            Settings.load().require_database_url(),
            kind=export,
            to=to,
            where=[*pairs, *(where or ())],
            since=since,
            cursor_file=cursor,
            sort=sort,
        )
        return
    from fetcher.commands.look import show_deals

    url = Settings.load().require_database_url()
    show_deals(url, query=query, state=state, limit=limit, output=output)


@app.command()
def rejections(
    query: Query = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="DURATION", help="Only the last 30m, 24h, 7d, …"),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Count rejected deals by rule.

    Example: dealfetcher rejections --since 24h
    """
    from fetcher.commands.look import show_rejections

    url = Settings.load().require_database_url()
    show_rejections(url, query=query, since=_duration(since), output=output)


@deals_app.command()
def explain(asin: str, output: Output = Format.TABLE) -> None:
    """Show everything about one product: prices, changes, verdicts.

    Example: dealfetcher deals explain B0D8W1YVBX
    """
    from fetcher.commands.explain import explain_deal

    url = Settings.load().require_database_url()
    raise SystemExit(explain_deal(url, asin, output=output))


@queries_app.command()
def check(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder to check (default: QUERIES).")
    ] = None,
    forecast: Annotated[
        bool,
        typer.Option("--forecast", help="Estimate tokens an hour and a day instead."),
    ] = False,
    refill_rate: Annotated[
        float | None,
        typer.Option(
            "--refill-rate",
            min=0,
            metavar="TOKENS",
            help="Tokens a minute of the plan (default: the broker is asked).",
        ),
    ] = None,
    deals_per_hour: Annotated[
        float,
        typer.Option(
            "--deals-per-hour",
            min=0,
            metavar="COUNT",
            help="New deals that each query is assumed to yield in an hour.",
        ),
    ] = 10.0,
    output: Output = Format.TABLE,
) -> None:
    """Explain each query file, its cost and its mistakes.

    Spends no tokens. With ALERTS_FILE set, the file must have every channel that alerts name.
    With --forecast, estimates what all queries cost, and whether the plan's refill covers it.
    The broker's refill rate and learned costs are used if it can be reached.

    Example: dealfetcher queries check deploy/queries --forecast --refill-rate 20
    """
    from fetcher.commands import queries

    if not forecast:
        if refill_rate is not None:
            raise typer.BadParameter("--refill-rate goes with --forecast: add it")
        settings = Settings.load()
        raise SystemExit(
            queries.check_queries(
                folder or settings.queries, channels=settings.alerts_file, output=output
            )
        )
    if not isfinite(refill_rate or 0) or not isfinite(deals_per_hour):
        raise typer.BadParameter("--refill-rate and --deals-per-hour: write a number")
    settings = Settings.load()
    raise SystemExit(
        queries.forecast_queries(
            settings,
            folder or settings.queries,
            refill_rate=refill_rate,
            deals_per_hour=deals_per_hour,
            output=output,
        )
    )


@pages_app.command()
def dead(limit: Limit = 50, output: Output = Format.TABLE) -> None:
    """List the pages that were put aside, with their errors.

    Example: dealfetcher pages dead
    """
    from fetcher.commands.pages import show_dead

    show_dead(Settings.load().require_database_url(), limit=limit, output=output)


@pages_app.command()
def requeue(
    scan: Annotated[
        int | None, typer.Option("--scan", metavar="ID", help="Only the pages of this scan.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Queue dead pages and products again.

    With --scan, only the pages of that scan.

    Example: dealfetcher pages requeue --scan 42
    """
    from fetcher.commands.pages import requeue_dead

    requeue_dead(Settings.load().require_database_url(), scan_id=scan, output=output)


@history_app.command("import")
def import_(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Saved replies of /product (default: the products stored here)."),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Import the price histories of products that have been paid for.

    Spends no tokens; safe to repeat. Exits 1 if a file can't be used.

    Example: dealfetcher history import product-*.json.gz
    """
    from fetcher.commands.history import import_history

    url = Settings.load().require_database_url()
    raise SystemExit(import_history(url, files or [], output=output))


@app.command("verify-sort")
def verify_sort(
    query: Annotated[
        str | None,
        typer.Option(
            "--query", "-q", metavar="NAME", help="Query to measure with (default: the first)."
        ),
    ] = None,
    pages: Annotated[
        int, typer.Option("--pages", min=1, max=5, metavar="COUNT", help="Pages per sort type.")
    ] = 1,
    direct: Annotated[
        bool,
        typer.Option("--direct", help="Call Keepa without a lease; may take tokens of others."),
    ] = False,
    from_file: Annotated[
        list[Path] | None,
        typer.Option(
            "--from-file",
            metavar="FILE",
            help="Saved replies instead of calls; repeat it per page.",
        ),
    ] = None,
    sort: Annotated[
        int | None, typer.Option("--sort", metavar="TYPE", help="Sort type of the saved replies.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Measure what order Keepa's sort types really give.

    Costs 5 tokens per page and sort type. Exits 1 if one does not order as documented.

    Example: dealfetcher verify-sort --pages 2
    """
    from fetcher.commands import verify_sort as verifying

    settings = Settings.load()
    if from_file:
        code = verifying.verify_files(
            from_file, query=query, sort_type=sort, queries=settings.queries, output=output
        )
    else:
        code = verifying.verify_live(
            settings, query=query, pages=pages, direct=direct, output=output
        )
    raise SystemExit(code)


@app.command()
def doctor(output: Output = Format.TABLE) -> None:
    """Check everything; name each fault and its remedy.

    Exits 1 if anything failed.

    Example: dealfetcher doctor -o json | jq '.[] | select(.state != "ok")'
    """
    from fetcher.commands.doctor import run_doctor

    raise SystemExit(run_doctor(Settings.load(), output=output))


@app.command()
def prune(
    days: Annotated[
        int | None,
        typer.Option(
            "--days", min=1, metavar="DAYS", help="Age in days (default: RETENTION_DAYS)."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Delete even while nothing is collected.")
    ] = False,
    every: Annotated[
        str | None,
        typer.Option("--every", metavar="DURATION", help="Repeat every 24h, 7d, … until stopped."),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Delete what is older than the retention.

    Refuses while nothing has been collected for a day, unless forced.

    Example: dealfetcher prune --days 30
    """
    from fetcher.commands import prune as pruning

    settings, period = Settings.load(), _duration(every)
    url = settings.require_database_url()
    prune_once = partial(
        pruning.prune_database,
        url,
        days=days or settings.retention_days,
        history_days=settings.history_days,
        alert_days=settings.alerts_retention_days,
        force=force,
        output=output,
    )
    raise SystemExit(prune_once() if period is None else pruning.repeat(prune_once, every=period))


def _duration(text: str | None) -> timedelta | None:
    if text is None:
        return None
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    number, unit = text[:-1], text[-1:]
    if not number.isdecimal() or unit not in units:
        raise typer.BadParameter(f"{text!r}: write a duration such as 30m, 24h or 7d")
    return timedelta(**{units[unit]: int(number)})


def main() -> None:
    """Runs the command; exits with 2 for a wrong setting, with 1 for any other failure."""
    run_command(
        "dealfetcher",
        app,
        exit_codes={
            SettingsError: EXIT_USAGE,
            FetcherError: EXIT_FAILED,
            DatabaseError: EXIT_FAILED,
            BrokerClientError: EXIT_FAILED,
        },
        secrets=FetcherSecrets.known,
    )


if __name__ == "__main__":
    main()
