from pathlib import Path

import pytest
from PIL import Image

from nap_stream.demo.display import Picture, chart, write_png
from nap_stream.demo.outcome import HistoryPoint

START_MS = 1_000_000


def picture(*fractions: float) -> Picture:
    """A point each second from the start of ten; 0.2 fires."""
    return Picture(
        history=[
            HistoryPoint(START_MS + 1_000 * number, fraction, 0.2)
            for number, fraction in enumerate(fractions)
        ],
        started_ms=START_MS,
        phases=[("before", START_MS + 5_000), ("after", START_MS + 10_000)],
        alerts=[("firing", START_MS + 6_000), ("resolved", START_MS + 8_000)],
    )


def test_writes_a_png_that_is_not_blank(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"

    write_png(picture(0.05, 0.1, 0.3, 0.1), path)

    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (1_400, 630)
        assert len(image.convert("RGB").getcolors(1_000_000) or ()) > 10


def test_draws_fractions_to_scale_and_the_bound_between_them() -> None:
    text = chart(picture(0.0, 0.1, 0.2, 0.3, 0.4), width=17, height=4)

    assert text.plain.splitlines()[:4] == [
        "   40%│    ██████",
        " 20.0%│───███████",
        "      │  ████████",
        "      │ █████████",
    ]


def test_the_axis_shows_the_phases() -> None:
    axis, titles = chart(picture(0.1), width=27, height=4).plain.splitlines()[4:]

    assert axis == "      └─────────┴─────────┴"
    assert titles.rstrip() == "       before    after"


def test_what_reaches_the_bound_is_red() -> None:
    text = chart(picture(0.19, 0.2), width=17, height=4)

    drawn = [(span.style, text.plain[span.start : span.end]) for span in text.spans]
    assert [(style, run) for style, run in drawn if "█" in run][-1] == ("red", "█" * 9)
    assert drawn.count(("green", "█")) == 3


@pytest.mark.parametrize("height", [1, 12])
def test_there_may_be_nothing_to_draw(tmp_path: Path, height: int) -> None:
    empty = Picture(history=[], started_ms=START_MS, phases=[], alerts=[])

    write_png(empty, tmp_path / "picture.png")

    assert len(chart(empty, width=20, height=height).plain.splitlines()) == height + 2
