"""Charts are drawn from any numbers, and hostile names stay text."""

import xml.etree.ElementTree as ET

import pytest

from protos.web.charts import Mark, Point, Scale, Series, bar, step_chart

NOON_S = 1_790_000_000.0


def drawn(*values: float | None, **options: object) -> str:
    """A chart of one line with these values, a minute apart."""
    points = [Point(NOON_S + 60 * n, value) for n, value in enumerate(values)]
    return str(
        step_chart([Series("a", points)], title="t", until_s=NOON_S + 3600, **options)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "values",
    [(0,), (5, 5), (-40, 300), (None, 4, None, 7), (0.2, 0.4), (10**12, 1), (-3, -1)],
)
def test_any_values_are_drawn_within_the_frame(values: tuple[float | None, ...]) -> None:
    """A chart is well-formed XML, and all of its labels are numbers in order."""
    root = ET.fromstring(drawn(*values))
    labels = [
        float((text.text or "").replace(",", ""))
        for text in root.findall("text")
        if text.get("text-anchor") == "end" and ":" not in (text.text or "")
    ]

    assert labels[:5] == sorted(labels[:5])
    assert labels[0] <= min(v for v in values if v is not None)
    assert labels[4] >= max(v for v in values if v is not None)


def test_a_gap_is_no_line() -> None:
    """Where there was no offer, the line is interrupted."""
    assert drawn(5, None, 6).count("M") == 2
    assert drawn(5, 7, 6).count("M") == 1


def test_nothing_is_nothing() -> None:
    """Without values there is a sentence, not an empty picture."""
    assert "<svg" not in drawn()
    assert "<svg" not in drawn(None)


def test_names_are_escaped() -> None:
    """A title of Keepa's can't break out of the picture."""
    hostile = '"><script>alert(1)</script>'
    mark = Mark(NOON_S, 5, "foreign", hostile)
    text = str(
        step_chart(
            [Series(hostile, [Point(NOON_S, 5)]), Series("b", [Point(NOON_S, 6)])],
            title=hostile,
            until_s=NOON_S,
            words=[hostile],
            marks=[mark, Mark(NOON_S, None, "refill", hostile)],
        )
    )

    assert "<script" not in text
    assert "style=" not in text


def test_many_points_are_thinned() -> None:
    """A chart of a hundred thousand changes stays small."""
    assert len(drawn(*range(100_000))) < 100_000


def test_values_outside_are_clipped() -> None:
    """Nothing is drawn outside of the frame."""
    scale = Scale(0, 10, 0, 10)

    assert scale.x(-5) == scale.x(0)
    assert scale.y(50) == scale.y(10)
    assert 'width="160"' in str(bar(7))
