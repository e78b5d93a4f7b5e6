"""The budgets file, read at the start and after every change.

TOML or JSON with one table `[budgets.NAME]` for each budget. An invalid entry makes the
broker refuse the whole file: with half of its limits the account is not protected.
"""

import asyncio
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfoNotFoundError, available_timezones

import structlog
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from broker.calendar import zone_of
from broker.core.budgets import Budget, Mode
from broker.runtime import BrokerRuntime
from protos.process.identities import NAME
from protos.process.text_file import NotUtf8Error, read_text
from protos.process.watched_files import FileState, Stamp, file_version, stamp

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# A stat costs microseconds. Two of them must agree before the broker reads a change.
POLL_S: Final = 0.5

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^\S+$")]
Pattern = Annotated[str, Field(min_length=1, max_length=128)]
Tokens = Annotated[int, Field(gt=0, le=10**9)]

LIMITS: Final = (
    "tokens_per_hour", "share", "tokens_per_day", "tokens_per_month", "in_flight_max",
)  # fmt: skip
DEFAULT_ZONE: Final = "UTC"
# Identity, holder, operation, and room for more; no file needs a hundred.
NESTING_MAX: Final = 8


class BudgetsFileError(Exception):
    """The file can't be used; the message names file, entry and remedy in one line."""


class Entry(BaseModel):
    """One table of the file; see `Budget`.

    `identity` stands for its holders, "identity/*"; with it, `holder` is the part behind the
    slash. Identity and time zone are those of the budget that it lies `within`, unless it
    has its own.
    """

    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)

    identity: Annotated[str, Field(pattern=rf"^{NAME.pattern}$")] | None = None
    holder: Pattern = "*"
    operation: Pattern = "*"
    tokens_per_hour: Tokens | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    tokens_per_day: Tokens | None = None
    tokens_per_month: Tokens | None = None
    time_zone: str | None = None
    in_flight_max: Annotated[int, Field(gt=0, le=10**6)] | None = None
    mode: Literal["enforce", "shadow"] = "enforce"
    within: str | None = None

    @field_validator("time_zone")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None:
            try:
                zone_of(name)
            # A name such as ".." or "a\0" is no key at all; a folder is no file.
            except (ZoneInfoNotFoundError, ValueError, OSError):
                hint = _nearest(name, available_timezones())
                raise ValueError(
                    f"{name!r} is no known time zone{hint}: write one such as Europe/Berlin"
                ) from None
        return name

    @model_validator(mode="after")
    def _limits_something(self) -> "Entry":
        if not any(getattr(self, limit) is not None for limit in LIMITS):
            raise ValueError(
                f"limits nothing: give {', '.join(LIMITS[:-1])} or {LIMITS[-1]}, or several"
            )
        return self


class Entries(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)

    budgets: dict[Name, Entry]


def read_budgets(path: Path) -> tuple[Budget, ...]:
    """Returns the budgets of the file at *path*.

    Raises:
        BudgetsFileError: it can't be read, or an entry is invalid.
    """
    try:
        text = read_text(path)
        # No TOML begins with a brace.
        if text.lstrip().startswith("{"):
            parsed = json.loads(text, object_pairs_hook=_unique)
        else:
            parsed = tomllib.loads(text)
        entries = Entries.model_validate(parsed).budgets
    except ValidationError as exc:
        problems = "; ".join(_problem(error) for error in exc.errors(include_url=False))
    except OSError as exc:
        problems = f"can't be read ({exc.strerror}): create it, or unset the variable"
    except NotUtf8Error as exc:
        problems = str(exc)
    except (ValueError, RecursionError) as exc:
        problems = f"neither TOML nor JSON: {exc}"
    else:
        try:
            return tuple(_budget(name, entries) for name in entries)
        except NestingError as exc:
            problems = str(exc)
    # Raised outside of the handlers: the original exception quotes the file at length.
    raise BudgetsFileError(f"BROKER_BUDGETS_FILE: {path}: {problems}")


class NestingError(Exception):
    """Budgets do not lie within each other as they claim."""


def _budget(name: str, entries: Mapping[str, Entry], inner: tuple[str, ...] = ()) -> Budget:
    """The budget *name*, with those that it lies within.

    Raises:
        NestingError: There is no such budget, or it lies within itself.
    """
    entry = entries[name]
    inner = (*inner, name)
    outer, identity = None, entry.identity
    if entry.within is not None:
        place = f"budgets.{name}.within"
        if entry.within not in entries:
            hint = _nearest(entry.within, entries)
            raise NestingError(
                f"{place}: no budget {entry.within!r}{hint}: name another table of this file"
            )
        if entry.within in inner:
            path = " within ".join((*inner, entry.within))
            raise NestingError(f"{place}: a circle: {path}: take one of them out")
        if len(inner) >= NESTING_MAX:
            raise NestingError(f"{place}: deeper than {NESTING_MAX} budgets: nest fewer")
        outer = _budget(entry.within, entries, inner)
        identity = identity or _identity(entry.within, entries)
    return Budget(
        name,
        entry.holder if identity is None else f"{identity}/{entry.holder}",
        entry.operation,
        entry.tokens_per_hour,
        entry.share,
        entry.tokens_per_day,
        entry.tokens_per_month,
        entry.time_zone or (DEFAULT_ZONE if outer is None else outer.time_zone),
        Mode(entry.mode),
        entry.in_flight_max,
        outer,
    )


def _identity(name: str, entries: Mapping[str, Entry]) -> str | None:
    """The identity of a budget, or of the nearest one around it."""
    entry = entries[name]
    if entry.identity is not None or entry.within is None:
        return entry.identity
    return _identity(entry.within, entries)


def _nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that *name* was probably meant to be; empty if there is none."""
    found = get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses a repeated name, of which JSON silently keeps the last; TOML refuses it itself."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name comes twice in one object")
    return table


def _problem(error: ErrorDetails) -> str:
    # Pydantic marks a key with "[key]", which means nothing to a reader.
    where = ".".join(str(part) for part in error["loc"] if part != "[key]")
    match error["type"]:
        case "extra_forbidden":
            known = Entries.model_fields if len(error["loc"]) == 1 else Entry.model_fields
            hint = _nearest(str(error["loc"][-1]), known)
            return f"{where}: no such setting{hint}; there are: {', '.join(known)}"
        case "missing":
            return "no table [budgets.NAME]; to have no budgets write: budgets = {}"
        case _:
            return f"{where}: {error['msg'].removeprefix('Value error, ')}"


class BudgetsFile:
    """The budgets file of a running broker, and the budgets last read from it.

    Raises:
        BudgetsFileError: the file can't be used at the start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.budgets: tuple[Budget, ...] = ()
        self.state = FileState("")
        self._seen: Stamp = None
        self._read: Stamp = None
        self.read()

    def changed(self) -> bool:
        """Whether the file differs from what was last read, and is complete.

        Links are followed, as a mounted ConfigMap swaps them. A file counts as complete
        once two calls in a row find it in the same state.
        """
        before, self._seen = self._seen, stamp(self.path)
        return before == self._seen != self._read

    def read(self) -> None:
        """Reads the file again.

        Raises:
            BudgetsFileError: it can't be used; the budgets stay as they were.
        """
        # Stamped before the read, so that a write during it counts as a change.
        self._read = self._seen = stamp(self.path)
        self.budgets = read_budgets(self.path)
        self.state = FileState(file_version([self.path]))

    async def follow(self, runtime: BrokerRuntime) -> None:
        """Applies every change of the file to *runtime* until cancelled."""
        self._log()
        while True:
            await asyncio.sleep(POLL_S)
            if not self.changed():
                continue
            try:
                self.read()
            except BudgetsFileError as exc:
                self.state = FileState(self.state.version, str(exc))
                log.warning("budgets can't be read; the old ones stay", reason=str(exc))
                runtime.budgets_failed(str(exc))
            else:
                runtime.set_budgets(self.budgets)
                self._log()

    def _log(self) -> None:
        log.info("budgets applied", budgets=[budget.name for budget in self.budgets])
