from pathlib import Path

import pytest

from nap_stream.errors import ConfigError
from nap_stream.files import publish


def test_replaces_a_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "made" / "table.csv"

    publish(path, b"first")
    publish(path, b"second")

    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")

    with pytest.raises(ConfigError, match="cannot be written") as caught:
        publish(tmp_path / "results" / "table.csv", b"")

    assert caught.value.where == str(tmp_path / "results" / "table.csv")


def test_a_name_that_is_a_folder_is_refused_without_leftovers(tmp_path: Path) -> None:
    (tmp_path / "table.csv").mkdir()

    with pytest.raises(ConfigError, match="cannot be written"):
        publish(tmp_path / "table.csv", b"")

    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
