from pathlib import Path

import pytest

from nap_stream.errors import ConfigError
from nap_stream.files import full_disk, publish
from tests.support.small_disk import mounted_disk


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


def test_a_full_disk_is_told_and_one_with_room_is_not(tmp_path: Path) -> None:
    with mounted_disk(tmp_path / "disk", 2**20) as disk:
        assert full_disk(disk.folder) == ""
        disk.fill()
        said = full_disk(disk.folder)
        assert f"The disk of {disk.folder} on " in said
        assert " is full, 0.0 of 0.0 GiB are free: make room" in said
    assert full_disk(tmp_path / "nowhere") == ""
