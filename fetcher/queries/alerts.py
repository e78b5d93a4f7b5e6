"""The alerts of a query: which deals are reported to which channel, and when again.

An alert is an entry of "alerts" in a query file:

    {"channel": "team", "when": {"state": "accepted", "profit": {"min": 500}},
     "again": {"drop_percent": 10}, "quiet": "10m", "digest": "1h"}

    channel  name of a channel in the file that ALERTS_FILE names
    when     a verdict ("state", by default accepted), and conditions written like rules
    again    reports a deal again when its price has fallen so far since the last report
    quiet    least time between two reports on a deal; "10m" by default
    digest   collects reports, and sends them together after that time

Law:
1. A deal is reported once per crossing: when it begins to match. Judging the same reply again
   reports nothing.
2. A crossing within the quiet time is put off, not dropped: the next reading reports it, if
   the deal still matches.
3. What matched before the alert existed is no news, nor is what changed rules let through.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeGuard, cast, get_args

from fetcher.queries.conditions import Condition, Facts, read_condition
from fetcher.queries.enrichment import Enrichment
from fetcher.queries.reader import DURATION_UNITS_MS, BadKeyError, Section, duration_words
from fetcher.queries.rules import State, Verdict, check_price_conditions

# in: matches, and needs no report. due: matches, and its report is put off. out: does not
# match. before: stood in the database before the alert did, and has not been judged since.
Phase = Literal["out", "in", "due", "before"]
Occasion = Literal["crossing", "again"]

PHASES: Final = get_args(Phase)
STATES: Final = get_args(State)
ALERT_KEYS: Final = ("channel", "when", "again", "quiet", "digest")
ALERTS_MAX: Final = 20
CHANNEL_CHARACTERS_MAX: Final = 63
QUIET_MS: Final = 10 * DURATION_UNITS_MS["m"]
QUIET_MOST_MS: Final = 30 * DURATION_UNITS_MS["d"]
DIGEST_LEAST_MS: Final = DURATION_UNITS_MS["s"]
DIGEST_MOST_MS: Final = 7 * DURATION_UNITS_MS["d"]
PERCENT: Final = 100


@dataclass(frozen=True, slots=True)
class Alert:
    """One entry of "alerts"; times in milliseconds.

    ``key`` names channel and ``when``: 12 hex digits. Another key is another alert, which
    has seen no deal yet.
    """

    key: str
    channel: str
    state: State
    conditions: tuple[Condition, ...]
    again_drop_percent: int | None
    quiet_ms: int
    digest_ms: int | None

    def matches(self, verdict: Verdict, facts: Facts) -> bool:
        """Returns whether a deal with this *verdict* is to be reported; unknown is no match."""
        if verdict.state != self.state:
            return False
        values = ((condition, condition.value(facts)) for condition in self.conditions)
        return all(value is not None and condition.accepts(value) for condition, value in values)

    def words(self) -> str:
        """Returns the alert in words, for a line of `dealfetcher queries check`."""
        parts = [self.state, *(f"{one.name} {one.limit}" for one in self.conditions)]
        text = f"to {self.channel} when {', '.join(parts)}"
        if self.again_drop_percent is not None:
            text += f"; again {self.again_drop_percent} % lower"
        text += f"; at most every {duration_words(self.quiet_ms)} on a deal"
        if self.digest_ms is not None:
            text += f"; collected for {duration_words(self.digest_ms)}"
        return text


@dataclass(frozen=True, slots=True)
class Memory:
    """What one alert remembers of one deal; no memory is "out, never reported".

    ``value`` is the deal's value, in the unit of its price type, at the last report, or when
    it was first seen to match. ``reported_ms`` is Keepa's clock at the last report.
    """

    phase: Phase
    value: int | None = None
    reported_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """One verdict as an alert sees it.

    ``is_news`` is false for what an alert must not report: its first run, changed rules.
    ``is_complete``: no details are outstanding that could still change the outcome.
    ``time_ms`` is Keepa's clock when it served the deal.
    """

    matches: bool
    value: int | None
    time_ms: int
    is_news: bool = True
    is_complete: bool = True


def decide(
    alert: Alert, memory: Memory | None, reading: Reading
) -> tuple[Memory | None, Occasion | None]:
    """Returns what *alert* remembers after *reading*, and the occasion if it must report it."""
    before = memory or Memory("out")
    in_quiet = (
        before.reported_ms is not None and reading.time_ms - before.reported_ms < alert.quiet_ms
    )
    if not reading.matches:
        is_undecided = not reading.is_complete and (
            not reading.is_news or before.phase == "before"
        )
        if is_undecided:
            return replace(before, phase="before"), None
        # Past its quiet time, it is as good as a deal that was never reported.
        return (replace(before, phase="out") if in_quiet else None), None
    if not reading.is_news or before.phase == "before":
        # A further drop that is no news must not be reported by the next reading.
        known = [value for value in (before.value, reading.value) if value is not None]
        return replace(before, phase="in", value=min(known, default=None)), None
    if before.phase == "in" and not _is_lower(alert, before, reading):
        return before, None
    if in_quiet:
        # A further drop is compared again at the next reading.
        return (before if before.phase == "in" else replace(before, phase="due")), None
    occasion: Occasion = "again" if before.phase == "in" else "crossing"
    return Memory("in", reading.value, reading.time_ms), occasion


def _is_lower(alert: Alert, memory: Memory, reading: Reading) -> bool:
    """Returns whether the value has fallen far enough since the last report."""
    percent = alert.again_drop_percent
    if percent is None or memory.value is None or reading.value is None:
        return False
    # Nothing is ten percent below zero.
    is_lower = reading.value < memory.value
    return is_lower and reading.value * PERCENT <= memory.value * (PERCENT - percent)


def read_alerts(
    value: object, *, enrichment: Enrichment | None, price_type: int
) -> tuple[Alert, ...]:
    """Reads the "alerts" of a query file.

    Raises:
        BadKeyError: An unusable entry; the error names its key and the remedy.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise BadKeyError("alerts", 'write a list: [{"channel": "team"}]')
    if len(value) > ALERTS_MAX:
        raise BadKeyError("alerts", f"write at most {ALERTS_MAX}")
    alerts = tuple(
        _read_alert(entry, f"alerts[{number}]", enrichment=enrichment, price_type=price_type)
        for number, entry in enumerate(value)
    )
    keys = [alert.key for alert in alerts]
    for number, key in enumerate(keys):
        if key in keys[:number]:
            raise BadKeyError(
                f"alerts[{number}]", "the same channel and when as above; remove one"
            )
    return alerts


def _read_alert(
    value: object, path: str, *, enrichment: Enrichment | None, price_type: int
) -> Alert:
    section = Section(value, path)
    section.allow_only(ALERT_KEYS)
    channel = section.value("channel")
    if not is_channel_name(channel):
        reason = f"write a channel's name: up to {CHANNEL_CHARACTERS_MAX} letters, digits, - or _"
        raise BadKeyError(section.key("channel"), reason)
    written = section.value("when") if section.has("when") else {}
    when = Section(written, section.key("when"))
    assert isinstance(written, Mapping)
    state = cast("State", when.choice("state", STATES) or "accepted")
    conditions = tuple(
        read_condition(str(name), limits, path=section.key("when"))
        for name, limits in written.items()
        if name != "state"
    )
    _check_conditions(
        conditions, section.key("when"), enrichment=enrichment, price_type=price_type
    )
    again = Section(section.value("again") if section.has("again") else {}, section.key("again"))
    again.allow_only(("drop_percent",))
    quiet_ms = section.duration_ms("quiet", least_ms=0, most_ms=QUIET_MOST_MS)
    return Alert(
        key=_key(channel, written, state),
        channel=channel,
        state=state,
        conditions=conditions,
        again_drop_percent=again.whole("drop_percent", least=1, most=PERCENT - 1),
        quiet_ms=QUIET_MS if quiet_ms is None else quiet_ms,
        digest_ms=section.duration_ms("digest", least_ms=DIGEST_LEAST_MS, most_ms=DIGEST_MOST_MS),
    )


def is_channel_name(name: object) -> TypeGuard[str]:
    """Returns whether *name* can name a channel."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= CHANNEL_CHARACTERS_MAX
        and name.isascii()
        and name.replace("-", "").replace("_", "").isalnum()
    )


def _check_conditions(
    conditions: Sequence[Condition],
    path: str,
    *,
    enrichment: Enrichment | None,
    price_type: int,
) -> None:
    for condition in conditions:
        if condition.needs_product and enrichment is None:
            reason = 'needs product details; add "enrichment": true or remove the condition'
            raise BadKeyError(f"{path}.{condition.name}", reason)
        if condition.on_unknown != "reject":
            reason = "an unknown value never matches an alert; remove this"
            raise BadKeyError(f"{path}.{condition.name}.unknown", reason)
    check_price_conditions(conditions, price_type, path=path)


def _key(channel: str, when: Mapping[str, object], state: State) -> str:
    meaning = {"channel": channel, "when": {**when, "state": state}}
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
