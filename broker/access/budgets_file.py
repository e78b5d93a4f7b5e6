"""The budgets file, read at the start and after every change.

TOML or JSON with one table `[budgets.NAME]` for each budget. An invalid entry makes the
broker refuse the whole file: with half of its limits the account is not protected.
"""

import asyncio
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from broker.core.budgets import Budget
from broker.runtime import BrokerRuntime
from protos.process.text_file import NotUtf8Error, read_text
from protos.process.watched_files import FileState, Stamp, file_version, stamp

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# A stat costs microseconds. Two of them must agree before the broker reads a change.
POLL_S: Final = 0.5

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^\S+$")]
Pattern = Annotated[str, Field(min_length=1, max_length=128)]


class BudgetsFileError(Exception):
    """The file can't be used; the message names file, entry and remedy in one line."""


class Entry(BaseModel):
    """One table of the file; see `Budget`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    holder: Pattern = "*"
    operation: Pattern = "*"
    tokens_per_hour: Annotated[int, Field(gt=0, le=10**9)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _limits_something(self) -> "Entry":
        if self.tokens_per_hour is None and self.share is None:
            raise ValueError("limits nothing: give tokens_per_hour, share or both")
        return self


class Entries(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", strict=True)

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
        entries = Entries.model_validate(parsed)
    except ValidationError as exc:
        problems = "; ".join(_problem(error) for error in exc.errors(include_url=False))
    except OSError as exc:
        problems = f"can't be read ({exc.strerror}): create it, or unset the variable"
    except NotUtf8Error as exc:
        problems = str(exc)
    except (ValueError, RecursionError) as exc:
        problems = f"neither TOML nor JSON: {exc}"
    else:
        return tuple(Budget(name, **dict(entry)) for name, entry in entries.budgets.items())
    # Raised outside of the handlers: the original exception quotes the file at length.
    raise BudgetsFileError(f"BROKER_BUDGETS_FILE: {path}: {problems}")


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
            return f"{where}: no such setting; there are: {', '.join(known)}"
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
