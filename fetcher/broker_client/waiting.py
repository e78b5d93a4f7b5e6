"""One wait for a grant: what to send, and what an answer or an error means. No I/O."""

import logging
import uuid
from typing import Final

import grpc

from fetcher.broker_client.errors import (
    BrokerAwayError,
    BrokerRefusedError,
    KeyMismatchError,
    LeaseDeniedError,
)
from fetcher.broker_client.verdicts import BROKEN_TRIES_MAX, Verdict, verdict
from fetcher.broker_client.wire import duration, seconds
from protos.channel.access import Access
from protos.channel.options import CONNECT_TIMEOUT_MS, RECONNECT_MAX_MS, RECONNECT_MIN_MS
from protos.channel.reasons import Reason, reason_of
from protos.tokenbroker.v1 import token_broker_pb2 as pb

log = logging.getLogger("fetcher.broker_client")

# The same pauses as between gRPC's own attempts to connect.
PAUSE_MIN_S: Final = RECONNECT_MIN_MS / 1000
PAUSE_MAX_S: Final = RECONNECT_MAX_MS / 1000

# An attempt to reach a broker that is away fails within this time.
ATTEMPT_MAX_S: Final = CONNECT_TIMEOUT_MS / 1000 + 5.0

# Added to max_wait_s, so that the broker's own denial arrives before the deadline.
DENIAL_GRACE_S: Final = 5.0


class Silence:
    """Logs why the broker at *address* does not answer, once per reason, and its return."""

    def __init__(self, address: str, access: Access) -> None:
        self._address = address
        self._access = access
        self._logged: set[str] = set()

    def reason(self, exc: grpc.RpcError) -> str:
        """Returns in one line why a call got no answer."""
        if exc.code() is grpc.StatusCode.UNAVAILABLE:
            return self._access.silence(self._address, exc.details())
        details = exc.details() or "no details"
        return f"the broker at {self._address} gives no answer ({exc.code().name}): {details}"

    def call_failed(self, exc: grpc.RpcError) -> None:
        """Logs the reason of *exc* unless it has been logged."""
        reason = self.reason(exc)
        if reason not in self._logged:
            self._logged.add(reason)
            log.warning("%s; waiting for it", reason)

    def call_answered(self) -> None:
        """Logs that the broker answers again, if its silence was logged."""
        if self._logged:
            self._logged.clear()
            log.info("the broker at %s answers again", self._address)


class Wait:
    """A request that is repeated, under one id, until the broker has decided.

    Args:
        request: The request to send.
        deadline_s: When to give up, on the caller's monotonic clock; None: never.
        silence: Logs absences of the broker.
        absence_max_s: Longest time in seconds for which the broker may be away; None: any.
    """

    def __init__(
        self,
        request: pb.AcquireLeaseRequest,
        deadline_s: float | None,
        silence: Silence,
        *,
        absence_max_s: float | None = None,
    ) -> None:
        self.request = request
        self._deadline_s = deadline_s
        self._silence = silence
        self._absence_max_s = absence_max_s
        self._asked_s = 0.0
        self._away_since_s: float | None = None
        self._broken = 0
        self._pause_s = PAUSE_MIN_S

    @property
    def about(self) -> dict[str, str | int]:
        """Attributes of the wait's span."""
        return {
            "lease": self.request.lease_id,
            "holder": self.request.holder,
            "operation": self.request.operation,
            "units": self.request.units,
        }

    def timeout_s(self, now_s: float) -> float | None:
        """Prepares the request for sending now; returns the RPC's timeout."""
        self._asked_s = now_s
        if self._deadline_s is None:
            return None
        wait_s = max(0.0, self._deadline_s - now_s)
        self.request.max_wait.CopyFrom(duration(wait_s))
        return wait_s + DENIAL_GRACE_S

    def grant(self, answer: pb.AcquireLeaseResponse) -> pb.Grant:
        """Returns the grant in *answer*.

        Raises:
            LeaseDeniedError: The broker denied the lease; the error has the time to retry.
        """
        self._silence.call_answered()
        if answer.HasField("grant"):
            return answer.grant
        denial = answer.denial
        raise LeaseDeniedError(
            pb.DenialReason.Name(denial.reason).removeprefix("DENIAL_REASON_"),
            denial.message,
            retry_delay_s=seconds(denial.retry_delay),
            largest_units=denial.largest_units,
        )

    def failed(self, exc: grpc.RpcError, now_s: float) -> float:
        """Returns the pause before the request that failed with *exc* is sent again.

        Raises:
            BrokerAwayError: The deadline has passed, or the broker has been away too long.
            BrokerRefusedError: Repeating it would not help.
        """
        match verdict(exc):
            case Verdict.OTHER_KEY:
                raise KeyMismatchError(str(exc.details()), reason=Reason.OTHER_KEY) from exc
            case Verdict.NEW_ID:
                # The grant was lost on the way, and the lease has lapsed since.
                self.request.lease_id = str(uuid.uuid4())
            case Verdict.REFUSED:
                raise BrokerRefusedError(
                    f"the broker refuses: {exc.details()}", reason=reason_of(exc)
                ) from exc
            case Verdict.FEW_TIMES:
                self._broken += 1
                if self._broken > BROKEN_TRIES_MAX:
                    raise BrokerRefusedError(
                        f"the broker fails at this request each time: {exc.details()}"
                    ) from exc
        if self._away_since_s is None or now_s - self._asked_s > ATTEMPT_MAX_S:
            # A longer attempt was a wait in the broker, which has gone away only now.
            self._away_since_s = now_s
        absent_s = now_s - self._away_since_s
        absent_too_long = self._absence_max_s is not None and absent_s >= self._absence_max_s
        if absent_too_long or (self._deadline_s is not None and now_s >= self._deadline_s):
            raise BrokerAwayError(self._silence.reason(exc)) from exc
        self._silence.call_failed(exc)
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, PAUSE_MAX_S)
        return pause_s
