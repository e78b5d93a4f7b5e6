"""The command `python -m deploy.local`, which `make run` stands for."""

import sys

from deploy.local.data_dir import DataDir
from deploy.local.errors import StackError
from deploy.local.screen import Screen
from deploy.local.settings import StackSettings
from deploy.local.stack import Stack
from deploy.local.tether import tether_to_make
from protos.process.addresses import ListenError
from protos.process.settings import SettingsError


def main() -> int:
    """Run the stack; returns 0, 1 if it can't work, 2 if a setting is to blame."""
    tether_to_make()
    try:
        settings = StackSettings.load()
        settings.rpc.check_free("BROKER_LISTEN")
        settings.http.check_free("BROKER_HTTP_LISTEN")
        with DataDir(settings.data_dir) as data_dir:
            Stack(settings, data_dir, Screen()).run()
    except SettingsError as exc:
        return _fail(exc, 2)
    except StackError as exc:
        return _fail(exc, exc.exit_code)
    except ListenError as exc:
        return _fail(exc, 1)
    return 0


def _fail(reason: Exception, exit_code: int) -> int:
    print(reason, file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
