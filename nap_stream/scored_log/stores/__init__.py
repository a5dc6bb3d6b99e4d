"""Where the files of a scored log lie: a folder, a bucket, or memory."""

from pathlib import Path

from nap_stream.errors import ConfigError, LogRootError, ScoredLogError
from nap_stream.scored_log.format import temporary_name
from nap_stream.scored_log.stores.base import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.stores.s3 import ObjectStore


def store_at(root: Path | str) -> SegmentStore:
    """The store of a scored log.

    ``root`` is a folder, or ``s3://bucket/prefix``.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(root, Path) or "://" not in root:
        return LocalStore(Path(root))
    if not root.startswith("s3://"):
        raise ConfigError("no such kind of store", root, "Give a folder or s3://bucket/prefix")
    return ObjectStore(root)


def check_writable(root: Path | str) -> None:
    """Prove that a root can hold a scored log, by doing there all that a log does.

    Leaves an empty folder behind where there was none.

    Raises:
        ConfigError: The root is neither a folder nor ``s3://bucket/prefix``.
        LogRootError: It cannot, and why.
    """
    check_store(store_at(root))


def check_store(store: SegmentStore) -> None:
    """Prove that a store can hold a scored log: see `check_writable`.

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
        raise LogRootError(
            f"files are not created exclusively, listed and replaced there: {outcome}",
            store.root,
            "Set log.root to a local disk, NFSv4, or a store that honours If-None-Match on PUT",
        )


def _probe(store: SegmentStore, probe: str) -> tuple[object, ...]:
    try:
        created = (store.create(probe, b"first"), store.create(probe, b"other"))
        first = store.read(probe)
        listed = probe in store.names("")
        store.replace(probe, b"second")
        second = store.read(probe)
    finally:
        store.remove([probe])
    return (*created, first, listed, second, store.read(probe))
