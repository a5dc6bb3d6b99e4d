"""Schemas from a registry with Confluent's interface, and messages in its wire format.

Byte 0, the schema's id in four bytes, and the datum; of Protobuf, the place of the message's type
in the schema comes before the datum. Ids come from producers, who are not trusted: one that the
registry does not know costs a request a minute, and what its schemas hold is bounded before it is
used.
"""

import json
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import urllib3
from urllib3.exceptions import HTTPError

from nap_stream.clock import Clock, Deadline
from nap_stream.files import read_secret
from nap_stream.messages.avro import AvroSchema, avro_schema, schema_tree
from nap_stream.messages.paths import Fields
from nap_stream.messages.pieces import Away, Link, Piece, Unreadable, as_bytes, secret_of, trusted
from nap_stream.messages.proto_compiler import Compiled, compile_proto
from nap_stream.messages.protobuf import ProtobufMessage
from nap_stream.messages.text_links import unframed
from nap_stream.settings.messages import ConfluentProtobuf, FieldPaths, RegistrySettings
from nap_stream.settings.schema import LimitSettings
from nap_stream.text import described

MAX_ANSWER_BYTES = 2 * 2**20
MAX_REFERENCES = 50
KEPT_SCHEMAS = 1_000
UNKNOWN_FOR_S = 60.0
"""How long an id is not asked for again that the registry does not know."""
_NOT_FOUND = (404, 422)
_DENIED = (401, 403)
_PIECE_BYTES = 64 * 2**10
_MAX_INDEXES = 32

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RegisteredSchema:
    """A schema as the registry has it; ``references`` are (name, text), what they need first."""

    kind: str
    text: str
    references: tuple[tuple[str, str], ...]


class SchemaRegistry:
    """Asks a registry, once and with a time-out; who calls decides what to do where it is away.

    Raises:
        ConfigError: The certificates cannot be read.
    """

    def __init__(self, settings: RegistrySettings, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self.what = f"the schema registry {settings.url}"
        timeout_s, is_plain = settings.timeout_s, settings.url.startswith("http:")
        where = "messages.registry.ca_file"
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=timeout_s, read=timeout_s),
            retries=False,
            ssl_context=None if is_plain else trusted(settings.ca_file, where),
        )

    def schema(self, number: int) -> RegisteredSchema:
        """The schema with an id, and all that it refers to.

        Raises:
            Unreadable: The registry has none, or it refers to too much.
            Away: The registry does not answer, or not as one does.
        """
        tree = self._get(f"/schemas/ids/{number}", f"schema id {number}")
        references: dict[str, str] = {}
        self._collect(tree, references, ())
        kind = tree.get("schemaType") or "AVRO"
        return RegisteredSchema(str(kind), _text(tree), tuple(references.items()))

    def close(self) -> None:
        """Release connections. Safe to call twice."""
        self._pool.clear()

    def _collect(self, tree: dict[str, Any], found: dict[str, str], above: tuple[str, ...]) -> None:
        references = tree.get("references") or []
        for reference in references if isinstance(references, list) else []:
            if not isinstance(reference, dict):
                continue
            name, subject = str(reference.get("name")), str(reference.get("subject"))
            if name in above or len(above) + len(found) > MAX_REFERENCES:
                raise Unreadable(f"the schema refers to itself, or to over {MAX_REFERENCES} others")
            if name in found:
                continue
            version = quote(str(reference.get("version")), safe="")
            path = f"/subjects/{quote(subject, safe='')}/versions/{version}"
            other = self._get(path, f"a schema that it refers to, {name[:80]!r},")
            self._collect(other, found, (*above, name))
            found[name] = _text(other)

    def _get(self, path: str, wanted: str) -> dict[str, Any]:
        deadline = Deadline(self._clock, self._settings.timeout_s)
        headers = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
        try:
            response = self._pool.request(
                "GET",
                self._settings.url + path,
                headers=headers | self._credentials(),
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except HTTPError as error:
            # Its text quotes the address, which has no secret, and nothing that was sent.
            raise Away(self.what, f"it does not answer ({type(error).__name__})") from None
        try:
            body = self._body(response, deadline)
        finally:
            response.close()
        if response.status in _NOT_FOUND:
            raise Unreadable(f"{wanted} is not in {self.what}")
        if response.status in _DENIED:
            raise Away(
                self.what, f"it answers {response.status}: check messages.registry's credentials"
            )
        if response.status != 200:  # noqa: PLR2004  what HTTP calls success
            raise Away(self.what, f"it answers {response.status}")
        try:
            tree = json.loads(body)
        except (ValueError, RecursionError):
            tree = None
        if not isinstance(tree, dict) or not isinstance(tree.get("schema"), str):
            raise Away(self.what, "it answers no schema: check that messages.registry.url is its")
        return tree

    def _body(self, response: urllib3.BaseHTTPResponse, deadline: Deadline) -> bytes:
        body = b""
        try:
            while part := response.read1(_PIECE_BYTES, decode_content=False):
                body += part
                if len(body) > MAX_ANSWER_BYTES:
                    raise Unreadable(f"the schema takes over {MAX_ANSWER_BYTES} bytes")
                if deadline.expired():
                    raise Away(self.what, "it does not answer in time")
        except HTTPError as error:
            raise Away(self.what, f"its answer breaks off ({type(error).__name__})") from None
        return body

    def _credentials(self) -> dict[str, str]:
        given = self._settings
        if given.bearer_token_file is not None:
            return {"Authorization": f"Bearer {secret_of(given.bearer_token_file, self.what)}"}
        if given.username is None:
            return {}
        if given.password is not None:
            password = given.password.get_secret_value()
        else:
            assert given.password_file is not None, "settings with a username have a password"
            password = secret_of(given.password_file, self.what, read_secret)
        return urllib3.util.make_headers(basic_auth=f"{given.username}:{password}")


def _text(tree: dict[str, Any]) -> str:
    text = tree.get("schema")
    if not isinstance(text, str):
        raise Unreadable("the registry has no text of the schema")
    return text


class Kept(Generic[T]):
    """What is made of schemas, kept by id: also that one cannot be used, for a while.

    ``make`` is called by one thread at a time, and raises `Unreadable` or `Away`.
    """

    def __init__(self, make: Callable[[Any], T], clock: Clock) -> None:
        self._make, self._clock = make, clock
        self._lock = threading.Lock()
        self._found: OrderedDict[Hashable, T] = OrderedDict()
        self._refused: OrderedDict[Hashable, tuple[Unreadable, float]] = OrderedDict()

    def __call__(self, key: Hashable) -> T:
        """What is made of the schema with this key."""
        found = self._found.get(key)
        if found is not None:
            return found
        with self._lock:
            found = self._found.get(key)
            if found is not None:
                return found
            unreadable, until = self._refused.get(key, (None, 0.0))
            if unreadable is not None and self._clock.monotonic() < until:
                raise Unreadable(unreadable.error, unreadable.status)
            try:
                found = self._make(key)
            except Unreadable as error:
                self._refused[key] = error, self._clock.monotonic() + UNKNOWN_FOR_S
                self._refused.move_to_end(key)
                _shorten(self._refused)
                raise
            self._found[key] = found
            _shorten(self._found)
            return found


def _shorten(kept: OrderedDict[Hashable, Any]) -> None:
    while len(kept) > KEPT_SCHEMAS:
        kept.popitem(last=False)


@contextmanager
def _usable(link: str, number: int) -> Iterator[None]:
    """What raises ValueError of a schema in this block says that it cannot be used."""
    try:
        yield
    except ValueError as error:
        raise Unreadable(f"{link}: schema {number} cannot be used: {_one_line(error)}") from None


class _RegisteredLink(Link, Generic[T]):
    """A link that reads by what `_made` makes of registered schemas, by key."""

    name: str
    kind: str

    def __init__(
        self,
        settings: FieldPaths,
        limits: LimitSettings,
        registry: SchemaRegistry,
        clock: Clock,
    ) -> None:
        self._settings, self._registry = settings, registry
        self._fields = Fields(self.name, settings, limits.max_images_per_message)
        self._schemas: Kept[T] = Kept(self._made, clock)

    @abstractmethod
    def _made(self, key: Any) -> T: ...

    def close(self) -> None:
        """Release the registry's connections."""
        self._registry.close()

    def _asked(self, number: int) -> RegisteredSchema:
        try:
            found = self._registry.schema(number)
        except Unreadable as unreadable:
            raise Unreadable(f"{self.name}: {unreadable.error}", unreadable.status) from None
        if found.kind != self.kind:
            raise ValueError(f"it is one of {found.kind}")
        return found


class ConfluentAvroLink(_RegisteredLink[AvroSchema]):
    """Reads Avro data of registered schemas, and takes a field of each."""

    name, kind = "confluent_avro", "AVRO"

    def __call__(self, piece: Piece) -> Sequence[Piece]:
        """The field's value, or one of each element."""
        number, data = unframed(as_bytes(piece.value, self.name), self.name)
        schema = self._schemas(number)
        return self._fields.pieces(piece, schema.read(data, self.name), schema.time_unit)

    def _made(self, key: int) -> AvroSchema:
        with _usable(self.name, key):
            found = self._asked(key)
            others = [schema_tree(text) for _, text in found.references]
            return avro_schema(schema_tree(found.text), self._settings, others)


class ConfluentProtobufLink(_RegisteredLink[ProtobufMessage]):
    """Reads Protobuf messages of registered schemas, and takes a field of each."""

    name, kind = "confluent_protobuf", "PROTOBUF"

    def __init__(
        self,
        settings: ConfluentProtobuf,
        limits: LimitSettings,
        registry: SchemaRegistry,
        clock: Clock,
    ) -> None:
        super().__init__(settings, limits, registry, clock)
        self._wanted = settings.message
        self._files: Kept[Compiled] = Kept(self._file, clock)

    def __call__(self, piece: Piece) -> Sequence[Piece]:
        """The field's value, or one of each element."""
        number, data = unframed(as_bytes(piece.value, self.name), self.name)
        indexes, start = message_indexes(data)
        message = self._schemas((number, indexes))
        return self._fields.pieces(piece, message.read(data[start:], self.name))

    def _file(self, number: int) -> Compiled:
        with _usable(self.name, number):
            found = self._asked(number)
            return compile_proto(found.text, found.references)

    def _made(self, key: tuple[int, tuple[int, ...]]) -> ProtobufMessage:
        number, indexes = key
        compiled, wanted = self._files(number), self._wanted
        with _usable(self.name, number):
            name = compiled.name_at(indexes)
            if wanted is not None and name != wanted:
                raise ValueError(f"the message is a {name}, not a {wanted}")
            return ProtobufMessage(compiled.descriptors, name, self._settings)


def message_indexes(data: bytes) -> tuple[tuple[int, ...], int]:
    """The place of the message's type in its schema, and where the datum begins.

    A count, and so many numbers, in Avro's variable-length form; the count 0 stands for the first.

    Raises:
        Unreadable: It is cut off, or is no place.
    """
    numbers: list[int] = []
    position, wanted = 0, 1
    while len(numbers) < wanted:
        value = shift = 0
        while True:
            if position >= len(data) or shift > _MAX_INDEXES:
                raise Unreadable("confluent_protobuf: the message's place in the schema is cut off")
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:  # noqa: PLR2004  the bit that says that more follows
                break
        numbers.append(value >> 1 ^ -(value & 1))
        if len(numbers) == 1:
            wanted = 1 + numbers[0]
            if not 0 <= numbers[0] <= _MAX_INDEXES:
                raise Unreadable("confluent_protobuf: no place of a message in a schema")
    return tuple(numbers[1:]) or (0,), position


def _one_line(error: Exception) -> str:
    text = str(error) if type(error) is ValueError else described(error)
    return " ".join(text.encode("ascii", "backslashreplace").decode().split())[:200]
