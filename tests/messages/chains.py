"""Readers of chains as settings name them, and messages for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nap_stream.clock import Clock
from nap_stream.messages.addresses import Resolve, resolve_host
from nap_stream.messages.reader import MessageReader, open_reader
from nap_stream.records import Message, SourceImage, TopicPartition
from nap_stream.settings.messages import MessageSettings
from nap_stream.settings.schema import LimitSettings

LIMITS = LimitSettings(max_images_per_message=20, max_image_bytes=100_000, max_key_bytes=100)


def chain(
    *links: Any,
    limits: LimitSettings = LIMITS,
    resolve: Resolve = resolve_host,
    clock: Clock | None = None,
    **sections: Any,
) -> MessageReader:
    """The reader of ``links``, as YAML has them."""
    settings = MessageSettings.model_validate({"read": list(links), **sections})
    reader = open_reader(settings, limits, resolve=resolve, clock=clock)
    assert reader is not None
    return reader


def message(value: bytes | None) -> Message:
    return Message(TopicPartition("images", 0), 7, 1_000, b"k", value)


def read(reader: MessageReader, value: bytes | str | None) -> tuple[SourceImage, ...]:
    return reader(message(value.encode() if isinstance(value, str) else value))


def one(reader: MessageReader, value: bytes | str | None) -> SourceImage:
    (found,) = read(reader, value)
    return found


def refused(reader: MessageReader, value: bytes | str | None) -> tuple[str, str]:
    """The status and the error of the one image of a message."""
    found = one(reader, value)
    assert found.data is None
    assert found.error is not None
    assert found.error.isprintable()
    assert len(found.error) <= 300
    return found.status.value, found.error


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def datas(found: Sequence[SourceImage]) -> list[bytes | None]:
    return [image.data for image in found]
