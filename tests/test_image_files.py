from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nap_stream.errors import InputDataError
from nap_stream.image_files import ImageFile, chosen_images, count_images, iter_images


def write(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=100)
    return path


def test_a_folder_in_order_of_paths_with_labels(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/10.jpg", "a/deep/x.png", "top.jpg", "notes.txt"):
        write(tmp_path, name, name.encode())
    write(tmp_path, ".hidden", b"")
    write(tmp_path, ".git/config", b"")
    assert list(iter_images(tmp_path)) == [
        ImageFile("a/deep/x.png", "a", b"a/deep/x.png"),
        ImageFile("b/10.jpg", "b", b"b/10.jpg"),
        ImageFile("b/2.jpg", "b", b"b/2.jpg"),
        ImageFile("notes.txt", None, b"notes.txt"),
        ImageFile("top.jpg", None, b"top.jpg"),
    ]
    assert count_images(tmp_path) == 5


def test_a_linked_file_counts(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/x", b"x")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "images" / "dangling").symlink_to(tmp_path / "nowhere")
    assert [file.data for file in iter_images(tmp_path / "images")] == [b"x"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_parquet_file(tmp_path: Path, kind: pa.DataType) -> None:
    path = parquet(
        tmp_path / "x.parquet",
        image=pa.array([b"1", b"2", None], kind),
        label=pa.array(["cat", None, "dog"]).dictionary_encode(),
        name=pa.array(["a.jpg", None, "c.jpg"]),
        more=pa.array([1, 2, 3]),
    )
    assert list(iter_images(path)) == [
        ImageFile("a.jpg", "cat", b"1"),
        ImageFile("1", None, b"2"),
        ImageFile("c.jpg", "dog", b""),
    ]
    assert count_images(path) == 3


def test_a_parquet_file_of_many_rows_without_names(tmp_path: Path) -> None:
    images = [str(index).encode() for index in range(333)]
    path = parquet(tmp_path / "x.parquet", image=pa.array(images))
    found = list(iter_images(path))
    assert [file.data for file in found] == images
    assert [file.name for file in found] == [str(index) for index in range(333)]
    assert {file.label for file in found} == {None}


def test_chosen_files_of_a_folder_are_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b/2.jpg", "b/10.jpg", "a/deep/x.png", "top.jpg"):
        write(tmp_path, name, name.encode())
    every = list(iter_images(tmp_path))
    read: list[str] = []
    read_bytes = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    assert list(chosen_images(tmp_path, {0, 2, 9})) == [every[0], every[2]]
    assert read == ["x.png", "2.jpg"]


@pytest.mark.parametrize("chosen", [set(), {0}, {99, 100}, {3, 250, 332}, set(range(333))])
def test_chosen_rows_of_a_parquet_file(tmp_path: Path, chosen: set[int]) -> None:
    images = [str(index).encode() for index in range(333)]
    path = parquet(tmp_path / "x.parquet", image=pa.array(images))
    every = list(iter_images(path))
    assert list(chosen_images(path, chosen)) == [every[row] for row in sorted(chosen)]


def refused(path: Path) -> str:
    errors = []
    for read in (count_images, lambda path: list(iter_images(path))):
        with pytest.raises(InputDataError) as caught:
            read(path)
        assert caught.value.where == str(path)
        errors.append(caught.value.problem)
    assert errors[0] == errors[1]
    return errors[0]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent") == "there is no such folder or file"
    assert refused(tmp_path) == "the folder holds no files"
    write(tmp_path, "x.parquet", b"not parquet")
    assert "is not Parquet" in refused(tmp_path / "x.parquet")
    assert "(picture: binary)" in refused(parquet(tmp_path / "1", picture=pa.array([b"x"])))
    assert "(image: string)" in refused(parquet(tmp_path / "2", image=pa.array(["x"])))
    empty = parquet(tmp_path / "3", image=pa.array([], pa.binary()))
    assert refused(empty) == "the Parquet file has no rows"


def test_a_parquet_file_that_is_damaged_further_on(tmp_path: Path) -> None:
    images = [bytes([index]) * 1000 for index in range(200)]
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"image": pa.array(images)}),
        path,
        row_group_size=100,
        compression="zstd",
        use_dictionary=False,
    )
    data = bytearray(path.read_bytes())
    group = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data[group.data_page_offset : group.data_page_offset + group.total_compressed_size] = (
        b"\xff" * group.total_compressed_size
    )
    path.write_bytes(data)
    with pytest.raises(InputDataError, match="cannot be read past row"):
        list(iter_images(path))
    first, last = chosen_images(path, {7, 99})
    assert (first.data, last.data) == (images[7], images[99])
