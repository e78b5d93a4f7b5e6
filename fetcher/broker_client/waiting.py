"""One wait for a grant, without I/O: what to send, and what an answer or an error means."""

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
from protos.channel.options import RECONNECT_MAX_MS, RECONNECT_MIN_MS
from protos.tokenbroker.v1 import token_broker_pb2 as pb

log = logging.getLogger("fetcher.broker_client")

# Pauses between repeats are those between grpc's own attempts to connect.
PAUSE_MIN_S: Final = RECONNECT_MIN_MS / 1000
PAUSE_MAX_S: Final = RECONNECT_MAX_MS / 1000

# Added to max_wait_s, so that the broker's own denial arrives before the deadline.
DENIAL_GRACE_S: Final = 5.0


class Silence:
    """Whether the broker at *address* answers; logs each reason of an absence once."""

    def __init__(self, address: str, access: Access) -> None:
        self._address = address
        self._access = access
        self._told: set[str] = set()

    def reason(self, exc: grpc.RpcError) -> str:
        """Why a call got no answer, in one line."""
        if exc.code() is grpc.StatusCode.UNAVAILABLE:
            return self._access.silence(self._address, exc.details())
        details = exc.details() or "no details"
        return f"the broker at {self._address} gives no answer ({exc.code().name}): {details}"

    def heard_nothing(self, exc: grpc.RpcError) -> None:
        """A call failed for now."""
        reason = self.reason(exc)
        if reason not in self._told:
            self._told.add(reason)
            log.warning("%s; waiting for it", reason)

    def broken(self) -> None:
        """The broker has answered."""
        if self._told:
            self._told.clear()
            log.info("the broker at %s answers again", self._address)


class Wait:
    """A request that is repeated, under one id, until the broker has decided.

    Args:
        request: What is asked for.
        deadline_s: When to give up, on the caller's monotonic clock; None: never.
        silence: Where absences of the broker are logged.
    """

    def __init__(
        self, request: pb.AcquireLeaseRequest, deadline_s: float | None, silence: Silence
    ) -> None:
        self.request = request
        self._deadline_s = deadline_s
        self._silence = silence
        self._broken = 0
        self._pause_s = PAUSE_MIN_S

    @property
    def about(self) -> dict[str, str | int]:
        """Attributes of its span."""
        return {
            "lease": self.request.lease_id,
            "holder": self.request.holder,
            "operation": self.request.operation,
            "units": self.request.units,
        }

    def timeout_s(self, now_s: float) -> float | None:
        """Prepare the request for sending now; returns the RPC's timeout."""
        if self._deadline_s is None:
            return None
        wait_s = max(0.0, self._deadline_s - now_s)
        self.request.max_wait.CopyFrom(duration(wait_s))
        return wait_s + DENIAL_GRACE_S

    def grant(self, answer: pb.AcquireLeaseResponse) -> pb.Grant:
        """The grant in *answer*.

        Raises:
            LeaseDeniedError: The broker said no, and when to ask again.
        """
        self._silence.broken()
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
        """The request failed with *exc*; returns the pause before it is sent again.

        Raises:
            BrokerAwayError: There is no time left.
            BrokerRefusedError: Repeating it would not help.
        """
        match verdict(exc):
            case Verdict.OTHER_KEY:
                raise KeyMismatchError(exc.details()) from exc
            case Verdict.NEW_ID:
                # It was granted, and lapsed while its grant was lost on the way.
                self.request.lease_id = str(uuid.uuid4())
            case Verdict.REFUSED:
                raise BrokerRefusedError(f"the broker refuses: {exc.details()}") from exc
            case Verdict.FEW_TIMES:
                self._broken += 1
                if self._broken > BROKEN_TRIES_MAX:
                    raise BrokerRefusedError(
                        f"the broker fails at this request each time: {exc.details()}"
                    ) from exc
        if self._deadline_s is not None and now_s >= self._deadline_s:
            raise BrokerAwayError(self._silence.reason(exc)) from exc
        self._silence.heard_nothing(exc)
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, PAUSE_MAX_S)
        return pause_s
