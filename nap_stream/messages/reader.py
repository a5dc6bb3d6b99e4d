"""From a message to the bytes of its images, by the chain of links that the settings name.

What cannot be read is an image with a status and an error that names the link. What is away (a
registry, a host, a store) is waited for, with the message: an outage must not make rows of
failures of a stream. Meanwhile nothing behind it is scored, and the worker says what it waits for.
"""

import importlib.util
import threading
from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from nap_stream.clock import Clock, SystemClock
from nap_stream.errors import ConfigError
from nap_stream.messages.addresses import Resolve, resolve_host
from nap_stream.messages.pieces import Away, Link, Piece, Unreadable, kind_of, shown
from nap_stream.records import Message, SourceImage, Status
from nap_stream.settings.messages import (
    AvroField,
    Base64,
    ConfluentAvro,
    ConfluentProtobuf,
    DataUri,
    FetchSettings,
    JsonField,
    LinkName,
    MessageSettings,
    ProtobufField,
    RegistrySettings,
)
from nap_stream.settings.messages import Link as LinkSettings
from nap_stream.settings.schema import LimitSettings

BACKOFF_INITIAL_S = 1.0
BACKOFF_MAX_S = 30.0


class ReadingEndedError(Exception):
    """The reader was closed while it waited: the message is to be read again by another."""


class MessageReader:
    """Reads messages; called by several threads at once.

    ``backoff_initial_s`` and ``backoff_max_s`` are the seconds between two tries of what is away.
    """

    def __init__(
        self,
        links: Sequence[Link],
        limits: LimitSettings,
        *,
        wait_s: float | None,
        clock: Clock,
        backoff_initial_s: float = BACKOFF_INITIAL_S,
        backoff_max_s: float = BACKOFF_MAX_S,
    ) -> None:
        self._links, self._limits, self._wait_s = tuple(links), limits, wait_s
        self._clock, self._backoff = clock, (backoff_initial_s, backoff_max_s)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._waits: dict[int, Away] = {}

    @property
    def waiting_for(self) -> str | None:
        """What is waited for; None while nothing is."""
        with self._lock:
            return next((str(away) for away in self._waits.values()), None)

    def __call__(self, message: Message) -> tuple[SourceImage, ...]:
        """The images of a message: at least one, in the order in which they stand in it.

        Raises:
            ReadingEndedError: `close` was called while something was waited for.
        """
        if message.value is None:
            return (SourceImage(None, Status.TOMBSTONE, "the value is null"),)
        if not message.value:
            return (SourceImage(None, Status.EMPTY, "the value has no bytes"),)
        pieces = [Piece(message.value)]
        for link in self._links:
            further: list[Piece] = []
            size = 0
            for piece in pieces:
                if size > self._limits.max_message_bytes:
                    # References are short: without it, a message could fill the memory.
                    further.append(piece.with_value(self._too_much()))
                    continue
                found = self._further(link, piece, message)
                further += found
                size += sum(len(each.value) for each in found if isinstance(each.value, bytes))
                if len(further) > self._limits.max_images_per_message:
                    return (self._too_many(),)
            pieces = further
        return tuple(map(self._image, pieces))

    def close(self) -> None:
        """End what is waited for, and release connections. Safe to call twice."""
        self._closing.set()
        for link in self._links:
            link.close()

    def _further(self, link: Link, piece: Piece, message: Message) -> Sequence[Piece]:
        if isinstance(piece.value, Unreadable):
            return (piece,)
        try:
            return self._waited(link, piece, message)
        except Unreadable as unreadable:
            return (piece.with_value(unreadable),)

    def _waited(self, link: Link, piece: Piece, message: Message) -> Sequence[Piece]:
        """What a link makes of a piece, as soon as what it needs is there."""
        pause_s, longest_s = self._backoff
        since = self._clock.monotonic()
        is_waiting = False
        try:
            while True:
                try:
                    found = link(piece)
                except Away as away:
                    if self._closing.is_set():
                        raise ReadingEndedError(str(message)) from None
                    waited_s = self._clock.monotonic() - since
                    if self._wait_s is not None and waited_s >= self._wait_s:
                        error = f"{away}, for {waited_s:.0f} s" if self._wait_s else str(away)
                        raise Unreadable(error, Status.FETCH_FAILED, away.source_uri) from None
                    self._note(away, message, is_first=not is_waiting)
                    is_waiting = True
                else:
                    return found
                left_s = pause_s if self._wait_s is None else self._wait_s - waited_s
                self._closing.wait(min(pause_s, left_s))
                pause_s = min(pause_s * 2, longest_s)
        finally:
            if is_waiting:
                self._over(message)

    def _note(self, away: Away, message: Message, *, is_first: bool) -> None:
        with self._lock:
            is_new = all(away.what != other.what for other in self._waits.values())
            self._waits[threading.get_ident()] = away
        # Threads that wait for the same would say the same.
        if is_first and is_new:
            structlog.get_logger().warning(
                "waiting_for", what=away.what, cause=away.cause, message=str(message)
            )

    def _over(self, message: Message) -> None:
        with self._lock:
            away = self._waits.pop(threading.get_ident())
            is_last = all(away.what != other.what for other in self._waits.values())
        if is_last:
            structlog.get_logger().info("goes_on", waited_for=str(away), message=str(message))

    def _image(self, piece: Piece) -> SourceImage:
        value, key, uri = piece.value, piece.key, piece.source_uri
        status, error, data = Status.OK, None, None
        if len(key or b"") > self._limits.max_key_bytes:
            value = Unreadable(
                f"the key has {len(key or b'')} bytes, more than limits.max_key_bytes = "
                f"{self._limits.max_key_bytes}; it is left out",
                Status.TOO_LARGE,
            )
            key = None
        if isinstance(value, Unreadable):
            status, error, uri = value.status, value.error, value.source_uri or uri
        elif isinstance(value, bytes):
            data = value
        else:
            what = f"{kind_of(value)} and not bytes"
            hint = (
                f"; {shown(value)}: base64 or fetch may be missing"
                if isinstance(value, str)
                else ""
            )
            status, error = Status.BAD_MESSAGE, f"messages.read ends with {what}{hint}"
        return SourceImage(data, status, error, key, piece.has_key, piece.event_time_ms, uri)

    def _too_much(self) -> Unreadable:
        most = self._limits.max_message_bytes
        error = f"the images before it have more than limits.max_message_bytes = {most} together"
        return Unreadable(error, Status.TOO_LARGE)

    def _too_many(self) -> SourceImage:
        most = self._limits.max_images_per_message
        return SourceImage(
            None, Status.TOO_LARGE, f"more than limits.max_images_per_message = {most} images"
        )


def open_reader(
    settings: MessageSettings,
    limits: LimitSettings,
    *,
    clock: Clock | None = None,
    resolve: Resolve = resolve_host,
) -> MessageReader | None:
    """The reader of the settings' chain; None where a message's value is the image.

    Raises:
        ConfigError: A schema or certificates cannot be used, or a package is missing.
    """
    if not settings.read:
        return None
    _require_packages(settings)
    clock = clock or SystemClock()
    links = [_link(link, settings.registry, limits, clock, resolve) for link in settings.read]
    return MessageReader(links, limits, wait_s=settings.wait_s, clock=clock)


_PACKAGES: Final[Mapping[LinkName, tuple[str, ...]]] = {
    "avro_field": ("fastavro",),
    "confluent_avro": ("fastavro",),
    "protobuf_field": ("google.protobuf",),
    "confluent_protobuf": ("google.protobuf", "grpc_tools"),
}
"""What links need that is not installed with nap-stream itself."""


def _require_packages(settings: MessageSettings) -> None:
    for number, link in enumerate(settings.read):
        for package in _PACKAGES.get(link.name, ()):
            if not _is_installed(package):
                raise ConfigError(
                    f"{link.name} needs the package {package}, which is not installed",
                    f"messages.read.{number}",
                    "pip install 'nap-stream[registry]'",
                )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _link(
    link: LinkSettings,
    registry: RegistrySettings | None,
    limits: LimitSettings,
    clock: Clock,
    resolve: Resolve,
) -> Link:
    # Each of these needs packages of its own.
    from nap_stream.messages import avro, fetch, protobuf, text_links  # noqa: PLC0415

    given = link.settings
    match given:
        case JsonField():
            found: Link = text_links.JsonFieldLink(given, limits)
        case AvroField():
            found = avro.AvroFieldLink(given, limits)
        case ProtobufField():
            found = protobuf.ProtobufFieldLink(given, limits)
        case ConfluentAvro() | ConfluentProtobuf():
            found = _registered(given, registry, limits, clock)
        case Base64():
            found = text_links.EncodedLink("base64", limits)
        case DataUri():
            found = text_links.EncodedLink("data_uri", limits)
        case FetchSettings():
            found = fetch.FetchLink(given, limits, clock, resolve=resolve)
        case _:
            found = text_links.S3EventLink(limits)
    return found


def _registered(
    given: ConfluentAvro | ConfluentProtobuf,
    settings: RegistrySettings | None,
    limits: LimitSettings,
    clock: Clock,
) -> Link:
    from nap_stream.messages import registry  # noqa: PLC0415  as above

    assert settings is not None, "settings with a confluent_… link have a registry"
    found = registry.SchemaRegistry(settings, clock)
    if isinstance(given, ConfluentAvro):
        return registry.ConfluentAvroLink(given, limits, found, clock)
    return registry.ConfluentProtobufLink(given, limits, found, clock)
