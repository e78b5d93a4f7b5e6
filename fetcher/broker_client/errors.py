"""Errors of the broker client.

* BrokerClientError
  - LeaseDeniedError     no tokens this time; come back after retry_delay_s
  - WaitCancelledError   the wait was called off on this side
  - BrokerAwayError      the broker can't be reached
  - BrokerRefusedError   the broker won't serve this client: a person must act
    + KeyMismatchError   client and broker use different Keepa keys
  - LeaseLostError       the lease is gone or about to lapse: make no call
"""


class BrokerClientError(Exception):
    """Anything that keeps a caller from holding a lease."""


class LeaseDeniedError(BrokerClientError):
    """The broker's answer was no; *reason* is the contract's name for why."""

    def __init__(
        self, reason: str, message: str, *, retry_delay_s: float, largest_units: int
    ) -> None:
        super().__init__(f"no tokens ({reason.lower()}): {message}".rstrip(": "))
        self.reason = reason
        self.retry_delay_s = retry_delay_s
        self.largest_units = largest_units


class WaitCancelledError(BrokerClientError):
    """`stop_waiting` or `close` ended the wait."""


class BrokerAwayError(BrokerClientError):
    """The broker did not answer in the time given."""


class BrokerRefusedError(BrokerClientError):
    """Authentication, authorisation or the request itself was refused."""


class KeyMismatchError(BrokerRefusedError):
    """Another key is another bucket: the broker's tokens are not ours to spend."""

    def __init__(self, ours: str, theirs: str) -> None:
        super().__init__(
            f"the broker counts for another Keepa key ({theirs or 'unknown'}) than ours ({ours}):"
            " set KEEPA_API_KEY to the same key for both"
        )


class LeaseLostError(BrokerClientError):
    """Too little of the lease is left for a call to begin under it."""
