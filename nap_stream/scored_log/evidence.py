"""Images that are kept as evidence: files in a store of their own, and in no chain.

    <root>/<day on which the image was scored, UTC>/<SHA-256 of its bytes, as its row has it>

What a file is, its row says. Days can be removed whole, and so can each file.
"""

import hashlib
import re
from collections.abc import Set as AbstractSet

from nap_stream.errors import InputDataError
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LEFTOVER_AGE_MS
from nap_stream.text import rfc3339

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def evidence_day(scored_ms: int) -> str:
    """The folder of what was scored at a time, milliseconds since the epoch."""
    return rfc3339(scored_ms)[:10]


def evidence_path(scored_ms: int, sha256: str) -> str:
    """Where an image lies that was scored at a time, in milliseconds since the epoch."""
    return f"{evidence_day(scored_ms)}/{sha256}"


def evidence_days(store: SegmentStore) -> list[str]:
    """The folders of days that there are, in order.

    Raises:
        ScoredLogError: The store cannot be listed.
    """
    return sorted(name for name in store.names("") if _DAY.fullmatch(name))


def find_evidence(store: SegmentStore, path: str, max_bytes: int) -> bytes | None:
    """The bytes of an image that was kept; None where it was not, or is gone.

    ``path`` is of `evidence_path`. No more than ``max_bytes`` and one are read.

    Raises:
        InputDataError: Something else has its name.
        ScoredLogError: The store cannot be read.
    """
    file = store.open(path)
    if file is None:
        return None
    with file:
        data = file.read(max_bytes + 1)
    found = hashlib.sha256(data).hexdigest()
    if found == path.rpartition("/")[2]:
        return data
    has = f"has the SHA-256 {found}"
    if len(data) > max_bytes:
        has = f"has more than limits.max_image_bytes = {max_bytes}"
    raise InputDataError(
        f"the file is not the image that its name says: it {has}",
        f"{store.root}/{path}",
        "It was changed or cut off after it was kept: find out by whom, and remove it",
    )


def erase_evidence(store: SegmentStore, sha256: AbstractSet[str], now_ms: int) -> int:
    """Remove images, of whatever day, and what dead writers left; how many files of images.

    Raises:
        ScoredLogError: The store cannot be listed, or one cannot be removed.
    """
    erased = 0
    for day in evidence_days(store):
        held = sorted(store.sizes(day).keys() & sha256)
        store.remove([f"{day}/{name}" for name in held])
        store.remove_leftovers(day, now_ms - LEFTOVER_AGE_MS)
        erased += len(held)
    return erased
