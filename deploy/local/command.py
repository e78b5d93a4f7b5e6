"""Runs the whole stack on this machine: `make run`."""

import argparse
import sys
from importlib.metadata import version

from deploy.local.data_dir import DataDir
from deploy.local.errors import StackError
from deploy.local.screen import Screen
from deploy.local.settings import StackSettings
from deploy.local.stack import Stack
from deploy.local.tether import tether_to_make
from protos.process.addresses import Listen, ListenError
from protos.process.environment import SettingsError
from protos.process.extras import PACKAGE
from protos.process.visible_text import visible


def main() -> int:
    """Runs the stack; returns 0, 1 if it failed, 2 if a setting is wrong."""
    _parse_arguments()
    tether_to_make()
    try:
        settings = StackSettings.load()
        settings.rpc.check_free("BROKER_LISTEN")
        settings.http.check_free("BROKER_HTTP_LISTEN")
        Listen.parse(settings.gateway_listen).check_free("GATEWAY_LISTEN")
        Listen.parse(settings.gateway_http_listen).check_free("GATEWAY_HTTP_LISTEN")
        Listen.parse(settings.console_listen).check_free("CONSOLE_LISTEN")
        with DataDir(settings.data_dir) as data_dir:
            Stack(settings, data_dir, Screen()).run()
    except SettingsError as exc:
        return _fail(exc, 2)
    except StackError as exc:
        return _fail(exc, exc.exit_code)
    except ListenError as exc:
        return _fail(exc, 1)
    return 0


def _parse_arguments() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local",
        description="Run the whole stack on this machine: Postgres, broker, fetchers, simulator.",
        epilog="Settings come from the environment, then from .env; deploy/local/README.md"
        " lists them.",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"%(prog)s {version(PACKAGE)}",
        help="show the version and exit",
    )
    parser.parse_args()


def _fail(reason: Exception, exit_code: int) -> int:
    sys.stderr.write(f"{visible(str(reason), lines=True)}\n")
    return exit_code
