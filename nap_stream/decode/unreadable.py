"""What bytes look like that are no image, and which setting reads them."""

import base64
import binascii
import re
import struct
from typing import Final

_MESSAGES: Final = "set messages: ... (docs/messages.md)"
_OF_AN_ERROR: Final = "as of an error page: look at what the producer fetched"
_NOT_A_FILE: Final = "not the file: send what is in it, or a URL"
_SHOWN_BYTES = 8
_LOOKED_AT = 4_096
_MAGIC: Final = (
    (b"\x1f\x8b", f"gzip: {_MESSAGES}, or send it unpacked"),
    (b"BZh", "bzip2: send it unpacked"),
    (b"\xfd7zXZ\0", "xz: send it unpacked"),
    (b"\x28\xb5\x2f\xfd", "Zstandard: send it unpacked"),
    (b"\x04\x22\x4d\x18", "LZ4: send it unpacked"),
    (b"PK\x03\x04", "a ZIP archive: send the images themselves"),
    (b"Rar!", "a RAR archive: send the images themselves"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: send the images themselves"),
    (b"%PDF", "PDF: send its pages as images"),
    (b"Obj\x01", f"an Avro container file: {_MESSAGES}"),
    (b"\xc3\x01", f"an Avro datum in single-object encoding: {_MESSAGES}"),
    (b"PAR1", "Parquet: send the images themselves"),
    (b"ARROW1\0\0", "an Arrow file: send an Arrow stream with its content-type header"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000: encode as JPEG or PNG"),
    (b"\xff\x4f\xff\x51", "JPEG 2000: encode as JPEG or PNG"),
    (b"\xff\x0a", "JPEG XL: encode as JPEG or PNG"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL: encode as JPEG or PNG"),
    (b"\x1aE\xdf\xa3", "Matroska or WebM video: send its frames as images"),
    (b"\x89HDF\r\n\x1a\n", "HDF5: send the images themselves"),
    (b"\x76\x2f\x31\x01", "OpenEXR: encode as PNG"),
    (b"8BPS", "Photoshop: encode as PNG"),
    (b"SIMPLE  =", "FITS: encode as PNG"),
    (b"\x80\x04\x95", "a Python pickle, which is never read: send .npy or an image"),
    (b"\x80\x05\x95", "a Python pickle, which is never read: send .npy or an image"),
    (b"OggS", "Ogg: send frames as images"),
    (b"\xef\xbb\xbf", f"text with a byte order mark: {_MESSAGES}"),
)
_IMAGES: Final = (
    (b"\xff\xd8\xff", "a JPEG"),
    (b"\x89PNG\r\n\x1a\n", "a PNG"),
    (b"RIFF", "a WebP"),
    (b"GIF8", "a GIF"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
)
_SCHEMA_FRAMING = 5
_TELLING_BYTES = 3
"""A mark that is shorter is found by chance."""
_NAL: Final = re.compile(rb"\0?\0\0\x01[\x06\x07\x09\x27\x28\x40\x42\x44\x46\x65\x67]")
_NO_TEXT: Final = re.compile(rb"[\0-\x08\x0e-\x1f\x7f]")
_MEDIA_TYPE: Final = re.compile(rb"data:([\w/+.-]{0,60})")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_\r\n-]{16,}={0,2}")
_HEXADECIMAL: Final = re.compile(rb"(0x|\\x)?[0-9a-fA-F\s]{16,}\Z")
_SUFFIXES: Final = rb"\.(jpe?g|png|webp|gif|bmp|tiff?|heic|avif)\Z"
_TEXTS: Final = (
    (re.compile(rb"\{"), f"JSON (starts with {{): {_MESSAGES}"),
    (re.compile(rb"\["), f"JSON (starts with [): {_MESSAGES}"),
    (re.compile(rb'".*"\Z', re.DOTALL), f"a JSON string: {_MESSAGES}"),
    (re.compile(rb"(?i)(<!doctype html|.{0,200}<html)", re.DOTALL), f"HTML, {_OF_AN_ERROR}"),
    (re.compile(rb"(?i).{0,200}<svg", re.DOTALL), "SVG: draw it as PNG"),
    (re.compile(rb"<"), "XML: send the image itself"),
    (re.compile(rb"(?i)(https?|s3a?|gs|abfss?|file|hdfs|ftp)://\S+\Z"), f"a URL: {_MESSAGES}"),
    (re.compile(rb"(?i)[^\r\n]{1,400}" + _SUFFIXES), f"the name of an image file, {_NOT_A_FILE}"),
    (_HEXADECIMAL, "hexadecimal text: send the bytes themselves"),
)
_ARROW_CONTINUATION: Final = b"\xff\xff\xff\xff"
_LARGEST_METADATA = 2**20
_MAX_FIELDS, _SMALLEST_MESSAGE = 64, 4


def looks_like(data: bytes) -> str:
    """Say what bytes seem to be, with what to do, and how they start. For people."""
    found = _framed(data) or _binary(data) or _text(data) or _protobuf(data)
    start = f"starts with {data[:_SHOWN_BYTES].hex(' ')}"
    return f"it looks like {found} ({start})" if found else f"it {start}"


def _framed(data: bytes) -> str | None:
    """Confluent's wire format: a byte 0 and a schema's id of four bytes."""
    if len(data) <= _SCHEMA_FRAMING or data[0] != 0:
        return None
    (schema,) = struct.unpack_from(">I", data, 1)
    inner = _image(data[_SCHEMA_FRAMING:])
    if inner:
        return f"schema-registry framing (schema id {schema}) before {inner}: {_MESSAGES}"
    if data[4:8] == b"ftyp" or _NAL.match(data):
        return None
    marks = [(mark, name) for mark, name in _IMAGES if len(mark) >= _TELLING_BYTES]
    hidden = next((name for mark, name in marks if mark in data[:_LOOKED_AT]), None)
    if 0 < schema < 2**20 and (hidden or len(data) > 64):  # noqa: PLR2004
        inside = f" with {hidden} inside" if hidden else ""
        return f"schema-registry framing (magic byte 0, schema id {schema}){inside}: {_MESSAGES}"
    return None


def _binary(data: bytes) -> str | None:
    known = next((name for mark, name in _MAGIC if data.startswith(mark)), None)
    if known:
        return known
    videos = (
        (data[4:8] == b"ftyp", f"MP4 video or another ISO file (brand {data[8:12]!r})"),
        (_NAL.match(data), "an H.264 or H.265 stream (NAL units)"),
        (data[:1] == data[188:189] == b"G", "an MPEG transport stream"),
        (data.startswith(b"RIFF"), f"RIFF of the kind {data[8:12]!r}"),
    )
    for is_so, name in videos:
        if is_so:
            return f"{name}: send its frames as images"
    if data.startswith(_ARROW_CONTINUATION) and len(data) > 8:  # noqa: PLR2004
        (length,) = struct.unpack_from("<i", data, 4)
        if 0 < length < min(len(data), _LARGEST_METADATA):
            return (
                "an Arrow stream without its header: send content-type: "
                "application/vnd.apache.arrow.stream with the message"
            )
    return None


def _text(data: bytes) -> str | None:
    head = data[:_LOOKED_AT].strip(b" \t\r\n\0")
    if not head or _NO_TEXT.search(head):
        return None
    if head.startswith(b"data:"):
        kind = _MEDIA_TYPE.match(head)
        named = kind[1].decode() if kind and kind[1] else "no media type"
        return f"a data URI ({named}): {_MESSAGES}"
    if _BASE64.fullmatch(head) and not _HEXADECIMAL.fullmatch(head):
        return f"base64 text{_of_image(head)}: {_MESSAGES}"
    found = next((name for pattern, name in _TEXTS if pattern.match(head)), None)
    return found or ("text" if head.isascii() else None)


def _of_image(text: bytes) -> str:
    digits = b"".join(text.split()).translate(bytes.maketrans(b"-_", b"+/"))[:64]
    try:
        inner = _image(base64.b64decode(digits[: len(digits) // 4 * 4]))
    except (binascii.Error, ValueError):
        return ""
    return f" of {inner}" if inner else ""


def _image(data: bytes) -> str | None:
    return next((name for mark, name in _IMAGES if data.startswith(mark)), None)


def _protobuf(data: bytes) -> str | None:
    """A message of Protocol Buffers: its fields follow each other up to its end."""
    at = fields = 0
    while 0 <= at < len(data) and fields < _MAX_FIELDS:
        at = _end_of_field(data, at)
        fields += 1
    if at != len(data) or len(data) < _SMALLEST_MESSAGE:
        return None
    return f"Protocol Buffers ({fields} fields): {_MESSAGES}"


def _end_of_field(data: bytes, at: int) -> int:
    """Where a field ends that begins at ``at``; -1 where none does."""
    tag, at = varint(data, at)
    if tag >> 3 == 0:
        return -1
    match tag & 7:
        case 0:
            return varint(data, at)[1]
        case 1:
            return at + 8
        case 2:
            length, at = varint(data, at)
            return -1 if at < 0 else at + length
        case 5:
            return at + 4
    return -1


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends; 0 and -1 where it does not."""
    found = 0
    for place, byte in enumerate(data[at : at + 10]):
        found |= (byte & 127) << 7 * place
        if not byte & 128:
            return found, at + place + 1
    return 0, -1
