"""The `keepa-gateway` command."""

from typing import Annotated

import typer

from fetcher.gateway.settings import GatewaySettings, McpSettings
from fetcher.settings import FetcherSecrets
from protos.channel.credential_files import CredentialError
from protos.process.addresses import ListenError
from protos.process.command import EXIT_FAILED, EXIT_USAGE, run_command
from protos.process.environment import SettingsError
from protos.process.extras import OWN_MODULES
from protos.process.loading import loading
from protos.process.settings import Secrets, TracingSettings
from protos.process.version import Version

app = typer.Typer(
    name="keepa-gateway",
    help="Keepa's API for any client: every call leases its tokens from the token broker.",
    no_args_is_help=True,
    rich_markup_mode=None,
    # Its tracebacks show local variables, and the key may be among them.
    pretty_exceptions_enable=False,
)


@app.callback()
def gateway(_version: Version = False) -> None:
    """Keepa's API for any client: every call leases its tokens from the token broker."""


@app.command()
def serve() -> None:
    """Serve Keepa's API until stopped.

    Settings come from the environment, then from .env.

    Example: KEEPA_API_KEY_FILE=key BROKER_ADDRESS=broker.example:50051 keepa-gateway serve
    """
    with loading(without=("rich",)):
        from fetcher.gateway import server
        from protos.process import logs, tracing

    settings = GatewaySettings.load()
    logs.configure(settings.log_level, settings.log_format, secrets=Secrets.known())
    with tracing.exporting("keepagateway", TracingSettings.load().protocol):
        server.run(settings)


@app.command()
def mcp(
    http: Annotated[
        bool, typer.Option("--http", help="Serve streamable HTTP on MCP_LISTEN, not stdio.")
    ] = False,
) -> None:
    """Offer tools to a language model (MCP), over a running gateway.

    Each tool that costs more than MCP_SPEND_LIMIT_TOKENS names its cost before it spends.

    Example: MCP_TOKEN_FILE=token keepa-gateway mcp
    """
    try:
        from fetcher.gateway import mcp_server
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] in OWN_MODULES:
            raise
        raise SettingsError(
            [f"the library {exc.name} is not installed: pip install 'keepa-token-broker[mcp]'"]
        ) from None
    from protos.process import logs

    settings = McpSettings.load()
    logs.configure(settings.log_level, settings.log_format, secrets=FetcherSecrets.known())
    mcp_server.run(settings, over_http=http)


def main() -> None:
    """Runs the command; exits with 2 for a wrong setting, with 1 for any other failure."""
    run_command(
        "keepa-gateway",
        app,
        exit_codes={
            SettingsError: EXIT_USAGE,
            CredentialError: EXIT_USAGE,
            ListenError: EXIT_FAILED,
        },
        secrets=Secrets.known,
    )


if __name__ == "__main__":
    main()
