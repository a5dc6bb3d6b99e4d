"""Image files and batches of them, in memory."""

import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pillow_heif
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

ARROW_HEADERS: tuple[tuple[str, bytes | None], ...] = (
    ("content-type", b"application/vnd.apache.arrow.stream"),
)


def picture(width: int = 13, height: int = 9, seed: int = 0) -> Image.Image:
    """Give an RGB image of smooth colours, which JPEG keeps nearly as they are."""
    generator = np.random.default_rng(seed)
    corners = generator.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


def encoded(image: Image.Image, image_format: str = "JPEG", **options: Any) -> bytes:
    """Encode an image as a file's bytes."""
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def heic(image: Image.Image) -> bytes:
    """Encode an image as HEIC."""
    buffer = BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=90)
    return buffer.getvalue()


def npy(array: NDArray[Any], **options: Any) -> bytes:
    """Encode an array as numpy's own file."""
    buffer = BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def deflated_zeros(mib: int) -> bytes:
    """So many MiB of zeros as zlib writes them, without the time that it takes for them."""
    deflate = zlib.compressobj(9)
    first = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    one = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    adler32 = (mib * 2**20 % 65_521) << 16 | 1
    end = deflate.flush(zlib.Z_FINISH)[:-4] + adler32.to_bytes(4)
    return first + one * (mib - 1) + end


def jpeg(seed: int = 0) -> bytes:
    """Encode a small JPEG file."""
    return encoded(picture(seed=seed), "JPEG")


def arrow_stream(columns: Mapping[str, Sequence[Any] | pa.Array], **options: Any) -> bytes:
    """Encode columns as an Arrow IPC stream of one record batch."""
    arrays = {
        name: column if isinstance(column, pa.Array) else pa.array(column, pa.binary())
        for name, column in columns.items()
    }
    batch = pa.record_batch(list(arrays.values()), names=list(arrays))
    return arrow_stream_of([batch], **options)


def arrow_stream_of(
    batches: Sequence[pa.RecordBatch], metadata: dict[str, str] | None = None, **options: Any
) -> bytes:
    """Encode record batches as an Arrow IPC stream, each message with metadata of its own."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)
    ) as writer:
        for batch in batches:
            writer.write_batch(batch, custom_metadata=metadata)
    return bytes(sink.getvalue().to_pybytes())
