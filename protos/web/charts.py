"""Charts as inline SVG, drawn on the server; pure.

Colours are classes of the stylesheet, so that dark mode and the Content-Security-Policy,
which allows no inline style, hold for charts too. Every chart has a title and a summary for
screen readers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

from markupsafe import Markup
from markupsafe import escape as escape_html

from protos.process.visible_text import visible

WIDTH: Final = 900
HEIGHT: Final = 260
LEFT, RIGHT, TOP, BOTTOM = 70, 12, 12, 28
BAR_HEIGHT: Final = 14
LABELS_X: Final = 6
LABELS_Y: Final = 4
DAY_S: Final = 86_400
SERIES_CLASSES: Final = 4
# Points beyond it are finer than a pixel.
POINTS_MAX: Final = 2_000


@dataclass(frozen=True, slots=True)
class Point:
    """A value from a moment on; None: none. `low` and `high` span a rolled-up period."""

    time_s: float
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """A named line."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something at a moment: a dot on a value, or a tick at the bottom."""

    time_s: float
    value: float | None
    kind: str
    words: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to pixels."""

    first_s: float
    last_s: float
    low: float
    high: float

    def x(self, time_s: float) -> float:
        """The column of a moment."""
        span = max(self.last_s - self.first_s, 1e-9)
        share = min(max((time_s - self.first_s) / span, 0), 1)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """The row of a value."""
        share = (value - self.low) / max(self.high - self.low, 1e-9)
        return round(HEIGHT - BOTTOM - min(max(share, 0), 1) * (HEIGHT - TOP - BOTTOM), 1)


def step_chart(
    series: Sequence[Series],
    *,
    title: str,
    until_s: float,
    words: Sequence[str] = (),
    marks: Sequence[Mark] = (),
    decimals: int = 0,
) -> Markup:
    """Draws values that hold until the next one, over time.

    Args:
        series: The lines; at most four can be distinguished.
        title: For screen readers and pointers.
        until_s: The end, in Unix seconds; the last values hold until then.
        words: Sentences that sum it up.
        marks: Dots and ticks.
        decimals: Of the labels; values are divided by as many tens.
    """
    values = [
        value
        for line in series
        for point in line.points
        for value in (point.value, point.low, point.high)
        if value is not None
    ] + [mark.value for mark in marks if mark.value is not None]
    starts = [point.time_s for line in series for point in line.points]
    starts += [mark.time_s for mark in marks]
    if not values or not starts:
        return Markup('<p class="quiet">Nothing to draw yet.</p>')
    scale = Scale(min(starts), max(until_s, *starts), *_rounded(min(0, *values), max(values)))
    parts = [*_frame(scale, decimals)]
    for number, line in enumerate(series):
        parts += _line(line.points, scale, number % SERIES_CLASSES)
    parts += [_mark(mark, scale) for mark in marks]
    summary = escape(" ".join(words))
    return Markup(  # noqa: S704 - texts are escaped, all else are numbers
        f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f"<title>{escape(title)}</title><desc>{summary}</desc>{''.join(parts)}</svg>"
    ) + (legend([line.name for line in series]) if len(series) > 1 else Markup(""))


def legend(names: Sequence[str]) -> Markup:
    """Names the lines of a chart, each beside a sample."""
    items = "".join(
        '<li><svg aria-hidden="true" width="30" height="10" viewBox="0 0 30 10">'
        f'<path class="line series-{number % SERIES_CLASSES}" d="M0 5H30"/></svg>'
        f"{escape(name)}</li>"
        for number, name in enumerate(names)
    )
    return Markup(f'<ul class="legend">{items}</ul>')  # noqa: S704 - names are escaped


def bar(share: float, *, width: int = 160) -> Markup:
    """Draws a share of 0 to 1 as a bar; the number stands beside it in the page."""
    filled = round(min(max(share, 0), 1) * width, 1)
    return Markup(  # noqa: S704 - numbers only
        f'<svg aria-hidden="true" width="{width}" height="{BAR_HEIGHT}"'
        f' viewBox="0 0 {width} {BAR_HEIGHT}">'
        f'<rect class="bar" width="{filled}" height="{BAR_HEIGHT}" rx="2"/></svg>'
    )


def escape(text: str) -> str:
    """Makes *text* harmless: escaped for HTML, hidden characters as codes."""
    return str(escape_html(visible(text)))


def _line(points: Sequence[Point], scale: Scale, number: int) -> list[str]:
    drawn = _thinned(sorted(points, key=lambda point: point.time_s))
    path: list[str] = []
    ranges: list[str] = []
    pen_down = False
    ends = [*(point.time_s for point in drawn[1:]), scale.last_s]
    for point, end_s in zip(drawn, ends, strict=True):
        x, end_x = scale.x(point.time_s), scale.x(end_s)
        if point.low is not None and point.high is not None:
            top, bottom = scale.y(point.high), scale.y(point.low)
            size = f'width="{max(round(end_x - x, 1), 1)}" height="{round(bottom - top, 1)}"'
            ranges.append(f'<rect class="range" x="{x}" y="{top}" {size}/>')
        if point.value is None:
            pen_down = False
            continue
        y = scale.y(point.value)
        path.append(f"L{x} {y}H{end_x}" if pen_down else f"M{x} {y}H{end_x}")
        pen_down = True
    return [*ranges, f'<path class="line series-{number}" d="{"".join(path)}"/>']


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """Leaves out points so that a pixel has one; first and last stay."""
    if len(points) <= POINTS_MAX:
        return points
    step = -(-len(points) // POINTS_MAX)
    return [*points[:-1:step], points[-1]]


def _mark(mark: Mark, scale: Scale) -> str:
    x, words = scale.x(mark.time_s), escape(mark.words)
    if mark.value is None:
        bottom = HEIGHT - BOTTOM
        line = (
            f'<line class="{escape(mark.kind)}" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom - 8}">'
        )
        return f"{line}<title>{words}</title></line>"
    dot = f'<circle class="dot {escape(mark.kind)}" cx="{x}" cy="{scale.y(mark.value)}" r="3">'
    return f"{dot}<title>{words}</title></circle>"


def _frame(scale: Scale, decimals: int) -> list[str]:
    parts = []
    steps = LABELS_Y
    for number in range(steps + 1):
        value = scale.low + (scale.high - scale.low) * number / steps
        y = scale.y(value)
        label = f"{value / 10**decimals:,.{decimals}f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{label}</text>')
    span_s = scale.last_s - scale.first_s
    form = "%H:%M:%S" if span_s < DAY_S / 96 else "%H:%M" if span_s < 2 * DAY_S else "%d %b %y"
    times = [scale.first_s + span_s * number / LABELS_X for number in range(LABELS_X + 1)]
    labels = [f"{datetime.fromtimestamp(time_s, UTC):{form}}" for time_s in times]
    for number, (time_s, label) in enumerate(zip(times, labels, strict=True)):
        if number and label == labels[number - 1]:
            continue
        anchor = "start" if number == 0 else "end" if number == LABELS_X else "middle"
        x = scale.x(time_s)
        parts.append(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="{anchor}">{label}</text>')
    return parts


def _rounded(low: float, high: float) -> tuple[float, float]:
    """Widens a range to round numbers, so that its quarters are round too."""
    span = max(high - low, 1)
    magnitude = 10 ** (len(str(int(span))) - 1)
    steps = (1, 2, 4, 5, 8, 10, 20)
    for lower, upper in pairwise((0, *steps)):
        unit = upper * magnitude
        if span <= unit and span > lower * magnitude:
            break
    quarter = max(unit / 4, 0.25)
    first = quarter * (low // quarter)
    while first + 4 * quarter < high:
        quarter *= 2
        first = quarter * (low // quarter)
    return first, first + 4 * quarter
