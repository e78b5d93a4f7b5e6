"""The token that opens a program's metrics and health."""

from functools import partial
from typing import Final

from protos.channel.access import read_token
from protos.process.settings import ScrapeSettings
from protos.process.watched_files import Followed

SETTING: Final = "METRICS_TOKEN_FILE"


def scrape_token(settings: ScrapeSettings) -> Followed[str] | None:
    """The token, which follows its file; None without one.

    Raises:
        CredentialError: It can't be read.
    """
    path = settings.metrics_token_file
    return None if path is None else Followed([path], partial(read_token, path, SETTING))
