"""What the documents promise exists: files, commands, options, make targets, modules."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import broker.__main__
import deploy.keepa_simulator.__main__
import fetcher.__main__
import fetcher.gateway.__main__
from tests import settings_tables

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for folder in (".", "broker", "fetcher", "fetcher/gateway", "protos", "tests", "deploy/*")
    for path in ROOT.glob(f"{folder}/*.md")
)
README_LINES_MAX = 120
COMMANDS: dict[str, Any] = {
    "tokenbroker": typer.main.get_command(broker.__main__.app),
    "dealfetcher": typer.main.get_command(fetcher.__main__.app),
    "keepa-gateway": typer.main.get_command(fetcher.gateway.__main__.app),
    "keepa-simulator": typer.main.get_command(deploy.keepa_simulator.__main__.app),
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")


def code_lines(path: Path) -> Iterator[str]:
    """Commands of *path*: lines of its fenced blocks without a language, and inline code."""
    text = path.read_text("utf-8")
    for language, block in FENCE.findall(text):
        if not language:
            yield from block.splitlines()
    yield from INLINE.findall(FENCE.sub("", text))


def words(line: str) -> list[str]:
    """The words of a shell line without its comment; [] for a line that is no shell."""
    try:
        return shlex.split(line.split("   #", maxsplit=1)[0], comments=True)
    except ValueError:
        return []


def of(program: str) -> list[tuple[str, list[str]]]:
    """Every use of *program* in the documents: the place, and the words behind it."""
    found = []
    for path in DOCUMENTS:
        for line in code_lines(path):
            parts = words(line)
            if program in parts:
                start = parts.index(program)
                # An exported variable or a docker command may stand before it.
                found.append((f"{path.relative_to(ROOT)}: {line}", parts[start + 1 :]))
    return found


def slug(heading: str) -> str:
    """The anchor that GitHub gives *heading*."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    """The anchors of a document."""
    return {
        slug(found) for found in re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    }


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    """A relative link names a file that exists, and a heading in it."""
    broken = []
    for target, anchor in LINK.findall(FENCE.sub("", path.read_text("utf-8"))):
        file = (path.parent / target).resolve() if target else path
        if not file.exists():
            broken.append(target)
        elif anchor and file.suffix == ".md" and anchor[1:] not in anchors(file):
            broken.append(target + anchor)

    assert broken == []


@pytest.mark.parametrize("program", COMMANDS)
def test_commands_take_what_the_documents_write(program: str) -> None:
    """Each command line of the documents parses: subcommands, options, arguments."""
    lines = of(program)
    refused = []
    for place, arguments in lines:
        command, rest = COMMANDS[program], list(arguments)
        while rest and hasattr(command, "commands") and rest[0] in command.commands:
            command = command.commands[rest.pop(0)]
        try:
            command.make_context(program, rest)
        except Exception as exc:  # noqa: BLE001 - --help exits, the others print the error
            if type(exc).__name__ not in {"Exit", "NoArgsIsHelpError"}:
                refused.append(f"{place}: {exc}")

    assert lines
    assert refused == []


def test_make_targets_exist() -> None:
    """Each `make …` of the documents is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    used = {
        rest[0]: place for place, rest in of("make") if rest and re.fullmatch(r"[a-z-]+", rest[0])
    }

    assert used
    assert {target: place for target, place in used.items() if target not in targets} == {}


def test_modules_exist() -> None:
    """Each `python -m …` of the documents is a module of the project."""
    used = {rest[1] for _, rest in of("python") if rest[:1] == ["-m"]}
    missing = {
        name
        for name in used
        if not any(
            (ROOT / name.replace(".", "/")).with_suffix(end).exists() for end in (".py", "")
        )
    }

    assert used
    assert missing == set()


def test_the_readme_is_short() -> None:
    """README holds what every reader needs first; the rest stands beside what it describes."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= README_LINES_MAX


@pytest.mark.parametrize("name", settings_tables.DOCUMENTS)
def test_settings_tables_are_up_to_date(name: str) -> None:
    """The tables are what `make docs` writes from the settings classes."""
    text = (ROOT / name).read_text("utf-8")

    assert settings_tables.TABLE.search(text) is not None
    assert settings_tables.filled(text) == text


def test_every_setting_of_the_short_table_exists() -> None:
    """README's six settings are among those of the complete tables."""
    complete = "".join((ROOT / name).read_text("utf-8") for name in settings_tables.DOCUMENTS)
    short = re.findall(
        r"^\| `([A-Z_]+)` \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )

    assert len(short) == 6
    assert [name for name in short if f"| `{name}` |" not in complete] == []
