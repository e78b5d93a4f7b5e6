"""Errors of the broker client.

* BrokerClientError
  - LeaseDeniedError     no tokens this time; come back after retry_delay_s
  - WaitCancelledError   the wait was cancelled on this side
  - BrokerAwayError      the broker can't be reached
    + ClosedError        the client is closed
  - BrokerRefusedError   the broker won't serve this client: a person must act
    + KeyMismatchError   client and broker use different Keepa keys
  - ForkedError          the client belongs to another process: make one here
  - LeaseLostError       the lease is gone or about to lapse: make no call
"""


class BrokerClientError(Exception):
    """Anything that keeps a caller from holding a lease."""


class LeaseDeniedError(BrokerClientError):
    """The broker denied the lease; *reason* is the contract's name for the cause."""

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
    """The broker did not answer in the time given, or this client is closed."""


class ClosedError(BrokerAwayError):
    """`close` ended the call, or came before it."""

    def __init__(self) -> None:
        super().__init__("this broker client is closed: make a new one")


class BrokerRefusedError(BrokerClientError):
    """Authentication, authorisation or the request itself was refused.

    *reason* is the contract's name for the cause; empty if the broker gave none.
    """

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class KeyMismatchError(BrokerRefusedError):
    """The broker counts for another Keepa key: its tokens are not this client's to spend."""


class ForkedError(BrokerClientError):
    """A fork copies neither the client's connection nor the thread that renews leases."""

    def __init__(self) -> None:
        super().__init__(
            "this broker client was made before a fork: make a new one in the child process"
        )


class LeaseLostError(BrokerClientError):
    """Too little of the lease is left for a call to begin under it."""
