"""Image files to calibrate on or to send: a folder, or a Parquet file."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nap_stream.errors import InputDataError

_ROWS_AT_ONCE = 64
_IMAGE_TYPES = (pa.binary(), pa.large_binary())


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image file's bytes as they are.

    ``name`` is the path within the folder, or the Parquet file's ``name`` (its row number where
    there is none). ``label`` is the first sub-folder, or the Parquet file's ``label``.
    """

    name: str
    label: str | None
    data: bytes


def iter_images(path: Path) -> Iterator[ImageFile]:
    """Read images one by one, in a fixed order.

    Of a folder all files are taken, sub-folders included, sorted by path; hidden ones are left out.
    A Parquet file has a binary column ``image``, and perhaps ``label`` and ``name``. Whether the
    bytes are an image is not checked; a null has none.

    Raises:
        InputDataError: There is no such path, it holds nothing, or it cannot be read.
    """
    if path.is_dir():
        yield from _from_folder(path)
    else:
        yield from _from_parquet(path)


def chosen_images(path: Path, chosen: set[int]) -> Iterator[ImageFile]:
    """Give those images of `iter_images` whose numbers, from 0, are ``chosen``; in its order.

    Other files of a folder are not read, nor row groups of a Parquet file without a chosen row.

    Raises:
        InputDataError: As `iter_images`.
    """
    if path.is_dir():
        yield from _from_folder(path, chosen)
    else:
        yield from _from_parquet(path, chosen)


def count_images(path: Path) -> int:
    """How many images `iter_images` gives, without reading them.

    Raises:
        InputDataError: As `iter_images`.
    """
    if path.is_dir():
        return len(files_of(path))
    with _parquet(path) as parquet:
        return int(parquet.metadata.num_rows)


def _from_folder(folder: Path, chosen: set[int] | None = None) -> Iterator[ImageFile]:
    for number, file in enumerate(files_of(folder)):
        if chosen is not None and number not in chosen:
            continue
        relative = file.relative_to(folder)
        label = relative.parts[0] if len(relative.parts) > 1 else None
        try:
            data = file.read_bytes()
        except OSError as error:
            what = f"the file cannot be read ({error.strerror})"
            raise InputDataError(what, str(file)) from error
        yield ImageFile(relative.as_posix(), label, data)


def files_of(folder: Path) -> list[Path]:
    """All files of a folder and its sub-folders, sorted by path, but hidden ones.

    Raises:
        InputDataError: It holds none, or cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise InputDataError(f"the folder cannot be read ({error.strerror})", str(error.filename))

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        found.extend(path for path in paths if path.is_file())
    if not found:
        raise InputDataError("the folder holds no files", str(folder), "Name a folder of images")
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _from_parquet(path: Path, chosen: set[int] | None = None) -> Iterator[ImageFile]:
    with _parquet(path) as parquet:
        known = parquet.schema_arrow.names
        columns = [name for name in ("image", "label", "name") if name in known]
        rows = _rows_of_groups(parquet)
        groups = [
            group
            for group, its_rows in enumerate(rows)
            if chosen is None or not chosen.isdisjoint(its_rows)
        ]
        numbers = chain.from_iterable(rows[group] for group in groups)
        row = 0
        try:
            for batch in parquet.iter_batches(
                batch_size=_ROWS_AT_ONCE, row_groups=groups, columns=columns
            ):
                for values in batch.to_pylist():
                    row = next(numbers)
                    if chosen is not None and row not in chosen:
                        continue
                    label, name = values.get("label"), values.get("name")
                    yield ImageFile(
                        str(row) if name is None else str(name),
                        None if label is None else str(label),
                        values["image"] or b"",
                    )
        except (pa.ArrowException, OSError) as error:
            raise InputDataError(
                f"the Parquet file cannot be read past row {row} ({error})", str(path)
            ) from error


def _rows_of_groups(parquet: Any) -> list[range]:
    """The numbers of the rows in each row group."""
    metadata = parquet.metadata
    sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    ends = list(accumulate(sizes, initial=0))
    return [range(first, end) for first, end in pairwise(ends)]


def _parquet(path: Path) -> Any:
    if not path.is_file():
        raise InputDataError("there is no such folder or file", str(path), "Check the path")
    try:
        parquet = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputDataError(
            f"the file is not Parquet ({error})",
            str(path),
            "Name a folder of images, or a Parquet file with a column `image`",
        ) from error
    schema = parquet.schema_arrow
    kinds = [field.type for field in schema if field.name == "image"]
    problem = None
    if len(kinds) != 1 or kinds[0] not in _IMAGE_TYPES:
        listed = ", ".join(f"{field.name}: {field.type}" for field in schema)
        problem = f"expected one binary column `image`, the file has ({listed})"
    elif parquet.metadata.num_rows == 0:
        problem = "the Parquet file has no rows"
    if problem:
        parquet.close()
        raise InputDataError(problem, str(path))
    return parquet
