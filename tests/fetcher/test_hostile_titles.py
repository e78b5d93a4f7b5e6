"""Every table command shows acting characters of the database as codes."""

import pytest

from protos.process.visible_text import visible
from tests.fetcher.keepa_pages import DOMAIN
from tests.fix_fetcher import SELECTION, StartWorld, World

# Rich markup, OSC and a bidi override; short enough for a cell of the table.
HOSTILE = "[b]x[/b]\x1b]0;o\x07\u202e"
SHOWN = "[b]x[/b]\\e]0;o\\a\\u202e"
# Each table command with the number of hostile texts that it prints at least.
COMMANDS = {
    ("scans",): 1,
    ("scans", "--wide"): 1,
    ("deals",): 2,
    ("rejections",): 1,
    ("deals", "explain", "ASIN"): 2,
    ("pages", "dead"): 2,
    ("doctor",): 0,
    ("prune", "--days", "365"): 0,
    ("queries", "check"): 0,
}


@pytest.fixture
def world(start_world: StartWorld) -> World:
    """A world with deals, verdicts and a dead page; all their texts are hostile."""
    world = start_world()
    world.write_query("used", {"selection": SELECTION, "rules": {"rank": {"max": 100_000}}})
    world.collect()
    for statement in (
        "UPDATE listings SET title = %s",
        "UPDATE scans SET query = %s",
        "UPDATE verdicts SET query = %s",
        "UPDATE scan_pages SET state = 'dead', error = %s",
    ):
        world.execute(statement, HOSTILE)
    return world


def test_table_commands_show_codes(world: World) -> None:
    """Titles, query names and errors appear as codes, and no output holds one raw."""
    asin = world.value("SELECT asin FROM verdicts WHERE domain_id = %s LIMIT 1", DOMAIN)
    outputs = {
        words: world.command(*(asin if word == "ASIN" else word for word in words))
        for words in COMMANDS
    }
    raw = {
        words: done.stdout + done.stderr
        for words, done in outputs.items()
        if visible(done.stdout + done.stderr, lines=True) != done.stdout + done.stderr
    }
    hidden = {
        words: outputs[words].stdout
        for words, least in COMMANDS.items()
        if outputs[words].stdout.count(SHOWN) < least
    }

    assert raw == {}
    assert hidden == {}
    assert {words: done.stderr for words, done in outputs.items() if done.returncode > 1} == {}
