"""Prints lines of code of broker and fetcher, and the share of private functions used once.

`python -m tests.one_use` prints the figures, with --list also each such function and its
length. A helper that is used once is worth its name only if the name carries a thought.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("broker", "fetcher")


@dataclass(frozen=True)
class Private:
    """A private function or method, and how often its module uses and calls it."""

    place: str
    name: str
    lines: int
    uses: int
    calls: int


def name_of(node: ast.AST) -> str | None:
    """The name that *node* reads, of a variable or an attribute."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return None


def privates(path: Path) -> Iterator[Private]:
    """The private functions and methods of a module."""
    tree = ast.parse(path.read_text("utf-8"))
    nodes = list(ast.walk(tree))
    uses = Counter(map(name_of, nodes))
    calls = Counter(name_of(node.func) for node in nodes if isinstance(node, ast.Call))
    for node in nodes:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_") and not node.name.startswith("__"):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            place = f"{path.relative_to(ROOT)}:{node.lineno}"
            yield Private(place, node.name, lines, uses[node.name], calls[node.name])


def report(*, with_list: bool) -> Iterator[str]:
    """A line for each package, and below it one for each function that is used once."""
    for package in PACKAGES:
        paths = sorted((ROOT / package).rglob("*.py"))
        lines = sum(len(path.read_text("utf-8").splitlines()) for path in paths)
        found = [each for path in paths for each in privates(path)]
        once = [each for each in found if each.uses == 1]
        called = sum(each.calls for each in once)
        yield (
            f"{package}: {lines} lines; {len(once)} of {len(found)} private functions"
            f" are used once ({len(once) / len(found):.0%}): {called} are called, the others"
            " handed over, to a thread, a table or a library"
        )
        if with_list:
            yield from (f"  {each.place} {each.name}: {each.lines} lines" for each in once)


if __name__ == "__main__":
    sys.stdout.write("\n".join([*report(with_list="--list" in sys.argv), ""]))
