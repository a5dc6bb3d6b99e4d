"""Signed checkpoints: where all chains of the log ended at a time, signed.

    <root>/_checkpoints/2026-01-31T12-00-00.000Z.note

Each is a note (`nap_stream.scored_log.proof.note`), created exclusively and never changed. The
digest of a chain depends on all before it, so whoever has the note and the public key can prove
later that nothing up to there was changed or cut off. Keep copies where who can write to the log
cannot: those in its own folder can be removed with what they witness.

The text of a note, of which each line ends with a newline:

    nap-stream scored log checkpoint v1
    time 2026-01-31T12:00:00.000Z
    chains 3
    chain %2Fevents 0 0 12 <digest>    the chain of events, of which there are 12
    chain cars 0 0 30 <digest>         topic, partition, start, end (the next offset), SHA-256
    unread cars 1                      a chain that could not be read then

Topics are percent-encoded, but for letters, digits and ``_.-~``. The drift monitor's own
checkpoints, in ``_monitors``, are something else: its state, unsigned, which nobody proves by.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from urllib.parse import quote, unquote

import structlog
from cryptography.x509 import Certificate

from nap_stream.errors import (
    ChainBrokenError,
    ConfigError,
    ProofError,
    ScoredLogError,
    UnknownKeyError,
)
from nap_stream.records import TopicPartition
from nap_stream.scored_log.chain import chain_end, chain_start
from nap_stream.scored_log.events import events_end
from nap_stream.scored_log.proof import timestamps
from nap_stream.scored_log.proof.note import MAX_NOTE_BYTES, PublicKey, Signer, open_note
from nap_stream.scored_log.read import partitions
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.report import ChainHead
from nap_stream.text import rfc3339

FOLDER = "_checkpoints"
SUFFIX = ".note"
ORIGIN = "nap-stream scored log checkpoint v1"
EVENTS = TopicPartition("/events", 0)
"""The chain of events, by a name that no topic can have."""
ATTEMPTS = 100
"""Others may take the name of so many milliseconds while one is written."""
MAX_KEPT_BYTES = 2**28
"""Of a file that holds the messages of a topic."""
_BEGIN = re.compile(rb"^(?=" + ORIGIN.encode() + rb"\n)", re.MULTILINE)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """Where chains ended at ``time_ms``, by the signer's clock, and those that were unreadable."""

    time_ms: int
    heads: tuple[ChainHead, ...]
    unread: tuple[TopicPartition, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundCheckpoint:
    """A file in the place of a checkpoint, and the labels of the given keys that have signed it.

    ``checkpoint`` is None where none has. ``problem`` says so, or which other keys have, whose
    signatures count for nothing. ``is_damaged`` says that it is none by any key, or that its time
    stamp is not valid. ``stamped_ms`` is when a given TSA saw it; None where it was not asked.
    """

    source: str
    checkpoint: SignedCheckpoint | None
    signers: tuple[str, ...]
    problem: str
    is_damaged: bool = False
    stamped_ms: int | None = None


def stamp_path(path: str) -> str:
    """Where the time stamp of a checkpoint lies."""
    return path.removesuffix(SUFFIX) + timestamps.SUFFIX


def take_checkpoint(
    store: SegmentStore, now_ms: int, hints: Mapping[TopicPartition, int] | None = None
) -> SignedCheckpoint:
    """Read where all chains of the log end. ``hints`` are ends of before, which save listings.

    Raises:
        ScoredLogError: The store cannot be read.
    """
    heads: list[ChainHead] = []
    unread: list[TopicPartition] = []
    try:
        if (events := events_end(store)) is not None:
            heads.append(ChainHead(EVENTS, 0, events[0] + 1, events[1]))
    except ScoredLogError as error:
        structlog.get_logger().error("chain_not_signed", cause=str(error))
        unread.append(EVENTS)
    for partition in partitions(store):
        try:
            start = chain_start(store, partition)
            end = chain_end(store, partition, (hints or {}).get(partition))
        except ChainBrokenError as error:
            structlog.get_logger().error("chain_not_signed", cause=str(error))
            unread.append(partition)
            continue
        if start is not None and end is not None:
            heads.append(ChainHead(partition, start.offset, end.offset, end.previous_sha256))
    return SignedCheckpoint(now_ms, tuple(heads), tuple(unread))


def encode_checkpoint(checkpoint: SignedCheckpoint) -> str:
    """The text that is signed; see the module's docstring."""
    lines = [
        f"chain {_place(head.partition)} {head.start_offset} {head.end_offset} {head.sha256}"
        for head in checkpoint.heads
    ]
    lines += [f"unread {_place(partition)}" for partition in checkpoint.unread]
    head = [ORIGIN, f"time {rfc3339(checkpoint.time_ms)}", f"chains {len(lines)}"]
    return "".join(f"{line}\n" for line in [*head, *lines])


def _place(partition: TopicPartition) -> str:
    return f"{quote(partition.topic, safe='')} {partition.partition}"


def decode_checkpoint(text: str) -> SignedCheckpoint:
    """Read the text of a note whose signature was checked.

    Raises:
        ValueError: It is not what `encode_checkpoint` writes.
    """
    lines = text.split("\n")
    if lines[0] != ORIGIN:
        raise ValueError(f"it begins with {lines[0][:100]!r}, not with {ORIGIN!r}")
    heads, unread = [], []
    for line in lines[3:-1]:
        kind, *fields = line.split(" ")
        if kind == "chain":
            topic, number, start, end, sha256 = fields
            where = TopicPartition(unquote(topic), int(number))
            heads.append(ChainHead(where, int(start), int(end), sha256))
        else:
            topic, number = fields
            unread.append(TopicPartition(unquote(topic), int(number)))
    time_ms = round(datetime.fromisoformat(lines[1].removeprefix("time ")).timestamp() * 1000)
    found = SignedCheckpoint(time_ms, tuple(heads), tuple(unread))
    named = [*(head.partition for head in heads), *unread]
    is_sound = len(set(named)) == len(named) and all(
        0 <= head.start_offset <= head.end_offset and _SHA256.fullmatch(head.sha256)
        for head in heads
    )
    # What says the same in other words is not what nap-stream has written.
    if not is_sound or encode_checkpoint(found) != text:
        raise ValueError("its lines are not those of a checkpoint")
    return found


def write_checkpoint(
    store: SegmentStore, checkpoint: SignedCheckpoint, signer: Signer
) -> tuple[str, bytes]:
    """Sign a checkpoint and create its file; give the path, and the note.

    Where another one has the name of its time, its time is a millisecond later.

    Raises:
        ScoredLogError: It could not be made durable.
    """
    store.prepare(FOLDER)
    for later in range(ATTEMPTS):
        numbered = replace(checkpoint, time_ms=checkpoint.time_ms + later)
        note = signer.sign(encode_checkpoint(numbered))
        path = f"{FOLDER}/{rfc3339(numbered.time_ms).replace(':', '-')}{SUFFIX}"
        if store.create(path, note):
            return path, note
    raise ScoredLogError("the names of its time are taken", f"{store.root}/{FOLDER}", "Try again")


def read_checkpoints(
    store: SegmentStore,
    keys: Sequence[PublicKey],
    files: Iterable[Path],
    roots: Sequence[Certificate] = (),
) -> Iterator[FoundCheckpoint]:
    """What is in the log's folder of checkpoints, and in files that were kept elsewhere.

    A file that was kept elsewhere may hold several, one after another, as read from a topic.
    The time stamps beside them are verified where there are certificates of TSAs, ``roots``.

    Raises:
        ConfigError: A file that was kept elsewhere cannot be read.
        ScoredLogError: The store cannot be read.
    """
    names = (name for name in sorted(store.names(FOLDER)) if name.endswith(SUFFIX))
    places: list[tuple[SegmentStore, str, Path | None]]
    places = [(store, f"{FOLDER}/{name}", None) for name in names]
    places += [(LocalStore(each.parent), each.name, each) for each in files]
    for place, path, kept in places:
        content = _limited(place, path, MAX_NOTE_BYTES if kept is None else MAX_KEPT_BYTES)
        if content is None and kept is not None:
            raise ConfigError("no such file", f"--checkpoint {kept}")
        notes = [content or b""] if kept is None else _notes(content or b"")
        token = _limited(place, stamp_path(path), timestamps.MAX_BYTES) if roots else None
        for number, note in enumerate(notes if content is not None else (), 1):
            source = f"{kept or path}, note {number}" if len(notes) > 1 else str(kept or path)
            yield _checked(note, token if len(notes) == 1 else None, keys, roots, source)


def _notes(content: bytes) -> list[bytes]:
    """The notes that stand in a file one after another, blank lines between or not."""
    parts = [part for part in _BEGIN.split(content) if part.strip()]
    return [part.rstrip(b"\n") + b"\n" for part in parts] if len(parts) > 1 else [content]


def _limited(store: SegmentStore, path: str, size: int) -> bytes | None:
    """The beginning of a file, which shows where it is too long; None where it is missing."""
    file = store.open(path)
    if file is None:
        return None
    with file:
        return file.read(size + 1)


def _checked(
    content: bytes,
    token: bytes | None,
    keys: Sequence[PublicKey],
    roots: Sequence[Certificate],
    source: str,
) -> FoundCheckpoint:
    try:
        note = open_note(content, keys, source)
        checkpoint = decode_checkpoint(note.text)
    except UnknownKeyError as error:
        return FoundCheckpoint(source, None, (), error.problem)
    except ProofError as error:
        return FoundCheckpoint(source, None, (), error.problem, is_damaged=True)
    except ValueError as error:
        return FoundCheckpoint(source, None, (), str(error), is_damaged=True)
    others = f"signed by {', '.join(note.unknown)} too, which no given key is"
    found = FoundCheckpoint(source, checkpoint, note.signers, others if note.unknown else "")
    try:
        stamped_ms = None if token is None else timestamps.timestamp_ms(token, content, roots)
    except ProofError as error:
        return replace(found, problem=error.problem, is_damaged=True)
    return replace(found, stamped_ms=stamped_ms)
