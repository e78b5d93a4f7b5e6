"""The file of budgets: read at the start, and again whenever it has changed.

TOML, or the same as JSON: a table `[budgets.NAME]` a budget. What can't be used is
refused as a whole: half of the limits would be none.
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

from broker.access.watched_files import Stamp, stamp
from broker.core.budgets import Budget
from broker.runtime import BrokerRuntime
from protos.process.text_file import NotUtf8Error, read_text

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# A stat costs microseconds; a change is in force after two of them.
POLL_S: Final = 0.5

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^\S+$")]
Pattern = Annotated[str, Field(min_length=1, max_length=128)]


class BudgetsFileError(Exception):
    """The file can't be used; the message is one line that names it, the entry, the remedy."""


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
    """The budgets that the file at *path* sets.

    Raises:
        BudgetsFileError: it can't be read, or something in it makes no sense.
    """
    try:
        entries = Entries.model_validate(_parse(read_text(path)))
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
    # Raised out here: the original quotes the file at length.
    raise BudgetsFileError(f"BROKER_BUDGETS_FILE: {path}: {problems}")


def _parse(text: str) -> Any:
    # No TOML begins with a brace.
    if text.lstrip().startswith("{"):
        return json.loads(text, object_pairs_hook=_unique)
    return tomllib.loads(text)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a name come twice and the first be lost; TOML does not."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name comes twice in one object")
    return table


def _problem(error: ErrorDetails) -> str:
    # Pydantic marks a key with "[key]", which says nothing to a person.
    where = ".".join(str(part) for part in error["loc"] if part != "[key]")
    match error["type"]:
        case "extra_forbidden":
            known = Entries.model_fields if len(error["loc"]) == 1 else Entry.model_fields
            return f"{where}: no such setting; there are: {', '.join(known)}"
        case "missing":
            return "no table [budgets.NAME]; to have no budgets say: budgets = {}"
        case _:
            return f"{where}: {error['msg'].removeprefix('Value error, ')}"


class BudgetsFile:
    """The budgets of one running broker, as their file has them.

    Raises:
        BudgetsFileError: the file can't be used to begin with.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.budgets: tuple[Budget, ...] = ()
        self._seen: Stamp = None
        self._read: Stamp = None
        self.read()

    def changed(self) -> bool:
        """Whether the file has come to rest in another state than was last read.

        It follows links, as a mounted ConfigMap swaps them. A file that somebody is
        writing right now is left alone until two looks find it the same.
        """
        before, self._seen = self._seen, stamp(self.path)
        return before == self._seen != self._read

    def read(self) -> None:
        """Take over what the file says.

        Raises:
            BudgetsFileError: it can't be used; the budgets stay as they were.
        """
        # Stamped first: what is written in between counts as a change.
        self._read = self._seen = stamp(self.path)
        self.budgets = read_budgets(self.path)

    async def follow(self, runtime: BrokerRuntime) -> None:
        """Keep *runtime* to the file, until cancelled."""
        self._tell()
        while True:
            await asyncio.sleep(POLL_S)
            if self.changed():
                self._reload(runtime)

    def _reload(self, runtime: BrokerRuntime) -> None:
        try:
            self.read()
        except BudgetsFileError as exc:
            log.warning("budgets can't be read; those in force stay", reason=str(exc))
            runtime.budgets_failed(str(exc))
        else:
            runtime.set_budgets(self.budgets)
            self._tell()

    def _tell(self) -> None:
        log.info("budgets in force", budgets=[budget.name for budget in self.budgets])
