"""Files that settings name in an object store, brought to this machine for as long as it takes.

A path may be an address, as s3://bucket/key. pathlib writes it as s3:/bucket/key, and so it goes
through settings; `shown` gives it back as people write it. Credentials, region and endpoint are
those of a log in an object store.
"""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nap_stream.clouds import CLOUDS, forms, parsed
from nap_stream.errors import NapStreamError, ScoredLogError
from nap_stream.objects import ObjectStore
from nap_stream.text import without_secrets

MAX_FILES = 1_000
"""In a folder that is fetched."""
_PIECE_BYTES = 8 * 2**20
_SCHEMES = frozenset(f"{scheme}:" for scheme in CLOUDS)
_ANY_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")
_ACTION = "Check the address, and that this machine may read it"
_PREFIX = "nap-stream-fetched-"


def is_address(path: Path) -> bool:
    """Whether a path stands for an address in an object store."""
    return path.parts[:1] != () and path.parts[0] in _SCHEMES


def shown(path: Path) -> str:
    """A path or an address, as people write it; of one that cannot be, no secret."""
    return _written(path) if is_address(path) else str(path)


def _written(path: Path) -> str:
    return without_secrets(f"{path.parts[0]}//{'/'.join(path.parts[1:])}")


def is_valid(path: Path) -> bool:
    """Whether it is a path, or an address that can be asked for."""
    if is_address(path):
        return parsed(shown(path)) is not None
    return path.parts[:1] == () or _ANY_SCHEME.fullmatch(path.parts[0]) is None


@contextmanager
def fetched(path: Path, raising: type[NapStreamError], *, max_bytes: int) -> Iterator[Path]:
    """A path on this machine; of an address a copy, for as long as the block runs.

    An address is that of an object, or of a folder of objects with none below it. Errors of
    nap-stream within the block name the address in place of the copy.

    Raises:
        ScoredLogError: The store does not answer, or the object changed meanwhile: it is retriable.
        NapStreamError: It cannot be fetched, or there is more than ``max_bytes`` of it, or no room
            for it. It is of the class ``raising``.
    """
    if not is_address(path):
        if not is_valid(path) and not path.exists():
            raise raising("no such kind of store", _written(path), f"Give a path or {forms('key')}")
        yield path
        return
    address = shown(path)
    if parsed(address) is None:
        raise raising("not an address that can be asked for", address, f"Give {forms('key')}")
    with _own_folder() as folder:
        local = folder / path.name
        try:
            _fetch(path, local, raising, max_bytes)
        except ScoredLogError as error:
            problem = f"cannot be fetched: {error.problem}"
            if error.retriable:
                raise type(error)(problem, error.where, error.action) from None
            # A bucket whose variables cannot be used is asked for none of its keys.
            where = max(error.where, address, key=len)
            raise raising(problem, where, f"{_ACTION}. {error.action}") from None
        except OSError as error:
            raise raising(
                f"cannot be fetched: {error.strerror}", address, f"Make room in {folder}"
            ) from error
        try:
            yield local
        except NapStreamError as error:
            told = (str(part).replace(str(local), address) for part in error.args)
            raise type(error)(*told) from error


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A temporary folder, gone with the block; first those of processes that died go.

    A lock tells whose process lives: it ends with the process, however that ends.
    """
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{_PREFIX}*"):
        if (lock := _locked(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Another process may have taken it for one that was left.
        if (lock := _locked(folder)) is not None:
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds a folder's lock; None where another process does, or it is gone."""
    with suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_uid == os.geteuid() and os.fstat(lock).st_nlink:
                return lock
        except OSError:
            pass
        os.close(lock)
    return None


def _fetch(path: Path, local: Path, raising: type[NapStreamError], max_bytes: int) -> None:
    address = shown(path)
    if len(path.parts) > 2:  # noqa: PLR2004  it has a key below its bucket
        parent = ObjectStore(shown(path.parent))
        if _copy(parent, path.name, local, max_bytes, raising):
            return
    folder = ObjectStore(address)
    sizes = folder.sizes("")
    if not sizes:
        raise raising("there is no such object, and none below it", address, _ACTION)
    if len(sizes) > MAX_FILES:
        raise _too_much(raising, address, f"{len(sizes):,} objects", f"{MAX_FILES:,} objects")
    if (total := sum(sizes.values())) > max_bytes:
        raise _too_much(raising, address, f"{total:,} bytes", f"{max_bytes:,}")
    _require_room(local.parent, total, address, raising)
    local.mkdir()
    for name in sizes:
        if not _copy(folder, name, local / name, max_bytes, raising):
            raise ScoredLogError(
                "it was removed while it was read", f"{address}/{name}", "Try again"
            )


def _copy(
    store: ObjectStore, name: str, local: Path, max_bytes: int, raising: type[NapStreamError]
) -> bool:
    """Whether there is such an object; then it is there."""
    file = store.open(name)
    if file is None:
        return False
    where = f"{store.root}/{name}"
    with file, local.open("xb") as copy:
        if (size := file.seek(0, os.SEEK_END)) > max_bytes:
            raise _too_much(raising, where, f"{size:,} bytes", f"{max_bytes:,}")
        _require_room(local.parent, size, where, raising)
        file.seek(0)
        shutil.copyfileobj(file, copy, _PIECE_BYTES)
    return True


def _require_room(folder: Path, size: int, where: str, raising: type[NapStreamError]) -> None:
    if size > (free := shutil.disk_usage(folder).free):
        raise raising(
            f"it holds {size:,} bytes, and {tempfile.gettempdir()} has {free:,} free for it",
            where,
            "Make room there, or name another folder in TMPDIR",
        )


def _too_much(raising: type[NapStreamError], where: str, found: str, most: str) -> NapStreamError:
    return raising(f"it holds {found}, where {most} are the most that is fetched", where, _ACTION)
