import io

import pytest
from rich.console import Console

from nap_stream.cli.options import progress_bar, progress_bars


def terminal() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=True, color_system=None, width=120), text


def test_bars_appear_once_they_are_told_of_something() -> None:
    console, text = terminal()
    with progress_bars(console) as new_bar:
        reading, bootstrap = new_bar("evaluating", "images"), new_bar("bootstrap", "pairs")
        reading(3, 9)
        reading(9, 9)
    assert "evaluating" in text.getvalue()
    assert "9/9 images" in text.getvalue()
    assert "bootstrap" not in text.getvalue()

    console, text = terminal()
    with progress_bars(console) as new_bar:
        reading, bootstrap = new_bar("evaluating", "images"), new_bar("bootstrap", "pairs")
        reading(9, 9)
        bootstrap(2, 2)
    shown = text.getvalue()
    assert "2/2 pairs" in shown
    assert shown.rindex("evaluating") < shown.rindex("bootstrap")


def test_nothing_is_shown_where_no_person_waits(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar("producing", unit="images") as advance:
        advance(1, 2)
    with progress_bars() as new_bar:
        new_bar("calibrating", "images")(1, None)
    assert capfd.readouterr() == ("", "")
