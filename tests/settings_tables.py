"""Writes the settings tables of the documents from the settings classes.

`make docs` rewrites the lines between `<!-- settings: module:Class -->` and `<!-- end -->`;
a test fails while they differ.
"""

import ast
import enum
import importlib
import inspect
import re
import textwrap
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from protos.process.settings import Environment

ROOT: Final = Path(__file__).parents[1]
DOCUMENTS: Final = (
    "broker/README.md",
    "fetcher/README.md",
    "fetcher/gateway/README.md",
    "deploy/local/README.md",
)
TABLE: Final = re.compile(r"(<!-- settings: ([\w.]+):(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
HEAD: Final = ("| Setting | Default | Meaning |", "|---|---|---|")
UNITS: Final = (("h", 3_600), ("m", 60), ("s", 1))


def shown(value: Any) -> str:
    """A default as it would be written into the environment; empty where there is none."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value == "":
        return ""
    if isinstance(value, timedelta):
        seconds = round(value.total_seconds())
        unit, size = next(unit for unit in UNITS if seconds % unit[1] == 0)
        value = f"{seconds // size}{unit}"
    elif isinstance(value, enum.Enum):
        value = value.value
    elif isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, float) and value == int(value):
        value = int(value)
    return f"`{value}`"


def docstrings(settings: type[Environment]) -> dict[str, str]:
    """The text below each field, in *settings* and its bases.

    Pydantic reads them too, but at every start of a program (`use_attribute_docstrings`).
    """
    found: dict[str, str] = {}
    for each in reversed(settings.__mro__[: settings.__mro__.index(Environment)]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in pairwise(definition.body):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = text
    return found


def row(name: str, field: FieldInfo, text: str | None) -> str:
    """A line of the table."""
    assert text, f"{name} has no docstring"
    return f"| `{name.upper()}` | {shown(field.default)} | {' '.join(text.split())} |"


def table(settings: type[Environment]) -> str:
    """The table of a settings class; fields that only refuse an old name are left out."""
    texts = docstrings(settings)
    rows = [
        row(name, field, texts.get(name))
        for name, field in settings.model_fields.items()
        if field.annotation is not type(None)
    ]
    return "".join(f"{line}\n" for line in (*HEAD, *rows))


def filled(text: str) -> str:
    """*text* with each of its tables written anew."""

    def fill(match: re.Match[str]) -> str:
        settings = getattr(importlib.import_module(match[2]), match[3])
        return f"{match[1]}\n{table(settings)}\n{match[4]}"

    return TABLE.sub(fill, text)


def main() -> None:
    """Rewrites the documents."""
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(filled(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
