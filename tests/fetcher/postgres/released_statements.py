"""The SQL statements of a released version, against which migrations are tested.

Fetchers of the old version run while a migration is applied and for a while after. So each
of their statements must be accepted by the new schema. At a release:

    python -m tests.fetcher.postgres.released_statements

writes the statements of the present version beside this module. A file is deleted once no
fetcher of its version can run beside the newest schema.
"""

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg

import fetcher.postgres
from protos.process.version import package_version

FOLDER = Path(__file__).parent / "released"
STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
PLACEHOLDER = re.compile(r"%(?:\((\w+)\))?s|%%")


def present_statements() -> dict[str, str]:
    """The statements of this version, by module and name, with numbered parameters."""
    return dict(sorted(_statements()))


def _statements() -> Iterator[tuple[str, str]]:
    for found in pkgutil.iter_modules(fetcher.postgres.__path__, "fetcher.postgres."):
        if found.ispkg:
            continue
        module = importlib.import_module(found.name)
        for name, value in vars(module).items():
            texts = value if isinstance(value, Mapping) else {"": value}
            for key, text in texts.items():
                if isinstance(text, str) and STATEMENT.match(text):
                    yield f"{found.name}.{name}{f'.{key}' if key else ''}", _numbered(text)


def _numbered(statement: str) -> str:
    """*statement* with $1, $2, … in place of the driver's parameters."""
    numbers: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        key = match[1] or f"unnamed {len(numbers)}"
        return f"${numbers.setdefault(key, len(numbers) + 1)}"

    return PLACEHOLDER.sub(number, statement)


def refused(connection: psycopg.Connection, statements: Mapping[str, str]) -> dict[str, str]:
    """The statements that the schema does not accept, each with Postgres' reason."""
    problems = {}
    for name, statement in statements.items():
        try:
            with connection.transaction():
                connection.execute(f"PREPARE probe AS {statement}".encode())
                connection.execute("DEALLOCATE probe")
        except psycopg.Error as exc:
            problems[name] = str(exc).splitlines()[0]
    return problems


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{package_version()}.json"
    path.write_text(json.dumps(present_statements(), indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")  # noqa: T201 - a command for people
