"""Broker errors.

* BrokerError
  - LeaseNotFoundError
  - LeaseConflictError
  - LeaseEndedError
  - LeaseTooOldError
  - LimitReachedError
"""


class BrokerError(Exception):
    """A request that the broker can't honour; the caller's fault."""


class LeaseNotFoundError(BrokerError):
    """The lease was never granted in this epoch."""

    def __init__(self, lease_id: str) -> None:
        super().__init__(f"no lease {lease_id!r} was ever granted in this epoch")
        self.lease_id = lease_id


class LeaseConflictError(BrokerError):
    """The lease_id is in use for a request with other arguments."""

    def __init__(self, lease_id: str) -> None:
        super().__init__(f"lease {lease_id!r} exists with other arguments: use a new lease_id")
        self.lease_id = lease_id


class LeaseEndedError(BrokerError):
    """The lease has been settled or abandoned; its id can't be used again."""

    def __init__(self, lease_id: str) -> None:
        super().__init__(f"lease {lease_id!r} has ended: use a new lease_id")
        self.lease_id = lease_id


class LeaseTooOldError(BrokerError):
    """The lease has reached its greatest age; no renewal prolongs it."""

    def __init__(self, lease_id: str, age_ms_max: int) -> None:
        super().__init__(
            f"lease {lease_id!r} has reached the greatest age of {age_ms_max / 1000:g} s"
            " (BROKER_LEASE_AGE_MAX): make no call under it, and acquire a new one"
        )
        self.lease_id = lease_id


class LimitReachedError(BrokerError):
    """The caller waits for, or holds, as much as one caller may."""
