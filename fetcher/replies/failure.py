"""What a reply's status and `error` object mean for the call."""

import re
from typing import Final

from fetcher.replies.envelope import Envelope

SERVER_ERROR: Final = 500
TOO_MANY_REQUESTS: Final = 429
# Unauthorised, unpaid or forbidden: the key is refused, not the moment.
OF_KEY: Final = frozenset({401, 402, 403})

# Keepa's error type is NOT_ENOUGH_TOKEN; its message is not documented.
_OF_TOKENS: Final = re.compile(r"token", re.IGNORECASE)


def is_refusal(error: str, status: int, envelope: Envelope | None) -> bool:
    """Returns whether *error* is a 429 by another status: too few tokens, nothing spent."""
    return (
        envelope is not None
        and envelope.is_observation
        and envelope.tokens_left <= 0
        and envelope.tokens_consumed == 0
        and _OF_TOKENS.search(error) is not None
        and status < SERVER_ERROR
        and status not in OF_KEY
    )


def error_of(body: object) -> tuple[str, str]:
    """Returns type and message of the reply's `error`; empty strings when there is none."""
    error = body.get("error") if isinstance(body, dict) else None
    if error is None or error is False:
        return "", ""
    if not isinstance(error, dict):
        return "unknownError", str(error)[:200]
    parts = (error.get("message"), error.get("details"))
    message = " ".join(str(part) for part in parts if part)
    return str(error.get("type") or "unknownError"), message[:500]
