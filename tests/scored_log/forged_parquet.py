"""Parquet files whose description of themselves was changed, as somebody does who hides rows.

A struct of Thrift is a dict from a field's id to its type on the wire and its value.
"""

import struct
from collections.abc import Callable
from typing import Any

Tree = dict[int, tuple[int, Any]]
TRUE, FALSE, BYTE, I32, I64, BINARY, LIST, STRUCT = 1, 2, 3, 5, 6, 8, 9, 12
_INTEGERS = {4, I32, I64}


def with_footer(content: bytes, change: Callable[[Tree], None]) -> bytes:
    """The file with its description changed."""
    start = _footer_start(content)
    tree, _ = _read_struct(content, start)
    change(tree)
    footer = write_struct(tree)
    return content[:start] + footer + struct.pack("<I", len(footer)) + b"PAR1"


def with_data(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The file with its pages changed, and as long as before."""
    start = _footer_start(content)
    data = change(content[:start])
    assert len(data) == start
    assert data != content[:start]
    return data + content[start:]


def row_group(footer: Tree, number: int = 0) -> Tree:
    """RowGroup."""
    found: Tree = footer[4][1][1][number]
    return found


def chunk(footer: Tree, name: str) -> Tree:
    """ColumnChunk of a column in the first row group."""
    chunks: list[Tree] = row_group(footer)[1][1][1]
    return next(one for one in chunks if one[3][1][3][1][1][-1] == name.encode())


def column(footer: Tree, name: str) -> Tree:
    """ColumnMetaData of a column in the first row group."""
    found: Tree = chunk(footer, name)[3][1]
    return found


def statistics(footer: Tree, name: str) -> Tree:
    """Statistics of a column in the first row group."""
    found: Tree = column(footer, name)[12][1]
    return found


def element(footer: Tree, name: str) -> Tree:
    """SchemaElement of a column."""
    elements: list[Tree] = footer[2][1][1]
    return next(one for one in elements if one[4][1] == name.encode())


def pair(key: bytes, value: bytes) -> Tree:
    """KeyValue."""
    return {1: (BINARY, key), 2: (BINARY, value)}


def write_struct(tree: Tree) -> bytes:
    """A struct on the wire; its fields in the order of the dict."""
    written, last = b"", 0
    for number, (wire, value) in tree.items():
        step = number - last
        head = bytes([step << 4 | wire]) if 0 < step < 16 else bytes([wire]) + _zigzag(number)
        written += head + (b"" if wire in {TRUE, FALSE} else _write(wire, value))
        last = number
    return written + b"\0"


def _footer_start(content: bytes) -> int:
    (size,) = struct.unpack("<I", content[-8:-4])
    return len(content) - 8 - int(size)


def _read_struct(content: bytes, at: int) -> tuple[Tree, int]:
    tree: Tree = {}
    number = 0
    while content[at]:
        head = content[at]
        number += head >> 4
        tree[number], at = _read(head & 15, content, at + 1)
    return tree, at + 1


def _read(wire: int, content: bytes, at: int) -> tuple[tuple[int, Any], int]:
    if wire in {TRUE, FALSE}:
        return (wire, None), at
    if wire == BYTE:
        return (wire, content[at]), at + 1
    if wire in _INTEGERS:
        number, at = _read_varint(content, at)
        return (wire, number >> 1 ^ -(number & 1)), at
    if wire == BINARY:
        size, at = _read_varint(content, at)
        return (wire, content[at : at + size]), at + size
    if wire == STRUCT:
        tree, at = _read_struct(content, at)
        return (wire, tree), at
    assert wire == LIST
    size, kind = content[at] >> 4, content[at] & 15
    at += 1
    if size == 15:
        size, at = _read_varint(content, at)
    items = []
    for _ in range(size):
        (_, item), at = _read(kind, content, at)
        items.append(item)
    return (wire, (kind, items)), at


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (content[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if content[at - 1] < 128:
            return number, at


def _write(wire: int, value: Any) -> bytes:
    if wire == BYTE:
        return bytes([value])
    if wire in _INTEGERS:
        return _zigzag(value)
    if wire == BINARY:
        return _varint(len(value)) + bytes(value)
    if wire == STRUCT:
        return write_struct(value)
    kind, items = value
    size = len(items)
    head = bytes([size << 4 | kind]) if size < 15 else bytes([15 << 4 | kind]) + _varint(size)
    return head + b"".join(_write(kind, item) for item in items)


def _zigzag(number: int) -> bytes:
    return _varint(number << 1 if number >= 0 else (-number << 1) - 1)


def _varint(number: int) -> bytes:
    written = b""
    while number > 127:
        written += bytes([number & 127 | 128])
        number >>= 7
    return written + bytes([number])
