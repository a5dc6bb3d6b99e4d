import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nap_stream.errors import ConfigError
from nap_stream.files import MAX_SECRET_BYTES, full_disk, publish, read_secret, read_token
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


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")

    with pytest.raises(ConfigError, match="a device or a pipe"):
        publish(tmp_path / "out", b"")

    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


def test_a_full_disk_is_told_and_one_with_room_is_not(tmp_path: Path) -> None:
    with mounted_disk(tmp_path / "disk", 2**20) as disk:
        assert full_disk(disk.folder) == ""
        disk.fill()
        said = full_disk(disk.folder)
        assert f"The disk of {disk.folder} on " in said
        assert " is full, 0.0 of 0.0 GiB are free: make room" in said
    assert full_disk(tmp_path / "nowhere") == ""


def test_a_secret_is_read_without_white_space_at_its_ends(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("  pass wörd\n", encoding="utf-8")
    assert read_secret(file, "a.key") == "pass wörd"
    with pytest.raises(ConfigError, match="no token"):
        read_token(file, "a.key")
    file.write_text("t0ken\r\n")
    assert read_token(file, "a.key") == "t0ken"


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"one\ntwo", b"\xffhidden", b"hid\0den", b"x" * (MAX_SECRET_BYTES + 1)]
)
@pytest.mark.parametrize("read", [read_secret, read_token])
def test_what_is_no_secret_is_told_without_it(
    tmp_path: Path, content: bytes, read: Callable[[Path, str], str]
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(file, "a.key")
    assert caught.value.where == "a.key"
    assert "hid" not in str(caught.value)
    assert caught.value.__cause__ is None
    file.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        read(file, "a.key")
