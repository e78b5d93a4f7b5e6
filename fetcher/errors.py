"""Fetcher errors, split by what the caller does next.

* FetcherError
  - KeepaError
    + KeepaThrottledError    wait for tokens, then call again; no failed attempt
    + KeepaUnavailableError  call again later; counts as an attempt
    + KeepaResponseError     give up on this request, alert an operator
  - ClaimLostError           another process has the work now: drop it
* DatabaseError and its kinds: protos/postgres, shared with the broker
"""

from fetcher.replies.envelope import Envelope
from protos.postgres.errors import (
    DatabaseAwayError,
    DatabaseError,
    DatabaseNotSetUpError,
    DatabaseRefusedError,
)

__all__ = [
    "ClaimLostError",
    "DatabaseAwayError",
    "DatabaseError",
    "DatabaseNotSetUpError",
    "DatabaseRefusedError",
    "FetcherError",
    "KeepaError",
    "KeepaResponseError",
    "KeepaThrottledError",
    "KeepaUnavailableError",
]


class FetcherError(Exception):
    """Anything that the fetcher expects to go wrong."""


class KeepaError(FetcherError):
    """A call to Keepa that returned no usable answer.

    The message never holds the request's URL, because the key is part of it.
    """

    def __init__(self, message: str, *, envelope: Envelope | None = None) -> None:
        super().__init__(message)
        self.envelope = envelope


class KeepaThrottledError(KeepaError):
    """HTTP 429: the balance was not above zero; nothing was spent."""


class KeepaUnavailableError(KeepaError):
    """A server error, a timeout, a reset, or a body that is cut or no JSON.

    Without an envelope it is unknown whether the call was charged, unless
    *sent* is false: then it never left this machine.
    """

    def __init__(
        self, message: str, *, envelope: Envelope | None = None, sent: bool = True
    ) -> None:
        super().__init__(message, envelope=envelope)
        self.sent = sent


class KeepaResponseError(KeepaError):
    """Keepa understood the request and refuses it: the same request fails again."""

    def __init__(
        self, message: str, *, status: int, kind: str = "", envelope: Envelope | None = None
    ) -> None:
        super().__init__(message, envelope=envelope)
        self.status = status
        self.kind = kind

    @property
    def concerns_key(self) -> bool:
        """Whether the key itself is unknown, unpaid or without access."""
        # An unknown key is answered with refillRate 0 (recorded body): no bucket.
        no_bucket = self.envelope is not None and self.envelope.refill_rate == 0
        return self.status in {401, 402, 403} or (self.kind == "invalidParameter" and no_bucket)


class ClaimLostError(FetcherError):
    """The claim ran out and another process may hold the work."""
