"""Excel workbooks of any length: rows of text cells in, bytes out, at constant memory.

A workbook is a ZIP file of XML (ECMA-376, Part 1, "SpreadsheetML"). This one has what a table
needs and nothing else: sheets with texts in place, numbers, and times as days since 1900 with
a format. A library makes an object of every cell, which takes minutes for a million rows.
"""

import zipfile
from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import Enum
from types import TracebackType
from typing import IO, Final, Self
from xml.sax.saxutils import escape

# Excel's own limits: 1,048,576 rows with the header, and the length of a text.
SHEET_ROWS: Final = 1_048_575
CELL_CHARACTERS: Final = 32_767
# ZIP's limit without extensions that some programs can't read.
SHEET_BYTES: Final = 1 << 30
# Twice as fast as the default, for a file a tenth larger.
COMPRESSION: Final = 1
# Day 1 is 1 January 1900; the format counts a 29 February of that year, which there was not.
_DAY_ZERO: Final = datetime(1899, 12, 30)  # noqa: DTZ001 - spreadsheets have no time zones
_DAY_S: Final = 86_400

_XML: Final = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_MAIN: Final = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE: Final = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE: Final = "http://schemas.openxmlformats.org/package/2006"
_TYPES: Final = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_EMPTY: Final = "<c/>"
_SHEET: Final = "worksheets/sheet{}.xml"
# Style 1 is that of times.
_STYLES: Final = f"""{_XML}<styleSheet xmlns="{_MAIN}">\
<numFmts count="1"><numFmt numFmtId="164" formatCode="yyyy\\-mm\\-dd\\ hh:mm:ss"/></numFmts>\
<fonts count="1"><font/></fonts>\
<fills count="2"><fill><patternFill patternType="none"/></fill>\
<fill><patternFill patternType="gray125"/></fill></fills>\
<borders count="1"><border/></borders><cellStyleXfs count="1"><xf/></cellStyleXfs>\
<cellXfs count="2"><xf xfId="0"/><xf numFmtId="164" xfId="0" applyNumberFormat="1"/></cellXfs>\
<cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles>\
</styleSheet>"""


class Kind(Enum):
    """What the cells of a column are; all come as text, empty where unknown."""

    TEXT = "text"
    NUMBER = "number"
    # ISO 8601 in UTC, such as 2026-11-26T01:02:03.456Z.
    TIME = "time"


class Workbook:
    """A workbook that is written row by row; further sheets begin where one is full.

    Args:
        output: Takes the bytes; it need not be seekable.
        headers: The first row of each sheet.
        kinds: What each column holds.
    """

    def __init__(self, output: IO[bytes], headers: Sequence[str], kinds: Sequence[Kind]) -> None:
        self.rows = 0
        self._zip = zipfile.ZipFile(
            output, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION, allowZip64=False
        )
        self._headers = headers
        self._forms = [_FORMS[kind] for kind in kinds]
        self._sheets = 0
        self._sheet: IO[bytes] | None = None
        self._left_rows = self._left_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                if self._sheet is None:
                    self._begin()
                self._end()
                self._finish()
                self._zip.close()
        finally:
            # After a failure of the output, Python would try to close the ZIP file once more.
            self._zip.fp = None

    def write(self, rows: Iterable[Sequence[str]]) -> None:
        """Writes some rows; texts must hold no control characters."""
        if self._left_bytes <= 0:
            self._begin()
        lines: list[str] = []
        forms = self._forms
        for row in rows:
            if len(lines) == self._left_rows:
                self._put(lines)
                self._begin()
                lines = []
            cells = [form(cell) if cell else _EMPTY for form, cell in zip(forms, row, strict=True)]
            lines.append(f"<row>{''.join(cells)}</row>")
        self._put(lines)

    def _put(self, lines: Sequence[str]) -> None:
        assert self._sheet is not None
        data = "".join(lines).encode()
        self._sheet.write(data)
        self.rows += len(lines)
        self._left_rows -= len(lines)
        self._left_bytes -= len(data)

    def _begin(self) -> None:
        self._end()
        self._sheets += 1
        self._left_rows, self._left_bytes = SHEET_ROWS, SHEET_BYTES
        self._sheet = self._zip.open(f"xl/{_SHEET.format(self._sheets)}", "w")
        head = "".join(map(_text, self._headers))
        self._sheet.write(
            f'{_XML}<worksheet xmlns="{_MAIN}"><sheetData><row>{head}</row>'.encode()
        )

    def _end(self) -> None:
        if self._sheet is not None:
            self._sheet.write(b"</sheetData></worksheet>")
            self._sheet.close()
            self._sheet = None

    def _finish(self) -> None:
        """Writes what names the sheets."""
        numbers = range(1, self._sheets + 1)
        sheets = "".join(f'<sheet name="Deals{n}" sheetId="{n}" r:id="rId{n}"/>' for n in numbers)
        links = "".join(
            f'<Relationship Id="rId{n}" Type="{_OFFICE}/worksheet" Target="{_SHEET.format(n)}"/>'
            for n in numbers
        )
        types = "".join(
            f'<Override PartName="/xl/{_SHEET.format(n)}" ContentType="{_TYPES}.worksheet+xml"/>'
            for n in numbers
        )
        parts = {
            "xl/styles.xml": _STYLES,
            "xl/workbook.xml": f'{_XML}<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}">'
            f"<sheets>{sheets}</sheets></workbook>",
            "xl/_rels/workbook.xml.rels": f'{_XML}<Relationships xmlns="{_PACKAGE}/relationships">'
            f'{links}<Relationship Id="rId0" Type="{_OFFICE}/styles" Target="styles.xml"/>'
            "</Relationships>",
            "_rels/.rels": f'{_XML}<Relationships xmlns="{_PACKAGE}/relationships">'
            f'<Relationship Id="rId1" Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/>'
            "</Relationships>",
            "[Content_Types].xml": f'{_XML}<Types xmlns="{_PACKAGE}/content-types">'
            '<Default Extension="rels"'
            ' ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPES}.sheet.main+xml"/>'
            f'<Override PartName="/xl/styles.xml" ContentType="{_TYPES}.styles+xml"/>'
            f"{types}</Types>",
        }
        for name, text in parts.items():
            self._zip.writestr(name, text)


def _text(cell: str) -> str:
    text = escape(cell[:CELL_CHARACTERS])
    return f'<c t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'


def _number(cell: str) -> str:
    return f"<c><v>{cell}</v></c>"


def _time(cell: str) -> str:
    passed = datetime.fromisoformat(cell[:-1]) - _DAY_ZERO
    return f'<c s="1"><v>{passed.days + passed.seconds / _DAY_S:.6f}</v></c>'


_FORMS: Final = {Kind.TEXT: _text, Kind.NUMBER: _number, Kind.TIME: _time}
