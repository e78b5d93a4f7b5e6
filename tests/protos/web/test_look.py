"""The stylesheet: enough contrast in light and dark; the script: small, and of this project."""

import re
from itertools import product
from pathlib import Path

import pytest

from protos.web.pages import FOLDER

CSS = (FOLDER / "assets" / "console.css").read_text("utf-8")
SCRIPT = FOLDER / "assets" / "console.js"
ROOT = Path(__file__).parents[3]
# WCAG 2.2, 1.4.3 and 1.4.11: texts, and the parts of controls and charts.
TEXT, GRAPHICS = 4.5, 3.0


def colours(scheme: int) -> dict[str, str]:
    """The variables of the light scheme (0) or the dark one (1)."""
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[scheme]))


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """The ratio of two colours, 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_and_parts_have_contrast(scheme: int) -> None:
    """Level AA on every ground."""
    found = colours(scheme)
    texts = product(("text", "quiet", "link", "good", "warn", "bad"), ("ground", "raised"))
    parts = product(("line", "fill", "fill-2", "fill-3"), ("ground", "raised"))
    weak = [pair for pair in texts if contrast(*(found[name] for name in pair)) < TEXT]
    weak += [pair for pair in parts if contrast(*(found[name] for name in pair)) < GRAPHICS]

    assert weak == []
    assert contrast(found["on-fill"], found["fill"]) >= TEXT


def test_focus_is_visible() -> None:
    """The ring round what has the focus is not taken away anywhere."""
    assert ":focus-visible { outline: 3px" in CSS
    assert "outline: none" not in CSS
    assert "outline: 0" not in CSS


def test_nothing_comes_from_outside() -> None:
    """No font, picture or script of another site; nothing that the policy would refuse."""
    script = SCRIPT.read_text("utf-8")

    assert "url(" not in CSS
    assert "@import" not in CSS
    assert not re.search(r"https?://|\beval\b|innerHTML|document\.write|\.style\b", script)


def test_one_small_script() -> None:
    """At most 200 lines, and the only script of the project."""
    scripts = [
        path.relative_to(ROOT).as_posix()
        for folder in ("broker", "fetcher", "protos", "deploy")
        for path in (ROOT / folder).rglob("*.js")
    ]

    assert len(SCRIPT.read_text("utf-8").splitlines()) <= 200
    assert scripts == ["protos/web/assets/console.js"]
