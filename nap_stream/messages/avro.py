"""Avro, from producers that are not trusted.

fastavro reads what a schema says, and a schema can say what never ends: a type within itself takes
the stack of the process with it, an array of nulls counts to any number without a byte, records of
records double with every level. So a schema is bounded before anything is read by it: no type
within itself, no array of what takes no bytes, and so many parts at most once all names are
written out.

Nothing is built of the fields that no path needs: they are skipped. Logical types are left out,
since a decimal of a million digits is one.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from nap_stream.errors import ConfigError
from nap_stream.messages.paths import Fields
from nap_stream.messages.pieces import Link, Piece, Unreadable, as_bytes
from nap_stream.settings.messages import AvroField, FieldPaths, steps_of
from nap_stream.settings.schema import LimitSettings
from nap_stream.text import described

MAX_SCHEMA_BYTES = 2**20
MAX_SCHEMA_PARTS = 10_000
MAX_SCHEMA_SYMBOLS = 100_000
"""Of all enums, each as often as it is used: all of them are looked at for each use."""
MAX_SCHEMA_DEPTH = 64
MAX_READS = 1_000_000
"""Of a datum: about one for each byte of a number, two for a text."""
_CONTAINER = b"Obj\x01"
_SINGLE_OBJECT = b"\xc3\x01"
_FORMS = {
    _CONTAINER: " (an Avro object container file)",
    _SINGLE_OBJECT: " (in single-object encoding, of another schema)",
}
_RECORDS = ("record", "error")
_PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
_UNITS = {
    "timestamp-millis": "ms",
    "timestamp-micros": "us",
    "timestamp-nanos": "ns",
    "local-timestamp-millis": "ms",
    "local-timestamp-micros": "us",
    "local-timestamp-nanos": "ns",
}


_Path = tuple[str | int, ...]


class _Counted(BytesIO):
    """Ends the reading of a datum of very many values: each takes the memory of an object.

    It ends it where the datum ends, too: what is skipped is not looked at.
    """

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise ValueError(f"more than {MAX_READS} values and lengths in one message")
        found = super().read(size)
        if not found and size:
            raise EOFError("it is cut off")
        return found


@dataclass(frozen=True, slots=True)
class AvroSchema:
    """A bounded schema: the writer's, that of the fields to read, and the event time's unit."""

    writer: Any
    reader: Any
    time_unit: str | None

    def read(self, data: bytes, link: str) -> Any:
        """The fields of a datum.

        Raises:
            Unreadable: It is not of this schema.
        """
        # Only who configures the link needs the package.
        from fastavro import schemaless_reader  # noqa: PLC0415

        stream = _Counted(data)
        hint = next((form for mark, form in _FORMS.items() if data.startswith(mark)), "")
        try:
            found = schemaless_reader(stream, self.writer, self.reader)
        # fastavro raises many types for hostile bytes.
        except Exception as error:  # noqa: BLE001
            raise Unreadable(
                f"{link}: not a datum of the schema{hint}: {_printable(described(error))}"
            ) from None
        if (left := len(data) - stream.tell()) > 0:
            raise Unreadable(
                f"{link}: {left} bytes come after the datum: it is not of this schema{hint}"
            )
        return found


def avro_schema(tree: Any, paths: FieldPaths, referenced: Iterable[Any] = ()) -> AvroSchema:
    """Bound a schema and prepare to read the fields that paths name.

    ``tree`` is its JSON, ``referenced`` are schemas that define names which it uses.

    Raises:
        ValueError: It is no schema, one that is refused, or one without these fields.
    """
    from fastavro import parse_schema  # noqa: PLC0415  as above

    schemas = _Schemas()
    for other in referenced:
        schemas.plain(other)
    writer = schemas.plain(tree)
    begin: _Path = () if paths.each is None else (*steps_of(paths.each), 0)
    wanted = [(*begin, *steps_of(paths.path or ""))]
    if paths.key is not None:
        wanted.append((*begin, *steps_of(paths.key)))
    unit = None
    if paths.event_time is not None:
        wanted.append((*begin, *steps_of(paths.event_time)))
        unit = next((unit for unit in _units(writer, wanted[-1]) if unit), None)
    reader = _projected(writer, wanted, ())
    try:
        return AvroSchema(parse_schema(writer), parse_schema(reader), unit)
    except Exception as error:  # fastavro has errors of several bases
        raise ValueError(_printable(described(error))) from error


class _Schemas:
    """Writes schemas out without references: each use of a named type gets a name of its own."""

    def __init__(self) -> None:
        self._named: dict[str, tuple[Any, str]] = {}
        self._open: list[str] = []
        self._parts = self._symbols = 0

    def plain(self, tree: Any, namespace: str = "") -> Any:
        """A schema with nothing in it but what decides how it is read."""
        self._parts += 1
        if self._parts > MAX_SCHEMA_PARTS:
            raise ValueError(f"the schema has more than {MAX_SCHEMA_PARTS} parts")
        if len(self._open) > MAX_SCHEMA_DEPTH:
            raise ValueError(f"the schema is nested deeper than {MAX_SCHEMA_DEPTH}")
        if isinstance(tree, str):
            return tree if tree in _PRIMITIVES else self._use(tree, namespace)
        self._open.append("")
        try:
            if isinstance(tree, list):
                return [self.plain(branch, namespace) for branch in tree]
            if isinstance(tree, dict):
                return self._complex(tree, namespace)
        finally:
            self._open.pop()
        raise ValueError(f"expected a schema, got {_printable(repr(tree))}")

    def _complex(self, tree: dict[str, Any], namespace: str) -> Any:
        kind = tree.get("type")
        if kind == "array":
            items = self.plain(tree.get("items"), namespace)
            if _least_bytes(items) == 0:
                raise ValueError("the schema has an array of what takes no bytes: it never ends")
            return {"type": "array", "items": items}
        if kind == "map":
            return {"type": "map", "values": self.plain(tree.get("values"), namespace)}
        if kind in (*_RECORDS, "enum", "fixed"):
            name = self._full_name(tree.get("name"), tree.get("namespace"), namespace)
            self._named[name] = tree, namespace
            return self._use(name, namespace)
        if kind in _PRIMITIVES:
            return {"type": kind, "unit": _UNITS.get(str(tree.get("logicalType")))}
        return self.plain(kind, namespace)

    def _use(self, name: str, namespace: str) -> Any:
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        full = full if full in self._named else name
        if full not in self._named:
            raise ValueError(f"the schema names a type {_printable(name)!r} that is not in it")
        if full in self._open:
            raise ValueError(
                f"the schema has a type {_printable(full)!r} within itself, which is not read"
            )
        tree, outer = self._named[full]
        self._open.append(full)
        try:
            return self._named_type(tree, full.rpartition(".")[0] or outer)
        finally:
            self._open.pop()

    def _named_type(self, tree: dict[str, Any], namespace: str) -> Any:
        kind, own_name = tree["type"], f"t{self._parts}"
        if kind == "enum":
            symbols = tree.get("symbols")
            self._symbols += len(symbols) if isinstance(symbols, list) else 0
            if self._symbols > MAX_SCHEMA_SYMBOLS:
                raise ValueError(f"the schema has enums of more than {MAX_SCHEMA_SYMBOLS} symbols")
            return {"type": "enum", "name": own_name, "symbols": symbols}
        if kind == "fixed":
            size = tree.get("size")
            if not isinstance(size, int) or size < 0:
                raise ValueError("the schema has a fixed type without a size")
            return {"type": "fixed", "name": own_name, "size": size}
        fields = tree.get("fields")
        if not isinstance(fields, list) or not all(
            isinstance(field, dict) and isinstance(field.get("name"), str) for field in fields
        ):
            raise ValueError("the schema has a record without fields")
        plain = [
            {"name": field["name"], "type": self.plain(field.get("type"), namespace)}
            for field in fields
        ]
        return {"type": "record", "name": own_name, "fields": plain}

    def _full_name(self, name: Any, own: Any, namespace: str) -> str:
        if not isinstance(name, str):
            raise ValueError("the schema has a type without a name")  # noqa: TRY004
        space = own if isinstance(own, str) else namespace
        return name if "." in name or not space else f"{space}.{name}"


def _least_bytes(node: Any) -> int:
    """The least that a value of a plain schema takes."""
    if node == "null":
        return 0
    if not isinstance(node, dict):
        return 1
    if node["type"] == "record":
        return sum(_least_bytes(field["type"]) for field in node["fields"])
    if node["type"] == "fixed":
        return int(node["size"])
    return 0 if node["type"] == "null" else 1


def _projected(node: Any, wanted: Sequence[_Path], at: _Path) -> Any:
    """The part of a plain schema that leads to what is wanted."""
    if not all(wanted):
        return node
    if isinstance(node, list):
        return _projected_union(node, wanted, at)
    kind = node["type"] if isinstance(node, dict) else node
    first = {path[0] for path in wanted}
    if kind == "record":
        names = [field["name"] for field in node["fields"]]
        if missing := [str(name) for name in first if name not in names]:
            listed = _printable(", ".join(names))
            raise ValueError(
                f"no field {_joined((*at, missing[0]))}; fields are {listed or 'none'}"
            )
        fields = [
            {
                "name": name,
                "type": _projected(field["type"], _beyond(wanted, name), (*at, name)),
            }
            for name, field in zip(names, node["fields"], strict=True)
            if name in first
        ]
        return {**node, "fields": fields}
    rest = [path[1:] for path in wanted]
    if kind == "array" and all(isinstance(step, int) for step in first):
        return {**node, "items": _projected(node["items"], rest, (*at, 0))}
    if kind == "map" and all(isinstance(step, str) for step in first):
        return {**node, "values": _projected(node["values"], rest, (*at, *first))}
    hint = ": name it in each, or an element of it by its number" if kind == "array" else ""
    raise ValueError(f"{_joined(at) or 'the datum'} is of type {kind}{hint}")


def _projected_union(node: Sequence[Any], wanted: Sequence[_Path], at: _Path) -> list[Any]:
    branches, problem, fits = [], None, False
    for branch in node:
        try:
            branches.append(_projected(branch, wanted, at))
            fits = True
        except ValueError as error:
            branches.append(branch)
            problem = error if problem is None or branch != "null" else problem
    if not fits:
        raise problem or ValueError("the schema has a union of nothing")
    return branches


def _beyond(wanted: Sequence[_Path], step: str) -> list[_Path]:
    return [path[1:] for path in wanted if path[0] == step]


def _units(node: Any, path: _Path) -> Iterator[str | None]:
    """The units of the times that a path leads to."""
    if isinstance(node, list):
        for branch in node:
            yield from _units(branch, path)
    elif not path:
        yield node.get("unit") if isinstance(node, dict) else None
    elif isinstance(node, dict) and node["type"] == "record":
        for field in node["fields"]:
            if field["name"] == path[0]:
                yield from _units(field["type"], path[1:])
    elif isinstance(node, dict) and node["type"] in ("array", "map"):
        yield from _units(node.get("items", node.get("values")), path[1:])


def _joined(steps: _Path) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return text.removeprefix(".")


def _printable(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")[:120]


def schema_tree(text: str) -> Any:
    """The JSON of a schema.

    Raises:
        ValueError: It is not JSON, or too large.
    """
    if len(text) > MAX_SCHEMA_BYTES:
        raise ValueError(f"the schema has {len(text)} characters, more than {MAX_SCHEMA_BYTES}")
    if text in _PRIMITIVES:
        return text
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the schema is nested too deep") from None


def _single_object_mark(tree: Any) -> bytes:
    """What stands before a datum of this schema in single-object encoding."""
    from fastavro.schema import fingerprint, to_parsing_canonical_form  # noqa: PLC0415  as above

    found = fingerprint(to_parsing_canonical_form(tree), "CRC-64-AVRO")
    return _SINGLE_OBJECT + bytes.fromhex(found)


class AvroFieldLink(Link):
    """Reads Avro data of one schema, and takes a field of each; in single-object encoding, too.

    Raises:
        ConfigError: The schema cannot be read, is refused, or has no such field.
    """

    def __init__(self, settings: AvroField, limits: LimitSettings) -> None:
        where = f"messages.read avro_field.schema_file {settings.schema_file}"
        try:
            tree = schema_tree(settings.schema_file.read_text(encoding="utf-8"))
            self._schema = avro_schema(tree, settings)
            self._mark = _single_object_mark(tree)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the schema cannot be used: {error}", where) from error
        self._fields = Fields("avro_field", settings, limits.max_images_per_message)

    def __call__(self, piece: Piece) -> Sequence[Piece]:
        """The field's value, or one of each element."""
        data = as_bytes(piece.value, "avro_field").removeprefix(self._mark)
        found = self._schema.read(data, "avro_field")
        return self._fields.pieces(piece, found, self._schema.time_unit)
