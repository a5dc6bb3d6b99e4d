"""Proof that the log is whole: every partition's chain, from its genesis marker to its end.

Reads every file once, to hash it. May run beside writers: it checks what was there when it
listed a partition.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nap_stream.errors import ChainBrokenError
from nap_stream.records import ChainPosition, TopicPartition
from nap_stream.scored_log.defects import (
    ChainHead,
    DeclaredGap,
    Defect,
    DefectKind,
    VerifyReport,
)
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.genesis import decode_genesis
from nap_stream.scored_log.layout import (
    genesis_path,
    is_hidden,
    parse_partition_folder,
    parse_segment_name,
    parse_segment_path,
    parse_topic_folder,
    partition_folder,
    topic_folder,
)
from nap_stream.scored_log.os_errors import names_in
from nap_stream.scored_log.reader import partitions, require_root, segments
from nap_stream.scored_log.segment_check import SegmentFindings, inspect_segment


@dataclass(slots=True)
class _Tally:
    segments: int = 0
    rows: int = 0
    offsets: int = 0
    gaps: list[DeclaredGap] = field(default_factory=list)
    heads: list[ChainHead] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)


def verify(root: Path, *, deep: bool = False, topic: str | None = None) -> VerifyReport:
    """Check the log and name every defect.

    Always: genesis markers, that segments follow each other without holes or overlaps, the hash
    of each one's predecessor, footers, schema, row counts, order and range of the rows' offsets,
    files that do not belong there. What the last segment of a partition holds is covered by no
    other file's hash: see `ChainHead`.

    Args:
        root: The log's root.
        deep: Also decode every value and compare it with the footer.
        topic: Only this topic.

    Raises:
        LogRootError: There is no folder at the root.
        ConfigError: The topic cannot be the name of one.
    """
    require_root(root)
    tally = _Tally()
    tally.defects += _strays(root, topic)
    chains = partitions(root, topic)
    for partition in chains:
        _verify_chain(root, partition, tally, deep=deep)
    return VerifyReport(
        partitions=len(chains),
        segments=tally.segments,
        rows=tally.rows,
        offsets=tally.offsets,
        gap_offsets=sum(gap.end_offset - gap.base_offset for gap in tally.gaps),
        gaps=tuple(tally.gaps),
        heads=tuple(tally.heads),
        defects=tuple(sorted(tally.defects, key=lambda defect: (defect.file, defect.kind))),
    )


def _verify_chain(root: Path, partition: TopicPartition, tally: _Tally, *, deep: bool) -> None:
    paths = segments(root, partition)
    start = _verify_genesis(root, partition, tally, needed=bool(paths))
    position = start
    for path in paths:
        findings = inspect_segment(root, path, deep=deep)
        tally.segments += 1
        tally.defects += findings.defects
        tally.defects += _link_defects(findings, position)
        position = _next_position(findings)
        if findings.footer is not None:
            _count(tally, path, findings.footer)
    if start is not None and position is not None:
        head = ChainHead(partition, start.offset, position.offset, position.previous_sha256)
        tally.heads.append(head)


def _verify_genesis(
    root: Path, partition: TopicPartition, tally: _Tally, *, needed: bool
) -> ChainPosition | None:
    path = genesis_path(partition)
    try:
        content = (root / path).read_bytes()
        genesis = decode_genesis(content, partition, path)
    except FileNotFoundError:
        if needed:
            detail = "there are segments, and no marker says where the chain starts"
            tally.defects.append(Defect(path, DefectKind.GENESIS_MISSING, detail))
        return None
    except OSError as error:
        detail = error.strerror or str(error)
        tally.defects.append(Defect(path, DefectKind.GENESIS_UNREADABLE, detail))
        return None
    except ChainBrokenError as error:
        tally.defects.append(Defect(path, DefectKind.GENESIS_UNREADABLE, error.problem))
        return None
    return ChainPosition(genesis.offset, hashlib.sha256(content).hexdigest())


def _link_defects(findings: SegmentFindings, expected: ChainPosition | None) -> Iterator[Defect]:
    if expected is None:
        return
    _, base_offset = parse_segment_path(findings.path)
    if base_offset > expected.offset:
        detail = f"offsets [{expected.offset}, {base_offset}) are in no segment"
        yield Defect(findings.path, DefectKind.HOLE, detail)
    if base_offset < expected.offset:
        detail = f"offsets from {base_offset} on are in the segment before, to {expected.offset}"
        yield Defect(findings.path, DefectKind.OVERLAP, detail)
    footer = findings.footer
    if footer is not None and footer.previous_sha256 != expected.previous_sha256:
        detail = (
            f"the file before has SHA-256 {expected.previous_sha256}, "
            f"this footer names {footer.previous_sha256}"
        )
        yield Defect(findings.path, DefectKind.PREVIOUS_HASH, detail)


def _next_position(findings: SegmentFindings) -> ChainPosition | None:
    if findings.footer is None or findings.sha256 is None:
        return None
    return ChainPosition(findings.footer.end_offset, findings.sha256)


def _count(tally: _Tally, path: str, footer: SegmentFooter) -> None:
    if footer.gap is None:
        tally.rows += footer.rows
        tally.offsets += footer.end_offset - footer.base_offset
    else:
        gap = DeclaredGap(path, footer.base_offset, footer.end_offset, footer.gap)
        tally.gaps.append(gap)


def _strays(root: Path, topic: str | None) -> Iterator[Defect]:
    for name in _visible(names_in(root)):
        if parse_topic_folder(name) is None or not (root / name).is_dir():
            if topic is None:
                yield _stray(name)
        elif topic is None or name == topic_folder(topic):
            yield from _strays_of_topic(root, name)


def _strays_of_topic(root: Path, folder: str) -> Iterator[Defect]:
    topic = parse_topic_folder(folder)
    for name in _visible(names_in(root / folder)):
        number = parse_partition_folder(name)
        if topic is None or number is None or not (root / folder / name).is_dir():
            yield _stray(f"{folder}/{name}")
            continue
        inside = partition_folder(TopicPartition(topic, number))
        for child in _visible(names_in(root / inside)):
            if parse_segment_name(child) is None:
                yield _stray(f"{inside}/{child}")


def _visible(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not is_hidden(name))


def _stray(path: str) -> Defect:
    return Defect(path, DefectKind.STRAY_FILE, "not a file of the log, and readers may read it")
