"""A footer as key-value metadata of a Parquet file, and back.

The key ``nap_stream.merged`` of a compacted file is a JSON array of the merged footers' keys and
values, in order and without spaces, compressed with zlib and in base64. ``previous_sha256`` stands
in the first of them alone: each other one names the digest of the one before it, which is computed.
So a change of any of them shows in the digest that the segment after the file names.
"""

import base64
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from nap_stream.errors import ChainBrokenError
from nap_stream.scored_log.footer import (
    PREFIX,
    SegmentFooter,
    own_values,
    parse_values,
    segment_sha256,
)
from nap_stream.scored_log.merged import check_merged

MERGED = "merged"
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_FLAT_OBJECT = re.compile(rf"\{{{_STRING}:{_STRING}(?:,{_STRING}:{_STRING}){{0,31}}\}}")
MAX_MERGED_BYTES = 128 * 2**20
"""Of the uncompressed array: about 200,000 segments."""


def to_metadata(footer: SegmentFooter) -> dict[str, str]:
    """The footer as Parquet key-value metadata."""
    values = own_values(footer)
    if footer.merged:
        values[MERGED] = _encode_merged(footer.merged)
    return {PREFIX + name: value for name, value in values.items()}


def from_metadata(metadata: Mapping[bytes, bytes] | None, where: str) -> SegmentFooter:
    """Read a footer back, strictly.

    Args:
        metadata: The file's key-value metadata, as pyarrow gives it.
        where: The file, for errors.

    Raises:
        ChainBrokenError: A key is missing, unknown or malformed, the values contradict each
            other, or the schema version is not one that this program reads.
    """
    with _typed_errors(where):
        values = _own_keys(metadata or {})
        merged = values.pop(MERGED, None)
        footer = parse_values(values)
        if merged is not None:
            footer = replace(footer, merged=tuple(_decode_merged(merged)))
            check_merged(footer)
        return footer


def span_from_metadata(metadata: Mapping[bytes, bytes] | None, where: str) -> SegmentFooter:
    """Read a footer without the footers that its file has merged, which can be many.

    Raises:
        ChainBrokenError: As `from_metadata`.
    """
    with _typed_errors(where):
        values = _own_keys(metadata or {})
        values.pop(MERGED, None)
        return parse_values(values)


@contextmanager
def _typed_errors(where: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError, zlib.error) as error:
        raise ChainBrokenError(
            f"the segment's footer is not valid: {error}",
            where,
            "Run `nap-stream verify`; restore the file from a backup",
        ) from error


def _own_keys(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    prefix = PREFIX.encode()
    return {
        key.removeprefix(prefix).decode("utf-8"): value.decode("utf-8")
        for key, value in metadata.items()
        if key.startswith(prefix)
    }


def _encode_merged(parts: Sequence[SegmentFooter]) -> str:
    trees = [own_values(part) for part in parts]
    for tree in trees[1:]:
        del tree["previous_sha256"]
    text = json.dumps(trees, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")


def _decode_merged(text: str) -> Iterator[SegmentFooter]:
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(base64.b64decode(text, validate=True), MAX_MERGED_BYTES)
    if not unpacking.eof or unpacking.unused_data:
        raise ValueError(f"{MERGED} is no zlib stream of at most {MAX_MERGED_BYTES} bytes")
    previous: str | None = None
    for values in _flat_objects(content.decode("ascii")):
        if previous is not None:
            values["previous_sha256"] = previous
        part = parse_values(values)
        previous = segment_sha256(part)
        yield part


def _flat_objects(text: str) -> Iterator[dict[str, str]]:
    """The objects of a JSON array, one at a time: a hostile file's array could fill the memory."""
    position, expected = 0, "["
    while text[position : position + 1] == expected:
        match = _FLAT_OBJECT.match(text, position + 1)
        if match is None:
            break
        yield json.loads(match[0])
        position, expected = match.end(), ","
    if position == 0 or text[position:] != "]":
        raise ValueError(f"{MERGED} is no array of footers")
