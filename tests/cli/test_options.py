import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from nap_stream.cli.options import progress_bar, progress_bars, require_can_make
from nap_stream.errors import ConfigError


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


def test_what_is_there_or_can_be_made_is_left_as_it_is(tmp_path: Path) -> None:
    require_can_make(tmp_path)
    require_can_make(tmp_path / "new" / "below")
    require_can_make(tmp_path / "new" / ".." / "beside")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "new", "new/below"])
def test_a_file_is_not_a_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"file is not a folder.*--out"):
        require_can_make(tmp_path / "file" / below)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The super-user may write everywhere, so that no permission tells.
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        require_can_make(tmp_path / "new" / "below")
