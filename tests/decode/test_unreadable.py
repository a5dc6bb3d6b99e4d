"""What cannot be read says what it looks like, and what to do."""

import base64
import gzip
import json
import struct
from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Refusal
from nap_stream.decode.unreadable import looks_like
from nap_stream.records import Status
from nap_stream.settings.schema import LimitSettings
from tests.support.image_bytes import arrow_stream, encoded, jpeg, picture

MESSAGES = "set messages: ... (docs/messages.md)"


def _framed(schema: int, rest: bytes) -> bytes:
    return b"\0" + struct.pack(">I", schema) + rest


def _field(number: int, body: bytes) -> bytes:
    length = len(body)
    varint = bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14])
    return bytes([number << 3 | 2]) + varint + body


PNG = encoded(picture(), "PNG")
SAMPLES: dict[str, tuple[bytes, str]] = {
    "base64": (base64.b64encode(jpeg()), "base64 text of a JPEG"),
    "base64 with lines": (base64.encodebytes(PNG), "base64 text of a PNG"),
    "base64, url-safe": (base64.urlsafe_b64encode(jpeg()), "base64 text of a JPEG"),
    "base64 of something": (base64.b64encode(bytes(range(200))), "base64 text: "),
    "base64 behind blanks": (b"\n " + base64.b64encode(jpeg()) + b"\n", "base64 text of a JPEG"),
    "a data URI": (b"data:image/png;base64," + base64.b64encode(PNG), "a data URI (image/png)"),
    "a data URI without a type": (b"data:;base64,AAAA", "a data URI (no media type)"),
    "JSON": (json.dumps({"image": "AAAA", "camera": 7}).encode(), "JSON (starts with {)"),
    "JSON, indented": (b'\n  [\n {"a": 1}]', "JSON (starts with [)"),
    "JSON of other letters": ('{"straße": "ä"}'.encode(), "JSON (starts with {)"),
    "a JSON string": (json.dumps(base64.b64encode(jpeg()).decode()).encode(), "a JSON string"),
    "framing before a JPEG": (
        _framed(7, jpeg()),
        "schema-registry framing (schema id 7) before a JPEG",
    ),
    "framing before a PNG": (
        _framed(70_000, PNG),
        "schema-registry framing (schema id 70000) before a PNG",
    ),
    "framed Avro": (
        _framed(3, b"\x0ccamera\xf2\x0a" + jpeg()),
        "schema-registry framing (magic byte 0, schema id 3) with a JPEG inside",
    ),
    "framed Protobuf": (
        _framed(3, b"\0" + _field(1, b"north") + _field(2, PNG)),
        "schema-registry framing (magic byte 0, schema id 3) with a PNG inside",
    ),
    "Protobuf": (_field(1, b"camera-7") + _field(2, jpeg()), "Protocol Buffers (2 fields)"),
    "an Avro container": (b"Obj\x01\x04\x16avro.schema", "an Avro container file"),
    "Avro, single object": (
        b"\xc3\x01" + bytes(range(40)),
        "an Avro datum in single-object encoding",
    ),
    "gzip": (gzip.compress(jpeg()), "gzip"),
    "Zstandard": (b"\x28\xb5\x2f\xfd" + bytes(40), "Zstandard"),
    "bzip2": (b"BZh91AY&SY" + bytes(40), "bzip2"),
    "xz": (b"\xfd7zXZ\0\0\4" + bytes(40), "xz"),
    "LZ4": (b"\x04\x22\x4d\x18\x64" + bytes(40), "LZ4"),
    "ZIP": (b"PK\x03\x04\x14\0" + bytes(40), "a ZIP archive"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
    "MP4": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "MP4 video"),
    "QuickTime": (b"\0\0\0\x14ftypqt  \0\0\2\0qt  ", "MP4 video or another ISO file"),
    "H.264": (
        b"\0\0\0\x01\x67\x42\0\x1e" + bytes(range(99)),
        "an H.264 or H.265 stream (NAL units)",
    ),
    "H.264, short start": (
        b"\0\0\x01\x65\x88" + bytes(range(99)),
        "an H.264 or H.265 stream (NAL units)",
    ),
    "H.265": (b"\0\0\0\x01\x40\x01\x0c" + bytes(range(99)), "an H.264 or H.265 stream (NAL units)"),
    "MPEG-TS": (b"G" + bytes(187) + b"G" + bytes(187), "an MPEG transport stream"),
    "AVI": (b"RIFF\0\0\1\0AVI LIST", "RIFF of the kind b'AVI '"),
    "WebM": (b"\x1aE\xdf\xa3" + bytes(40), "Matroska or WebM"),
    "HTML": (b"<!DOCTYPE html>\n<html><body>404", "HTML"),
    "HTML without a type": (b"<html><title>502 Bad Gateway</title>", "HTML"),
    "SVG": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "XML": (b"<Error><Code>AccessDenied</Code></Error>", "XML"),
    "a URL": (b"https://cameras.example/north/17.jpg?sig=1", "a URL"),
    "an address in S3": (b"s3://frames/north/17.jpg", "a URL"),
    "a path": (b"/data/frames/north/17.jpg", "the name of an image file"),
    "hexadecimal": (jpeg().hex().encode(), "hexadecimal text"),
    "an Arrow stream": (arrow_stream({"image": [jpeg()]}), "an Arrow stream without its header"),
    "an Arrow file": (b"ARROW1\0\0" + bytes(40), "an Arrow file"),
    "Parquet": (b"PAR1" + bytes(40), "Parquet"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "JPEG 2000"),
    "JPEG XL": (b"\xff\x0a" + bytes(40), "JPEG XL"),
    "a pickle": (b"\x80\x04\x95" + bytes(40), "a Python pickle"),
    "text": (b"no signal", "text"),
    "text with a mark": (b'\xef\xbb\xbf{"a": 1}', "text with a byte order mark"),
}
OF_MESSAGES = {
    "base64",
    "a data URI",
    "JSON",
    "framed Avro",
    "Avro, single object",
    "Protobuf",
    "a URL",
    "gzip",
}


@pytest.mark.parametrize("name", SAMPLES)
def test_what_it_looks_like(name: str) -> None:
    data, expected = SAMPLES[name]
    found = decode_image(data, LimitSettings())
    assert isinstance(found, Refusal), found
    assert found.status is Status.UNSUPPORTED
    assert f"it looks like {expected}" in found.error
    assert data[:4].hex(" ") in found.error
    assert found.error.isprintable()
    assert (MESSAGES in found.error) or name not in OF_MESSAGES


def test_what_looks_like_nothing_says_how_it_starts() -> None:
    found = decode_image(bytes([200, 201, 202, 203]) * 9, LimitSettings())
    assert isinstance(found, Refusal)
    assert found.error.endswith("it starts with c8 c9 ca cb c8 c9 ca cb")


@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
def test_any_bytes_are_described(data: bytes) -> None:
    assert "starts with" in looks_like(data)


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"\x0a\x80" * 2**20,
        lambda: b" " * 2**22 + b"<html",
        lambda: b"A" * 2**22,
        lambda: b"\0" * 2**22,
        lambda: b'"' * 2**22,
        lambda: b"http://" + b"a" * 2**22,
        lambda: b"\x08\x01" * 2**21,
    ],
    ids=range(7),
)
def test_long_ones_are_described_soon(make: Callable[[], bytes]) -> None:
    assert len(looks_like(make())) < 300


def test_an_arrow_stream_with_its_header_would_be_read() -> None:
    assert pa.ipc.open_stream(SAMPLES["an Arrow stream"][0]).read_all().num_rows == 1
