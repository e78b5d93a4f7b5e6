"""How much of the account one caller may tie up at a time, whatever its budgets allow.

A caller is an identity where the broker has identities, else a holder. The limits
keep a broken or hostile caller from taking everything; the defaults leave room for a
whole fleet under one name.
"""

from dataclasses import dataclass
from typing import Final

from broker.core.errors import LimitReachedError


@dataclass(frozen=True, slots=True)
class Limits:
    """Most that one caller may have at a time.

    `reserved_share` is a fraction of a full bucket. `signed` means that holders carry
    the name of their identity before a slash.
    """

    waits: int = 4_000
    leases: int = 5_000
    reserved_share: float = 1.0
    signed: bool = False

    def caller(self, holder: str) -> str:
        """The caller behind *holder*."""
        return holder.partition("/")[0] if self.signed else holder

    def check_waits(self, holder: str, waits: int) -> None:
        """Refuses one more beside the caller's *waits* beyond the limit.

        Raises:
            LimitReachedError: The caller has as many as one may have.
        """
        if waits >= self.waits:
            raise LimitReachedError(
                f"{self.caller(holder)} has {self.waits} requests waiting, the most that one"
                " caller may have (BROKER_CALLER_WAITS_MAX): wait for their answers"
            )

    def check_leases(self, holder: str, leases: int) -> None:
        """Refuses one more beside the caller's open *leases* beyond the limit.

        Raises:
            LimitReachedError: The caller has as many as one may have.
        """
        if leases >= self.leases:
            raise LimitReachedError(
                f"{self.caller(holder)} has {self.leases} open leases, the most that one"
                " caller may have (BROKER_CALLER_LEASES_MAX): settle some first"
            )

    def check_share(self, holder: str, tokens: int, held: int, bucket_tokens: int) -> None:
        """Refuses *tokens* more beyond the caller's share of a full bucket.

        Raises:
            LimitReachedError: Its leases hold its share.
        """
        room = self.room(held, bucket_tokens)
        if room is not None and tokens > room:
            most = int(self.reserved_share * bucket_tokens)
            raise LimitReachedError(
                f"{self.caller(holder)} holds {held} tokens and may hold {most}"
                " (BROKER_CALLER_SHARE_MAX): settle some leases first"
            )

    def room(self, held: int, bucket_tokens: int) -> int | None:
        """Tokens that a caller may be granted beside the *held* ones.

        None: any number. A caller that holds nothing is never refused for its share,
        which might be less than one call. A share of 1 limits nothing: what a caller
        holds beyond a full bucket, calls of unknown cost or those of a greater plan,
        makes its requests wait, as it does all others'.
        """
        if self.reserved_share >= 1:
            return None
        return int(self.reserved_share * bucket_tokens) - held if held else None


DEFAULT_LIMITS: Final = Limits()
