"""Records of a stretch on disk, so that it can be looked at several times in bounded memory."""

import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nap_stream.errors import ScoredLogError

RECORD = np.dtype(
    [("time_ms", "<i8"), ("fused", "<f8"), ("class_id", "<i4"), ("key", "<i4")],
)
"""A scored record: where it counts in event time, its score, predicted class, number of its key."""
CHUNK_RECORDS = 1 << 18


class RecordSpool:
    """Records of several partitions, in a temporary file without a name that goes with it.

    Raises:
        ScoredLogError: On every use: the folder of temporary files cannot be written or is full.
    """

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="nap-stream-")  # noqa: SIM115  see __exit__
        except OSError as error:
            raise _no_room(error) from error
        self._parts: list[int] = []
        self._records = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._records

    def begin_partition(self) -> None:
        """Say that what follows is of another partition."""
        self._parts.append(self._records)

    def append(self, records: NDArray[np.void]) -> None:
        """Add records, (N,) of `RECORD`, in the order of their partition."""
        try:
            self._file.write(records.tobytes())
        except OSError as error:
            raise _no_room(error) from error
        self._records += len(records)

    def chunks(self) -> Iterator[NDArray[np.void]]:
        """All records, in order; a chunk is of one partition, in which time never runs back."""
        ends = [*self._parts[1:], self._records]
        for start, end in zip(self._parts, ends, strict=True):
            for first in range(start, end, CHUNK_RECORDS):
                yield self._read(first, min(first + CHUNK_RECORDS, end))

    def _read(self, first: int, end: int) -> NDArray[np.void]:
        try:
            self._file.seek(first * RECORD.itemsize)
            content = self._file.read((end - first) * RECORD.itemsize)
        except OSError as error:
            raise _no_room(error) from error
        return np.frombuffer(content, RECORD)


def _no_room(error: OSError) -> ScoredLogError:
    return ScoredLogError(
        f"the records cannot be kept while they are looked at ({error.strerror})",
        tempfile.gettempdir(),
        f"Make room: {RECORD.itemsize} bytes a record; TMPDIR names another folder",
    )
