"""Time spans that people write as options of commands."""

import re
from datetime import timedelta
from typing import Final

from protos.process.environment import SettingsError

SPAN: Final = re.compile(r"(\d{1,5})([mhd])")
SPAN_UNITS: Final = {
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}


def parse_span(option: str, text: str) -> timedelta:
    """Returns a command's *text* such as 90m, 24h or 7d as a time span.

    Raises:
        SettingsError: It is none.
    """
    match = SPAN.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise SettingsError([f"{option} {text}: write a time span such as 90m, 24h or 7d"])
    return int(match[1]) * SPAN_UNITS[match[2]]
