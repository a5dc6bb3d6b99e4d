import os
from pathlib import Path

import pytest

from nap_stream.cli.options import require_can_make
from nap_stream.errors import ConfigError


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
