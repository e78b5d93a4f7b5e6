"""An endpoint's query, its answer, and its refusal."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

INVALID_PARAMETER = "invalidParameter"
_MESSAGE = "You used an invalid parameter for this API call."


class RequestError(Exception):
    """A request that Keepa answers with an ``error`` object.

    Args:
        status: HTTP status.
        details: What is wrong with the request.
        kind: Keepa's ``error.type``.
    """

    def __init__(self, status: int, details: str, kind: str = INVALID_PARAMETER) -> None:
        super().__init__(details)
        self.status = status
        self.error = {"details": details, "message": _MESSAGE, "type": kind}


@dataclass(frozen=True, slots=True)
class Query:
    """One call: its parameters, without the key, and the body of a POST."""

    parameters: Mapping[str, str]
    body: str | None
    now_ms: int

    def integer(self, name: str, default: int | None = None) -> int:
        """A parameter as a number.

        Raises:
            RequestError: It is missing and has no default, or is no number.
        """
        text = self.parameters.get(name, "")
        if not text and default is not None:
            return default
        try:
            return int(text)
        except ValueError:
            raise RequestError(400, f"{name} must be a number") from None

    def items(self, name: str, *, most: int) -> list[str]:
        """A parameter split at its commas.

        Raises:
            RequestError: It is missing, or has more than *most* parts.
        """
        parts = [part.strip() for part in self.parameters.get(name, "").split(",")]
        parts = [part for part in parts if part]
        if not parts:
            raise RequestError(400, f"{name} is missing")
        if len(parts) > most:
            raise RequestError(405, f"{name} has more than {most} entries")
        return parts


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of an endpoint.

    Args:
        fields: The reply without its envelope; values may be `Written` text.
        cost: Tokens.
        rows: Deals in the reply, as (domain, asin, lastUpdate, creationDate).
        asins: Products in the reply.
    """

    fields: Mapping[str, Any]
    cost: int
    rows: list[tuple[int, str, int, int]] = field(default_factory=list)
    asins: list[str] = field(default_factory=list)

    def without_cost(self) -> "Answer":
        """The same answer for nothing."""
        return replace(self, cost=0)


class Written(str):
    """JSON text that goes into a reply unchanged."""

    __slots__ = ()
