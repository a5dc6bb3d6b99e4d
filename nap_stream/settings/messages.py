"""The settings of the reader chain: how the image is found in a message that is more than it."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    IPvAnyNetwork,
    PositiveFloat,
    SecretStr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from nap_stream.clouds import CLOUDS, parsed
from nap_stream.settings.values import (
    ExistingPath,
    HttpAddress,
    Positive,
    PositiveSeconds,
    SecretFile,
    Section,
    require_unread,
)
from nap_stream.text import without_secrets

STEP = re.compile(r"""\.?(?P<name>[^.\[\]"'*]+)|\[(?P<index>\d{1,6})\]|\["(?P<quoted>[^"]+)"\]""")
"""One step of a path."""
_HOST = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")

TimeUnit = Literal["s", "ms", "us", "ns"]


def steps_of(path: str) -> tuple[str | int, ...]:
    """The names and numbers of a path such as ``frame.parts[0].data``; a leading ``$`` is its root.

    Raises:
        ValueError: It is no such path.
    """
    rest, steps = path.removeprefix("$"), []
    while rest:
        match = STEP.match(rest)
        if match is None:
            raise ValueError(
                f"not a path at {rest[:20]!r}: expected names, as in frame.data, parts[0] or "
                '["odd.name"]; an array whose elements are images is named in each'
            )
        steps.append(int(match["index"]) if match["index"] else match["name"] or match["quoted"])
        rest = rest[match.end() :]
    return tuple(steps)


def _path(value: str) -> str:
    steps_of(value)
    return value


Path = Annotated[str, Field(max_length=1_000)]


class FieldPaths(Section):
    """Which field of a structure is the image, or the reference to it."""

    path: Path | None = None
    """The field, as frame.data. May be left out where `each` names an array of images."""
    each: Path | None = None
    """An array: each of its elements is an image, and the other paths begin at the element."""
    key: Path | None = None
    """The field whose value is the image's key, in place of the message's."""
    event_time: Path | None = None
    """The field of its event time, in place of the message's timestamp: RFC 3339, or a number."""
    event_time_unit: TimeUnit = "ms"
    """Of an event time that is a number since 1970."""

    @field_validator("path", "each", "key", "event_time")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        return value if value is None else _path(value)

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not (self.path or self.each):
            raise ValueError("name the field in path, or an array of images in each")
        return self


class JsonField(FieldPaths):
    """A field of a JSON document: text. End the chain with base64, data_uri or fetch."""

    confluent: bool = False
    """Whether a schema registry's five bytes (0 and the schema's id) stand before the document."""


class AvroField(FieldPaths):
    """A field of an Avro datum without framing, whose schema stands in a file."""

    schema_file: ExistingPath
    """The writer's schema (.avsc)."""


class ProtobufField(FieldPaths):
    """A field of a Protobuf message without framing, described by a file."""

    descriptor_file: ExistingPath
    """What protoc --include_imports --descriptor_set_out writes."""
    message: str = Field(min_length=1, max_length=1_000)
    """The message's full name, as camera.Frame."""


class ConfluentAvro(FieldPaths):
    """A field of an Avro datum after a schema registry's framing."""


class ConfluentProtobuf(FieldPaths):
    """A field of a Protobuf message after a schema registry's framing."""

    message: str | None = Field(default=None, max_length=1_000)
    """The message's full name, as camera.Frame: others are refused. Null takes any."""


class Base64(Section):
    """Base64 to bytes: standard or URL-safe, wrapped or not, padded or not; a data URI too."""


class DataUri(Section):
    """A data URI (data:image/jpeg;base64,…) to bytes."""


class S3Event(Section):
    """A notification of S3, MinIO or EventBridge to references: one an object that was created."""


def _bucket_address(name: str) -> str:
    """The address of a bucket; a name alone is one of S3."""
    address = name if "://" in name else f"s3://{name}"
    match parsed(address):
        case cloud, bucket, None if address == f"{cloud.scheme}://{bucket}":
            return address
    known = ", ".join(f"{cloud.scheme}://{cloud.bucket}" for cloud in CLOUDS.values())
    raise ValueError(
        f"{without_secrets(name)!r}: expected the name of a bucket of S3, or {known}, without key "
        "and wildcards"
    )


class FetchSettings(Section):
    """References to the objects' bytes, in buckets and over HTTP. Nothing is allowed by default."""

    allow_buckets: tuple[str, ...] = ()
    """Buckets that may be read, by their exact names: those of S3, gs://bucket, az://container."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts that may be asked, as images.example (ports 80 and 443) or images.example:8080. One
    whose name leads to a private address needs allow_networks too; an address stands for itself."""
    allow_networks: tuple[IPvAnyNetwork, ...] = ()
    """Networks that are not public in which hosts of allow_hosts may lie, as 10.1.0.0/16."""
    bearer_token_files: dict[str, SecretFile] = Field(default_factory=dict)
    """Files of tokens for the Authorization header, by the host of allow_hosts that each is for. A
    token is sent to that host alone, over https alone, and read anew for each object."""
    max_bytes: Positive | None = None
    """Of one object; null takes limits.max_image_bytes."""
    timeout_s: PositiveSeconds = 10.0
    """For one attempt, from looking the host up to the last byte."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 4
    """Attempts for an answer that may pass: none, 5xx, 408, 425, 429, or one that breaks off."""
    backoff_s: PositiveFloat = 0.2
    """The pause after the first attempt; each further one is twice as long, 10 s at most."""
    ca_file: ExistingPath | None = None
    """Certificates to trust instead of the system's. Those of object stores are the system's."""
    threads: Annotated[int, Field(gt=0, le=256)] = 16
    """Objects that a worker fetches at once."""

    @field_validator("allow_buckets")
    @classmethod
    def _bucket_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_bucket_address(name) for name in value)

    @field_validator("allow_hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _HOST.fullmatch(name):
                raise ValueError(
                    f"{name.rpartition('@')[2]!r}: expected host or host:port, without scheme, "
                    "path and wildcards"
                )
        return tuple(name.lower() for name in value)

    @field_validator("bearer_token_files")
    @classmethod
    def _one_token_a_host(cls, value: dict[str, Path]) -> dict[str, Path]:
        by_host = {name.lower(): path for name, path in value.items()}
        if len(by_host) < len(value):
            raise ValueError("a host is named twice: capitals make no other host")
        return by_host

    @model_validator(mode="after")
    def _tokens_are_of_hosts(self) -> Self:
        for name in self.bearer_token_files:
            if name not in self.allow_hosts:
                raise ValueError(f"bearer_token_files: {name!r} is not in allow_hosts")
        return self

    @model_validator(mode="after")
    def _something_is_allowed(self) -> Self:
        if not (self.allow_buckets or self.allow_hosts):
            raise ValueError("nothing is allowed: name buckets in allow_buckets, or hosts in "
                             "allow_hosts")  # fmt: skip
        return self


LinkName = Literal[
    "json_field",
    "avro_field",
    "protobuf_field",
    "confluent_avro",
    "confluent_protobuf",
    "base64",
    "data_uri",
    "s3_event",
    "fetch",
]


class Link(Section):
    """One link of the chain: exactly one of these keys."""

    json_field: JsonField | None = None
    avro_field: AvroField | None = None
    protobuf_field: ProtobufField | None = None
    confluent_avro: ConfluentAvro | None = None
    confluent_protobuf: ConfluentProtobuf | None = None
    base64: Base64 | None = None
    data_uri: DataUri | None = None
    s3_event: S3Event | None = None
    fetch: FetchSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        # In YAML, a link without settings is written as its name, or as a key without a value.
        if isinstance(value, str):
            if value not in cls.model_fields:
                # What is no name may be a secret, in place of a link that is given one.
                given = f", got {value!r}" if value.isidentifier() else ""
                raise ValueError(f"no such link; links are {', '.join(cls.model_fields)}{given}")
            return {value: {}}
        if isinstance(value, dict) and len(value) == 1:
            return {name: {} if given is None else given for name, given in value.items()}
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("expected exactly one link here; each one is an element of the list")
        return self

    @model_serializer(mode="wrap")
    def _that_link_alone(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if key == self.name}

    @property
    def name(self) -> LinkName:
        """Which link it is."""
        (name,) = self.model_fields_set
        return name  # type: ignore[return-value]

    @property
    def settings(self) -> Section:
        """The settings of that link."""
        found: Section = getattr(self, self.name)
        return found


class RegistrySettings(Section):
    """A schema registry with Confluent's interface, such as Confluent's own, Karapace, Apicurio.

    A user or a token needs https, but for a registry on this machine.
    """

    url: HttpAddress
    """Its address, without a user; Apicurio's ends in /apis/ccompat/v7."""
    username: str | None = None
    password: SecretStr | None = None
    """Only from NAP_STREAM__MESSAGES__REGISTRY__PASSWORD or `password_file`."""
    password_file: SecretFile | None = None
    """A file that holds the password, such as a mounted secret."""
    bearer_token_file: SecretFile | None = None
    """A file that holds a token for the Authorization header, in place of a user."""
    ca_file: ExistingPath | None = None
    """Certificates to trust instead of the system's."""
    timeout_s: PositiveSeconds = 10.0
    """For one attempt."""

    @field_validator("url")
    @classmethod
    def _whole_address(cls, value: str) -> str:
        try:
            parsed = parse_url(value)
        except LocationParseError:
            parsed = None
        if parsed is None or not parsed.host:
            raise ValueError("not an address")
        if parsed.auth or parsed.query or parsed.fragment:
            raise ValueError("expected an address without user, query and fragment: give username")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _credentials_are_whole(self) -> Self:
        password = self.password or self.password_file
        if self.password and self.password_file:
            raise ValueError("give password or password_file, not both")
        if bool(self.username) != bool(password):
            raise ValueError(
                "username goes with a password (NAP_STREAM__MESSAGES__REGISTRY__PASSWORD or "
                "password_file)"
            )
        if self.username and self.bearer_token_file:
            raise ValueError("give username or bearer_token_file, not both")
        if self.username or self.bearer_token_file:
            require_unread(self.url, "token" if self.bearer_token_file else "password")
        return self


class MessageSettings(Section):
    """How the image is found in a message. Without links, the message's value is the image."""

    read: tuple[Link, ...] = Field(default=(), max_length=10)
    """Links, from the message's value to the image's bytes, in this order."""
    registry: RegistrySettings | None = None
    """The schema registry of confluent_avro and confluent_protobuf."""
    wait_s: Annotated[float, Field(ge=0, le=30 * 86_400)] | None = None
    """How long a partition is held while an object store, a host or the registry is away, after the
    attempts. Then its messages become rows with status fetch_failed. Null holds it until they are
    back; 0 does not hold it."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [link.name for link in self.read]
        for number, name in enumerate(names):
            problem = _misplaced(names, number)
            if problem:
                raise ValueError(f"read[{number}] {name}: {problem}")
        if names and names[-1] == "json_field":
            raise ValueError(
                "read ends with json_field, which gives text: add base64, data_uri or fetch"
            )
        needs_registry = any(name.startswith("confluent_") for name in names)
        if needs_registry and self.registry is None:
            raise ValueError(f"{names[0]} needs messages.registry.url")
        if self.registry is not None and not needs_registry:
            raise ValueError("nothing in read uses messages.registry: add a confluent_… link")
        return self

    @property
    def fetch(self) -> FetchSettings | None:
        """The settings of the link that fetches, if there is one."""
        return self.read[-1].fetch if self.read else None


_BINARY = ("avro_field", "protobuf_field")
_TO_BYTES = ("base64", "data_uri")


def _misplaced(names: list[LinkName], number: int) -> str | None:  # noqa: PLR0911
    """Why a link cannot stand where it does."""
    name, before = names[number], names[number - 1] if number else None
    if before == "fetch":
        return "nothing comes after fetch, which gives the image's bytes: put it before"
    if before == "s3_event" and name != "fetch":
        return "s3_event gives references: only fetch can follow"
    if name == "s3_event" and number + 1 == len(names):
        return "it gives references to objects: add fetch, with allow_buckets"
    if name.startswith("confluent_") and number:
        return "a schema registry's framing begins the message: put it first"
    if name in _BINARY and before == "json_field":
        return "json_field gives text, and this reads bytes: put base64 between them"
    if name in _TO_BYTES and before in _TO_BYTES:
        return f"{before} gives bytes already; base64 alone reads data URIs too"
    return None
