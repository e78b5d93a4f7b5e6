"""Trailing metadata of a refusal: tells the broker's own word from a lost connection."""

from typing import Final

# Present on every error that the broker itself raised; the value is a short slug.
REASON_KEY: Final = "tokenbroker-reason"
