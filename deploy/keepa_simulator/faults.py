"""Faults on demand and by schedule: their kind, path, times and frequency.

A fault is written ``kind:name=value,name=value``, on the command line and over HTTP.
Times are seconds since it was set; ``every`` with ``for`` repeats it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

# Faults of a call, and the parameters that they have beside the common ones.
CALL_KINDS: Final = {
    "latency": ("ms", "spread"),
    "error": ("status",),
    "throttle": (),
    "timeout": (),
    "reset": (),
    "cut": ("at",),
    "garbage": (),
    "drip": ("ms",),
    "skew": ("ms",),
    "pad": ("mb",),
    "unsorted": (),
}
# Faults of an account: they happen at a moment, not to a call.
ACCOUNT_KINDS: Final = {
    "foreign": ("tokens",),
    "jump": ("tokens",),
    "plan": ("rate",),
    "reduction": ("tokens",),
}
# The field of `Effects` that a fault without parameters sets.
_FLAGS: Final = {
    "throttle": "throttled",
    "timeout": "hangs",
    "reset": "reset",
    "garbage": "garbage",
    "unsorted": "unsorted",
}
_COMMON: Final = ("path", "probability", "after", "for", "every", "count", "charged")
_DEFAULTS: Final = {
    "ms": 1000.0,
    "status": 500.0,
    "at": 0.5,
    "spread": 0.0,
    "tokens": 1.0,
    "mb": 25.0,
}


class FaultError(ValueError):
    """A malformed fault; the message names the mistake."""


@dataclass(slots=True)
class Fault:
    """One fault; times in milliseconds.

    Args:
        kind: One of `CALL_KINDS` or `ACCOUNT_KINDS`.
        path: Affects calls of this path only, such as ``/deal``; empty: of every path.
        probability: Share of the affected calls, 0 to 1.
        after_ms: Delay of the start after the fault was set.
        for_ms: Duration; None: until it is cleared.
        every_ms: Time from one start to the next.
        count: Maximum number of effects; None: unlimited.
        charged: Whether the call still costs its tokens; the default for an error reply
            is no.
        values: The parameters of the kind.
    """

    kind: str
    path: str = ""
    probability: float = 1.0
    after_ms: float = 0.0
    for_ms: float | None = None
    every_ms: float | None = None
    count: int | None = None
    charged: bool = True
    values: dict[str, float] = field(default_factory=dict)
    id: int = 0
    set_at_ms: float = 0.0
    times: int = 0

    def is_due(self, now_ms: float) -> bool:
        """Whether the fault is active at *now_ms*."""
        elapsed = now_ms - self.set_at_ms - self.after_ms
        if elapsed < 0 or (self.count is not None and self.times >= self.count):
            return False
        if self.every_ms is not None:
            elapsed %= self.every_ms
        return self.for_ms is None or elapsed < self.for_ms

    def firings(self, now_ms: float) -> int:
        """Number of outstanding firings of an account's fault, as of *now_ms*."""
        elapsed = now_ms - self.set_at_ms - self.after_ms
        if elapsed < 0:
            return 0
        due = 1 if self.every_ms is None else int(elapsed // self.every_ms) + 1
        if self.count is not None:
            due = min(due, self.count)
        return due - self.times

    def value(self, name: str) -> float:
        """A parameter of the kind, or its default."""
        return self.values.get(name, _DEFAULTS.get(name, 0.0))


@dataclass(slots=True)
class Effects:
    """The effects of all active faults on one call."""

    delay_ms: float = 0.0
    drip_ms: float = 0.0
    skew_ms: int = 0
    status: int | None = None
    throttled: bool = False
    hangs: bool = False
    reset: bool = False
    cut_at: float | None = None
    pad_mb: float = 0.0
    garbage: bool = False
    unsorted: bool = False
    charged: bool = True
    names: list[str] = field(default_factory=list)


def _delay_ms(fault: Fault, rng: Random) -> float:
    """A lognormal delay around ``ms``; without ``spread``, exactly ``ms``."""
    spread = fault.value("spread")
    return fault.value("ms") * (rng.lognormvariate(0, spread) if spread else 1.0)


def _take_effect(effects: Effects, fault: Fault, rng: Random) -> None:
    match fault.kind:
        case "latency":
            effects.delay_ms += _delay_ms(fault, rng)
        case "skew":
            effects.skew_ms += int(fault.value("ms"))
        case "error":
            effects.status = int(fault.value("status"))
        case "cut":
            effects.cut_at = fault.value("at")
        case "pad":
            effects.pad_mb = fault.value("mb")
        case "drip":
            effects.drip_ms = fault.value("ms")
        case flag:
            # All other kinds have no parameter.
            setattr(effects, _FLAGS[flag], True)


class Faults:
    """The active faults.

    Args:
        rng: Source of randomness for faults with a probability.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._faults: dict[int, Fault] = {}
        self._last_id = 0

    def set(self, fault: Fault, now_ms: float) -> Fault:
        """Sets *fault*; its times count from *now_ms*."""
        self._last_id += 1
        fault.id, fault.set_at_ms = self._last_id, now_ms
        self._faults[fault.id] = fault
        return fault

    def clear(self, fault_id: int | None = None) -> None:
        """Removes one fault, or all of them."""
        if fault_id is None:
            self._faults.clear()
        else:
            self._faults.pop(fault_id, None)

    def __iter__(self) -> Iterator[Fault]:
        return iter(list(self._faults.values()))

    def on_call(self, path: str, now_ms: float) -> Effects:
        """The faults' effects on a call of *path* that arrived at *now_ms*."""
        effects = Effects()
        for fault in self._faults.values():
            if fault.kind not in CALL_KINDS or fault.path not in ("", path):
                continue
            if fault.is_due(now_ms) and self._rng.random() < fault.probability:
                fault.times += 1
                effects.names.append(fault.kind)
                effects.charged &= fault.charged
                _take_effect(effects, fault, self._rng)
        return effects

    def on_accounts(self, now_ms: float) -> list[Fault]:
        """The account faults that are due, once for each firing."""
        fired = []
        for fault in self._faults.values():
            if fault.kind in ACCOUNT_KINDS and (firings := fault.firings(now_ms)) > 0:
                fault.times += firings
                fired += [fault] * firings
        return fired


def _parts(text: str) -> dict[str, str]:
    parts = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise FaultError(f"{part!r} is not name=value")
        parts[name.strip()] = value.strip()
    return parts


def _seconds(parts: dict[str, str], name: str) -> float | None:
    return float(parts[name]) * 1000 if name in parts else None


def _is_charged(kind: str, text: str | None) -> bool:
    return kind != "error" if text is None else text.lower() in ("true", "1", "yes")


def parse_fault(text: str) -> Fault:
    """Reads ``kind:name=value,…``.

    Raises:
        FaultError: The kind or a parameter is unknown, or a value is no number.
    """
    kind, _, rest = text.partition(":")
    own = (CALL_KINDS | ACCOUNT_KINDS).get(kind)
    if own is None:
        known = ", ".join([*CALL_KINDS, *ACCOUNT_KINDS])
        raise FaultError(f"unknown fault {kind!r}; there are {known}")
    parts = _parts(rest)
    if unknown := parts.keys() - {*own, *_COMMON}:
        raise FaultError(f"{kind} has no {min(unknown)!r}; it has {', '.join((*own, *_COMMON))}")
    try:
        return Fault(
            kind,
            path=parts.get("path", ""),
            probability=float(parts.get("probability", 1)),
            after_ms=_seconds(parts, "after") or 0.0,
            for_ms=_seconds(parts, "for"),
            every_ms=_seconds(parts, "every"),
            count=int(parts["count"]) if "count" in parts else None,
            charged=_is_charged(kind, parts.get("charged")),
            values={name: float(parts[name]) for name in own if name in parts},
        )
    except ValueError as exc:
        raise FaultError(f"{text}: {exc}") from None
