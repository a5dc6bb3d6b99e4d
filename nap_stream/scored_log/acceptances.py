"""Acceptances beside the log: that somebody takes a change of a key for the new normal.

    <root>/_acceptances/<number, 20 digits>.json

Each is created exclusively under the next free number and never changed, so that a monitor and a
replay of its log read the same ones. The folder is hidden from Parquet readers, as all names that
begin with an underscore. The files come from outside: their size is limited before they are read.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from nap_stream.errors import AcceptanceError, ConfigError, ScoredLogError
from nap_stream.records import Acceptance
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.text import EARLIEST_MS, LATEST_MS, rfc3339

FOLDER = "_acceptances"
MAX_BYTES = 64 * 2**10
MAX_BY, MAX_REASON, MAX_KEY = 200, 1_000, 200
"""Characters."""
KIND = "nap-stream acceptance"
VERSION = 1
MAX_NUMBER = 2**31 - 1
"""A file with a larger number in its name is damaged, and does not count for the next number."""
ATTEMPTS = 100
"""So many others may take the next number while one is written."""
NOTICE_MS = 30_000
"""How long after it was made an acceptance takes effect: monitors at work must have read it by
then, so that a replay, which knows of it from the beginning, gives the same alerts."""
_NAME = re.compile(r"([0-9]{20})\.json")
_TIMES = ("from_ms", "effective_ms", "made_ms")
_TYPES: dict[str, type] = {
    **dict.fromkeys(("number", *_TIMES), int),
    **dict.fromkeys(("topic", "key", "by", "reason"), str),
}
_LIMITS = {"by": MAX_BY, "reason": MAX_REASON, "key": MAX_KEY}


def acceptance_path(number: int) -> str:
    """Where the acceptance of a number lies, below the log's root."""
    return f"{FOLDER}/{number:020}.json"


def write_acceptance(store: SegmentStore, acceptance: Acceptance) -> Acceptance:
    """Write an acceptance under the next free number; give it with that number.

    Raises:
        ConfigError: A text is empty where it must not be, too long, or not printable.
        ScoredLogError: The store cannot be read or written.
    """
    _require_texts(acceptance)
    store.prepare(FOLDER)
    free = max((number for number in _numbers(store) if number <= MAX_NUMBER), default=-1) + 1
    for number in range(free, min(free + ATTEMPTS, MAX_NUMBER + 1)):
        numbered = replace(acceptance, number=number)
        tree = {"kind": KIND, "version": VERSION, **asdict(numbered)}
        content = (json.dumps(tree, ensure_ascii=True) + "\n").encode("ascii")
        if store.create(acceptance_path(number), content):
            return numbered
    raise ScoredLogError(
        f"no number from {free} on could be taken: others took them, or {MAX_NUMBER} is the last",
        f"{store.root}/{FOLDER}",
        "Try again; if it stays so, remove the file with the largest number",
    )


def acceptance_numbers(store: SegmentStore) -> list[int]:
    """Give the numbers of the acceptances, in order.

    Raises:
        ScoredLogError: The store cannot be listed.
    """
    return sorted(_numbers(store))


def read_acceptance(store: SegmentStore, number: int) -> Acceptance:
    """Read an acceptance.

    Raises:
        AcceptanceError: It is damaged, gone, or of another version.
        ScoredLogError: The store cannot be read.
    """
    path = acceptance_path(number)
    file = store.open(path) if number <= MAX_NUMBER else None
    content = b""
    if file is not None:
        with file:
            content = file.read(MAX_BYTES + 1)
    try:
        if number > MAX_NUMBER:
            raise ValueError(f"its number is above {MAX_NUMBER}")  # noqa: TRY301
        if file is None or len(content) > MAX_BYTES:
            raise ValueError("it is gone" if file is None else "it is too long")  # noqa: TRY301
        return _checked(json.loads(content.decode("utf-8")), number)
    except (ValueError, RecursionError) as error:
        raise AcceptanceError(
            f"not a valid acceptance: {error}",
            f"{store.root}/{path}",
            # In this order, as the number of the last file is free once that is gone.
            "Accept anew with `nap-stream rebaseline`, and only then remove the file",
        ) from error


def read_acceptances(store: SegmentStore, topic: str) -> tuple[Acceptance, ...]:
    """Read all acceptances of a topic, in order of their numbers.

    Raises:
        AcceptanceError: One is damaged.
        ScoredLogError: The store cannot be read.
    """
    found = (read_acceptance(store, number) for number in acceptance_numbers(store))
    return tuple(each for each in found if each.topic == topic)


def _numbers(store: SegmentStore) -> Iterator[int]:
    for name in store.names(FOLDER):
        if match := _NAME.fullmatch(name):
            yield int(match[1])


def _require_texts(acceptance: Acceptance) -> None:
    for name, limit in _LIMITS.items():
        text: str = getattr(acceptance, name)
        if (not text.strip() and name != "key") or len(text) > limit or not text.isprintable():
            raise ConfigError(
                f"expected 1 to {limit} printable characters, got {text[:limit]!r}", f"--{name}"
            )


def _checked(tree: Any, number: int) -> Acceptance:
    if not isinstance(tree, dict) or (tree.pop("kind", None), tree.pop("version", None)) != (
        KIND,
        VERSION,
    ):
        raise ValueError(f"expected kind {KIND!r}, version {VERSION}")
    if tree.keys() != _TYPES.keys():
        raise ValueError(f"expected the keys {sorted(_TYPES)}")
    for name, wanted in _TYPES.items():
        if type(tree[name]) is not wanted:
            raise ValueError(f"{name} is not of type {wanted.__name__}")
    if tree["number"] != number:
        raise ValueError(f"it has the number {tree['number']}")
    for name in _TIMES:
        if not EARLIEST_MS <= tree[name] <= LATEST_MS:
            first, last = rfc3339(EARLIEST_MS), rfc3339(LATEST_MS)
            raise ValueError(f"{name} is no time from {first} to {last}")
    texts = ((tree[name], limit) for name, limit in _LIMITS.items())
    if any(len(text) > limit or not text.isprintable() for text, limit in texts):
        raise ValueError("a text is too long, or not printable")
    return Acceptance(**tree)
