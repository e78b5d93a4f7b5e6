"""A page as elements: enough of a DOM to check structure, names and texts."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"area", "br", "hr", "img", "input", "link", "meta", "rect", "path", "circle", "line"}


@dataclass
class Element:
    """An element with its attributes, children and texts in order."""

    name: str
    attributes: dict[str, str]
    children: list["Element | str"] = field(default_factory=list)

    def all(self, *names: str) -> list["Element"]:
        """Every element below with one of these names; all elements without names."""
        return [each for each in self._below() if not names or each.name in names]

    def one(self, name: str, **attributes: str) -> "Element":
        """The only such element."""
        [found] = self.find(name, **attributes)
        return found

    def find(self, name: str, **attributes: str) -> list["Element"]:
        """Every such element; underscores in names stand for dashes."""
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [
            each
            for each in self.all(name)
            if all(each.attributes.get(key) == value for key, value in wanted.items())
        ]

    @property
    def text(self) -> str:
        """All text below, blanks collapsed."""
        return " ".join(" ".join(self._texts()).split())

    def _below(self) -> Iterator["Element"]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child._below()

    def _texts(self) -> Iterator[str]:
        for child in self.children:
            if isinstance(child, Element):
                yield from child._texts()
            else:
                yield child


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("document", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self._open[-1].name == tag, f"</{tag}> closes <{self._open[-1].name}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def parse(text: str) -> Element:
    """The document; every element must be closed where it was opened."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert len(parser._open) == 1, f"not closed: {[each.name for each in parser._open[1:]]}"
    return parser.root
