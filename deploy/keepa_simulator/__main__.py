"""The `keepa-simulator` command."""

import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer
import uvloop

from deploy.keepa_simulator.audit import (
    DatabaseError,
    Key,
    Report,
    calls_of_journal,
    calls_of_simulator,
    compare,
    newest_served,
    stored_deals,
)
from deploy.keepa_simulator.faults import FaultError, parse_fault
from deploy.keepa_simulator.options import DEMO_KEY, Options
from deploy.keepa_simulator.server import serve as serve_until_stopped

_USAGE_ERROR = 2
_SHOWN_MAX = 10
_DEFAULTS = Options()

_Listen = Annotated[
    str, typer.Option(help="Address to serve on, HOST:PORT; port 0 picks a free one.")
]
_ApiKey = Annotated[
    list[str] | None,
    typer.Option(
        help="Key of an account, any text; repeatable. "
        f"[default: the demonstration key {DEMO_KEY}]",
        show_default=False,
    ),
]
_Rate = Annotated[
    int, typer.Option(min=1, help="Tokens per tick; the bucket holds 60 ticks' worth.")
]
_InitialTokens = Annotated[
    int | None, typer.Option(help="Opening balance; may be negative. [default: a full bucket]")
]
_TickSeconds = Annotated[
    float, typer.Option(min=0.01, help="Seconds between ticks; Keepa's are 60.2 s apart.")
]
_DealSpeed = Annotated[
    float, typer.Option(min=0.001, help="Speed-up of deals appearing, changing and vanishing.")
]
_Products = Annotated[
    int, typer.Option(min=10, max=100_000_000, help="Products on each Amazon site.")
]
_Deals = Annotated[
    int,
    typer.Option(min=1, help="Approximate number of current deals; at most half the products."),
]
_Seed = Annotated[
    int, typer.Option(help="Seed of the catalogue; equal seeds give equal products.")
]
_CacheSeconds = Annotated[
    float, typer.Option(min=0, help="Seconds for which a selection's page is cached.")
]
_Latency = Annotated[str, typer.Option(help="Duration of a call in milliseconds: MS or LOW-HIGH.")]
_ChargeAt = Annotated[
    Literal["start", "end"],
    typer.Option(help="When a call is charged; Keepa's own choice is unknown."),
]
_Fault = Annotated[
    list[str] | None,
    typer.Option(
        help="KIND[:NAME=VALUE,...]; repeatable. Kinds: latency (ms, spread), error "
        "(status), throttle, timeout, reset, cut (at), garbage, drip (ms), skew (ms), pad (mb), "
        "unsorted; on the account: foreign (tokens), jump (tokens), plan (rate), reduction "
        "(tokens). All take path, probability, after, for, every (seconds), count, charged. "
        "Example: error:status=503,path=/deal,every=60,for=5"
    ),
]
_Journal = Annotated[
    Path | None, typer.Option(help="Append every call to this file, one JSON object per line.")
]
_State = Annotated[
    Path | None,
    typer.Option(
        help="Keep the accounts in this file: a restart goes on from it, and from the journal."
    ),
]

app = typer.Typer(
    help="A stand-in for api.keepa.com: same replies, same token bucket, no costs.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

PORT_MAX = 65_535


def _show_version(wanted: bool) -> None:
    if wanted:
        print("keepa-simulator", version("keepa-token-broker"))
        raise typer.Exit


_Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
]


@app.callback()
def simulator(_version: _Version = False) -> None:
    """A stand-in for api.keepa.com: same replies, same token bucket, no costs."""


def _address(text: str) -> tuple[str, int]:
    """Reads `host:port`, `[v6]:port` or `:port` (every interface)."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_host = ":" not in host or host == f"[{bare}]"
    if not colon or not is_host or not port.isdecimal() or int(port) > PORT_MAX:
        raise typer.BadParameter(f"{text!r} is not HOST:PORT, such as 127.0.0.1:8901")
    return bare or "0.0.0.0", int(port)  # noqa: S104 - ":port" asks for just that


def _span_ms(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    try:
        return int(low), int(high or low)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither MS nor LOW-HIGH") from None


@app.command()
def serve(  # noqa: PLR0917 - typer passes options by name
    listen: _Listen = "127.0.0.1:8901",
    api_key: _ApiKey = None,
    rate: _Rate = _DEFAULTS.rate,
    initial_tokens: _InitialTokens = None,
    tick_seconds: _TickSeconds = _DEFAULTS.tick_ms / 1000,
    deal_speed: _DealSpeed = _DEFAULTS.deal_speed,
    products: _Products = _DEFAULTS.products,
    deals: _Deals = _DEFAULTS.deals,
    seed: _Seed = _DEFAULTS.seed,
    cache_seconds: _CacheSeconds = _DEFAULTS.cache_ms / 1000,
    latency: _Latency = "0",
    charge_at: _ChargeAt = "start",
    fault: _Fault = None,
    journal: _Journal = None,
    state: _State = None,
) -> None:
    """Serve /token, /deal, /product and more.

    Replies look as api.keepa.com's do, gzip and all.

    Point a client at the printed address instead of https://api.keepa.com and give it the
    key. GET /_simulator/stats and /_simulator/calls?since=SEQ show what happened.
    POST /_simulator/faults with the text of --fault sets a fault; DELETE removes it.
    POST /_simulator/accounts with JSON ({"rate": 60}, {"spend": 50}, {"balance": -10},
    {"token_flow_reduction": 2.5}) changes the account.
    """
    host, port = _address(listen)
    try:
        faults = tuple(parse_fault(text) for text in fault or ())
    except FaultError as exc:
        raise typer.BadParameter(str(exc), param_hint="--fault") from exc
    options = Options(
        api_keys=tuple(api_key or (DEMO_KEY,)),
        rate=rate,
        initial_tokens=initial_tokens,
        tick_ms=round(tick_seconds * 1000),
        deal_speed=deal_speed,
        products=products,
        deals=min(deals, products // 2),
        seed=seed,
        cache_ms=round(cache_seconds * 1000),
        latency_ms=_span_ms(latency),
        charge_at=charge_at,
        faults=faults,
        journal=journal,
        state=state,
    )
    try:
        uvloop.run(serve_until_stopped(options, host, port))
    except OSError as exc:
        print(f"keepa-simulator: can't serve on {listen}: {exc.strerror or exc}", file=sys.stderr)
        raise typer.Exit(_USAGE_ERROR) from None


def _served(simulator_url: str | None, journal: Path | None) -> dict[Key, int]:
    if (simulator_url is None) == (journal is None):
        raise typer.BadParameter("give either --simulator-url or --journal")
    calls = calls_of_journal(journal) if journal else calls_of_simulator(str(simulator_url))
    return newest_served(calls)


def _print_report(report: Report) -> None:
    print(f"{report.served} deals served, {report.stored} stored")
    for name in ("missing", "stale", "unserved"):
        deals = getattr(report, name)
        shown = [
            f"{domain}/{asin}/{price_type}" for domain, asin, price_type in deals[:_SHOWN_MAX]
        ]
        more = ["…"] if len(deals) > _SHOWN_MAX else []
        print(f"{name}: {len(deals)} {', '.join(shown + more)}".rstrip())


@app.command()
def audit(
    database_url: Annotated[
        str, typer.Option(envvar="DATABASE_URL", help="URL of the Postgres with the table deals.")
    ],
    simulator_url: Annotated[
        str | None, typer.Option(help="Address of the running simulator.")
    ] = None,
    journal: Annotated[Path | None, typer.Option(help="File written by serve --journal.")] = None,
    output: Annotated[
        Literal["text", "json"], typer.Option("--output", "-o", help="Output format.")
    ] = "text",
) -> None:
    """List served deals that the database lacks.

    Exits 1 if there are any.

    "stale" deals are stored in an older state than the newest one served. "unserved" deals
    are stored, but this simulator never served them.
    """
    try:
        report = compare(_served(simulator_url, journal), stored_deals(database_url))
    except (OSError, ValueError, DatabaseError) as exc:
        print(f"keepa-simulator: can't compare: {exc}", file=sys.stderr)
        raise typer.Exit(_USAGE_ERROR) from None
    if output == "json":
        print(json.dumps({**asdict(report), "is_complete": report.is_complete}))
    else:
        _print_report(report)
    raise typer.Exit(0 if report.is_complete else 1)


def main() -> None:
    """Entry point of the `keepa-simulator` command."""
    app()


if __name__ == "__main__":
    main()
