"""Where the files of a scored log lie, a folder or a bucket, and what the chain needs of that."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from nap_stream.clouds import CLOUDS, forms
from nap_stream.errors import ConfigError, LogRootError, ScoredLogError
from nap_stream.objects import ObjectStore
from nap_stream.scored_log.format import temporary_name
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.text import without_secrets


class SegmentStore(Protocol):
    """Whole files by path, created exclusively. Paths are relative to the log's root."""

    @property
    def root(self) -> str:
        """The log's root, for messages."""

    def prepare(self, folder: str) -> None:
        """Make a folder where files are to be created; harmless where it is there.

        Raises:
            ScoredLogError: It cannot be made.
        """

    def names(self, folder: str, first: str = "") -> list[str]:
        """Names of the files and folders in a folder, in any order.

        Args:
            folder: None are found where it is missing.
            first: Leave out the names before this one; what follows may cost less to list.

        Raises:
            ScoredLogError: It cannot be listed.
        """

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder, in any order; links are none.

        Raises:
            ScoredLogError: It cannot be listed.
        """

    def sizes(self, folder: str) -> dict[str, int]:
        """The sizes in bytes of the files in a folder, by name; none where it is missing.

        Raises:
            ScoredLogError: It cannot be listed.
        """

    def read(self, path: str) -> bytes | None:
        """A whole file; None where it is missing.

        Raises:
            ScoredLogError: It cannot be read.
        """

    def read_part(self, path: str, start: int, count: int) -> tuple[bytes, int] | None:
        """Bytes of a file, and its size; None where it is missing.

        They are ``count`` bytes from ``start`` on, or from so many before the end where that is
        negative; fewer where there are not so many.

        Raises:
            NotAFileError: It is no regular file.
            ScoredLogError: It cannot be read.
        """

    def open(self, path: str) -> BinaryIO | None:
        """A file to read and seek in; None where it is missing.

        It shows one version of the file to the end, also where the file is replaced or removed
        meanwhile. The caller closes it.

        Raises:
            NotAFileError: It is no regular file.
            ScoredLogError: It cannot be opened.
        """

    def create(self, path: str, content: bytes) -> bool:
        """Create a file with all its content, durably, or not at all.

        Returns:
            False where the name is taken: then nothing has changed.

        Raises:
            ScoredLogError: It could not be made durable. The name is free as a rule; where the
                failure came after the name was taken, the next `create` of it says so.
        """

    def replace(self, path: str, content: bytes) -> None:
        """Put other content under a name that is taken: at every moment the old or the new.

        Raises:
            ScoredLogError: It could not be made durable; the name holds the old or the new.
        """

    def remove_leftovers(self, folder: str, before_ms: int) -> int:
        """Remove what writers that died have left of unfinished files, last written long ago.

        Only what lies in ``folder`` and was written before ``before_ms``, milliseconds since the
        epoch, UTC.

        Returns:
            How many. What cannot be removed does no harm and is left. 0 in a store where an
            unfinished file leaves nothing.
        """

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files, durably; those that are missing are harmless. A folder keeps the order.

        Raises:
            ScoredLogError: One cannot be removed.
        """


def store_at(root: Path | str) -> SegmentStore:
    """The store of a scored log.

    ``root`` is a folder, or an address of `nap_stream.clouds`, as ``s3://bucket/prefix``.

    Raises:
        ConfigError: It is neither.
        LogRootError: What the environment says of the object store cannot be used.
    """
    if isinstance(root, Path) or "://" not in root:
        return LocalStore(Path(root))
    if root.partition("://")[0] not in CLOUDS:
        raise ConfigError(
            "no such kind of store", without_secrets(root), f"Give a folder or {forms()}"
        )
    return ObjectStore(root)


def check_store(store: SegmentStore) -> None:
    """Prove that a store can hold a scored log, by doing there all that a log does.

    Leaves an empty folder behind where there was none.

    Raises:
        LogRootError: It cannot, and why.
    """
    probe = f".probe-{temporary_name().removeprefix('.')}"
    try:
        store.prepare("")
        outcome = _probe(store, probe)
    except LogRootError:
        raise
    except ScoredLogError as error:
        raise LogRootError(error.problem, error.where, error.action) from error
    if outcome != (True, False, b"first", True, b"second", None):
        cloud = CLOUDS.get(store.root.partition("://")[0])
        other = "an object store" if cloud is None else f"a store that honours {cloud.condition}"
        raise LogRootError(
            f"files are not created exclusively, listed and replaced there: {outcome}",
            store.root,
            f"Choose a local disk, NFSv4, or {other}",
        )


def _probe(store: SegmentStore, probe: str) -> tuple[object, ...]:
    try:
        created = (store.create(probe, b"first"), store.create(probe, b"other"))
        first = store.read(probe)
        listed = probe in store.names("")
        store.replace(probe, b"second")
        second = store.read(probe)
    except ScoredLogError:
        # What was wrong first is what is told.
        with suppress(ScoredLogError):
            store.remove([probe])
        raise
    store.remove([probe])
    return (*created, first, listed, second, store.read(probe))
