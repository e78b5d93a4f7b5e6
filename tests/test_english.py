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
# Bare verbs with which no summary begins; words that are as often nouns are left out.
IMPERATIVE = re.compile(
    r"(Accept|Add|Adopt|Advance|Allow|Append|Apply|Ask|Assert|Await|Become|Begin|Book|Bring"
    r"|Build|Calculate|Check|Choose|Clear|Close|Collect|Compute|Connect|Convert|Copy|Create"
    r"|Decide|Decode|Delete|Deliver|Describe|Drain|Drop|Encode|End|Ensure|Expect|Explain"
    r"|Fetch|Fill|Find|Follow|Forget|Format|Generate|Get|Give|Go|Grant|Handle|Have|Insert"
    r"|Install|Introduce|Judge|Keep|Kill|Launch|Lead|Learn|Leave|Let|Listen|Load|Look|Make"
    r"|Measure|Merge|Move|Offer|Parse|Pass|Pause|Perform|Pick|Prepare|Press|Print|Produce"
    r"|Prune|Publish|Push|Put|Raise|Read|Reckon|Refuse|Register|Release|Remove|Render|Renew"
    r"|Repeat|Replace|Require|Reserve|Reset|Resolve|Restore|Resume|Return|Rewrite|Run|Save"
    r"|Send|Serve|Settle|Show|Shrink|Skip|Sort|Spend|Spread|Start|Stop|Sync|Take|Tell|Throw"
    r"|Translate|Try|Turn|Undo|Unpack|Update|Use|Validate|Verify|Visit|Wake|Walk|Write)\b"
)


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


def is_command(node: ast.AST) -> bool:
    """Whether typer shows the docstring as a help text, which addresses its reader."""
    decorators = getattr(node, "decorator_list", [])
    return any(re.search(r"\.(command|callback)\(", ast.unparse(each)) for each in decorators)


def imperatives(source: str) -> Iterator[tuple[int, str]]:
    """Summaries that begin with a bare verb: the line, and the verb."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, documented) or is_command(node):
            continue
        if first := IMPERATIVE.match(ast.get_docstring(node) or ""):
            yield node.body[0].lineno, first[0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_summaries_name_their_actor(folder: str) -> None:
    """A summary uses an active verb with its ending ("Returns …"), or is a noun phrase."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {verb}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "_pb2" not in path.name
        for line, verb in imperatives(path.read_text("utf-8"))
    ]

    assert found == []


def test_bare_verbs_are_found() -> None:
    """Only at the start of a summary, and not in the help text of a command."""
    plain = '"""Return a."""\ndef b():\n    """Returns c. Return d."""\n'
    helping = '@app.command("x")\ndef e():\n    """Run f."""\n'

    assert list(imperatives(plain + helping)) == [(1, "Return")]


@pytest.mark.parametrize("folder", FOLDERS)
def test_programs_are_not_spoken_of_as_people(folder: str) -> None:
    """Docstrings, comments and help texts hold no words for people."""
    assert people_words(folder) == []


def test_the_words_are_found() -> None:
    """A docstring, a comment and a help text are all looked at."""
    source = '"""A told b."""\n# said\noption(help="Where the broker is; whose it is.")\n'
    found = [PEOPLE_WORDS.search(text) for _, text in texts(source)]

    assert [match and match[0] for match in found] == ["told", "whose", "said"]
