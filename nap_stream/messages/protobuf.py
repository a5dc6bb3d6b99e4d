"""Protobuf, from producers that are not trusted.

What is read are the fields on the way to those that paths name: a description of them alone is
made of the message's own, and all else stays unread bytes. So a message takes no more memory than
it is long, whatever it repeats, and what a description imports does not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nap_stream.errors import ConfigError
from nap_stream.messages.paths import Fields
from nap_stream.messages.pieces import Link, Piece, Unreadable, as_bytes
from nap_stream.records import Status
from nap_stream.settings.messages import FieldPaths, ProtobufField, steps_of
from nap_stream.settings.schema import LimitSettings
from nap_stream.text import described

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

MAX_DESCRIPTOR_BYTES = 16 * 2**20
MAX_DEPTH = 50
MAX_REPEATED = 10_000
"""Each becomes an object, which takes far more memory than its bytes."""
_PACKAGE = "nap_stream_fields"


class ProtobufMessage:
    """Reads the fields of one type of message that paths name, as dicts and lists.

    ``name`` is the type's full name. ``descriptors`` is a serialised FileDescriptorSet.

    Raises:
        ValueError: There is no such type, or it has no such field.
    """

    def __init__(self, descriptors: bytes, name: str, paths: FieldPaths) -> None:
        self.name = name
        types = _types(descriptors)
        if name not in types:
            listed = ", ".join(sorted(types)[:10])
            raise ValueError(f"no message {name!r}; messages are {listed or 'none'}")
        begin: tuple[str | int, ...] = () if paths.each is None else (*steps_of(paths.each), 0)
        wanted = [
            _Wanted((*begin, *steps_of(path)), is_bytes=number != _TIME)
            for number, path in enumerate((paths.path or "", paths.key, paths.event_time))
            if path is not None
        ]
        self._class = _message_class(_Copy(types).of(name, wanted))

    def read(self, data: bytes, link: str) -> dict[str, Any]:
        """The fields of a message; one that is not in it is missing.

        Raises:
            Unreadable: It is no Protobuf message, or its fields are of other types.
        """
        message = self._class()
        try:
            message.ParseFromString(data)
            return _tree(message)
        except Unreadable as unreadable:
            raise Unreadable(f"{link}: {unreadable.error}", unreadable.status) from None
        # protobuf raises its own errors and ValueErrors.
        except Exception as error:  # noqa: BLE001
            why = described(error).encode("unicode_escape").decode("ascii")[:120]
            raise Unreadable(f"{link}: not a message {self.name}: {why}") from None


_TIME = 2
"""The place of the event time among the paths."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    path: tuple[str | int, ...]
    is_bytes: bool


def _types(descriptors: bytes) -> dict[str, "DescriptorProto"]:
    """All types of messages by their full names."""
    # Only who configures the link needs the package.
    from google.protobuf.descriptor_pb2 import FileDescriptorSet  # noqa: PLC0415

    if len(descriptors) > MAX_DESCRIPTOR_BYTES:
        raise ValueError(f"the description has more than {MAX_DESCRIPTOR_BYTES} bytes")
    found = FileDescriptorSet()
    try:
        found.ParseFromString(descriptors)
    except Exception as error:
        raise ValueError("no FileDescriptorSet, as protoc --descriptor_set_out writes") from error
    types: dict[str, DescriptorProto] = {}
    for file in found.file:
        waiting = [(f"{file.package}." if file.package else "", one) for one in file.message_type]
        while waiting:
            prefix, message = waiting.pop()
            types[prefix + message.name] = message
            waiting += [(f"{prefix}{message.name}.", one) for one in message.nested_type]
    return types


class _Copy:
    """Copies the fields of types that are wanted: each use of a type becomes one of its own."""

    def __init__(self, types: dict[str, "DescriptorProto"]) -> None:
        self._types = types

    def of(self, name: str, wanted: Sequence[_Wanted], at: str = "") -> "DescriptorProto":
        """The type of a message with the fields that are wanted."""
        from google.protobuf.descriptor_pb2 import DescriptorProto  # noqa: PLC0415  as above

        if at.count(".") > MAX_DEPTH:
            raise ValueError(f"a path has more than {MAX_DEPTH} steps")
        copy = DescriptorProto(name="M")
        own = {field.name: field for field in self._types[name].field}
        for step in dict.fromkeys(want.path[0] for want in wanted if want.path):
            place = f"{at}.{step}".removeprefix(".")
            if step not in own:
                listed = ", ".join(list(own)[:10])
                raise ValueError(f"no field {place}; fields are {listed or 'none'}")
            assert isinstance(step, str)
            beyond = [
                _Wanted(want.path[1:], want.is_bytes) for want in wanted if want.path[:1] == (step,)
            ]
            self._add(copy, own[step], beyond, place)
        return copy

    def _add(
        self,
        copy: "DescriptorProto",
        field: "FieldDescriptorProto",
        wanted: Sequence[_Wanted],
        place: str,
    ) -> None:
        repeated = field.label == field.LABEL_REPEATED
        numbered = [bool(want.path) and isinstance(want.path[0], int) for want in wanted]
        if repeated and not all(numbered):
            raise ValueError(f"{place} is repeated: name it in each, or an element as {place}[0]")
        if not repeated and any(numbered):
            raise ValueError(f"{place} is not repeated")
        rest = [_Wanted(want.path[1:], want.is_bytes) if repeated else want for want in wanted]
        new = copy.field.add(name=field.name, number=field.number, label=field.label)
        if not repeated:
            new.label = field.LABEL_OPTIONAL
        if field.type != field.TYPE_MESSAGE:
            if any(want.path for want in rest):
                raise ValueError(f"{place} is no message: it has no fields")
            # Text need not be UTF-8, where it is read as bytes.
            as_bytes = field.type == field.TYPE_STRING and all(want.is_bytes for want in rest)
            new.type = field.TYPE_BYTES if as_bytes else field.type
            if field.type in (field.TYPE_ENUM, field.TYPE_GROUP):
                raise ValueError(f"{place} is an enum or a group, which is not read")
            if repeated and new.type not in (field.TYPE_BYTES, field.TYPE_STRING):
                raise ValueError(f"{place} repeats numbers")
            return
        if not all(want.path for want in rest):
            raise ValueError(f"{place} is a message: name one of its fields")
        nested = self.of(field.type_name.removeprefix("."), rest, place)
        nested.name = f"M{field.number}"
        copy.nested_type.append(nested)
        new.type, new.type_name = field.TYPE_MESSAGE, nested.name


def _message_class(root: "DescriptorProto") -> Any:
    from google.protobuf import descriptor_pool, message_factory  # noqa: PLC0415  as above
    from google.protobuf.descriptor_pb2 import FileDescriptorProto  # noqa: PLC0415

    # Fields of proto2 tell whether they were there.
    file = FileDescriptorProto(name="fields.proto", package=_PACKAGE, syntax="proto2")
    file.message_type.append(root)
    try:
        pool = descriptor_pool.DescriptorPool()
        pool.AddSerializedFile(file.SerializeToString())
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.M"))
    # protobuf says so in many ways that names or numbers are not those of fields.
    except Exception as error:
        why = described(error).encode("unicode_escape").decode("ascii")[:120]
        raise ValueError(f"not a usable description: {why}") from error


def _tree(message: Any) -> dict[str, Any]:
    return {field.name: _value(field, value) for field, value in message.ListFields()}


def _value(field: Any, value: Any) -> Any:
    is_message = field.message_type is not None
    if isinstance(value, bytes | str | int | float):
        return value
    if is_message and hasattr(value, "ListFields"):
        return _tree(value)
    if len(value) > MAX_REPEATED:
        raise Unreadable(
            f"{field.name} is repeated more than {MAX_REPEATED} times", Status.TOO_LARGE
        )
    return [_tree(one) for one in value] if is_message else list(value)


class ProtobufFieldLink(Link):
    """Reads Protobuf messages of one type, and takes a field of each.

    Raises:
        ConfigError: The description cannot be read, or has no such message or field.
    """

    def __init__(self, settings: ProtobufField, limits: LimitSettings) -> None:
        where = f"messages.read protobuf_field.descriptor_file {settings.descriptor_file}"
        try:
            descriptors = settings.descriptor_file.read_bytes()
            self._message = ProtobufMessage(descriptors, settings.message, settings)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the description cannot be used: {error}", where) from error
        self._fields = Fields("protobuf_field", settings, limits.max_images_per_message)

    def __call__(self, piece: Piece) -> Sequence[Piece]:
        """The field's value, or one of each element."""
        data = as_bytes(piece.value, "protobuf_field")
        return self._fields.pieces(piece, self._message.read(data, "protobuf_field"))
