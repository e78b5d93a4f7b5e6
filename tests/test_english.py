"""Docstrings, comments and command texts name their actors; CONTRIBUTING.md gives the rules.

Programs never say, tell, hear or know, and nobody is "who": write broker, fetcher, holder,
caller.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PEOPLE_WORDS = re.compile(
    r"\b(who|whom|whose|whoever|nobody|somebody|everybody|anybody"
    r"|tells?|told|telling|says?|said|saying|hears?|heard|knows?|gets? at|of ours|in force)\b",
    re.IGNORECASE,
)
FOLDERS = ("broker", "fetcher", "protos", "deploy", "tests")


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Docstrings, comments and help texts of a module, each with its line."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node, clean=False)
            if doc is not None:
                yield node.body[0].lineno, doc
        elif (
            isinstance(node, ast.keyword)
            and node.arg == "help"
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.value.lineno, node.value.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def people_words(folder: str) -> list[str]:
    """Each word under *folder*, with its place."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {match[0]}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        # This module names the words themselves.
        if "_pb2" not in path.name and path != Path(__file__)
        for line, text in texts(path.read_text("utf-8"))
        for match in PEOPLE_WORDS.finditer(text)
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_programs_are_not_spoken_of_as_people(folder: str) -> None:
    """Docstrings, comments and help texts hold no words for people."""
    assert people_words(folder) == []


def test_the_words_are_found() -> None:
    """A docstring, a comment and a help text are all looked at."""
    source = '"""A told b."""\n# said\noption(help="Where the broker is; whose it is.")\n'
    found = [PEOPLE_WORDS.search(text) for _, text in texts(source)]

    assert [match and match[0] for match in found] == ["told", "whose", "said"]
