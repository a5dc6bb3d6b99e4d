"""Pixels without an image format: raw frames of cameras, and arrays of numpy.

Bayer patterns are demosaiced bilinearly: what a pixel lacks of a colour is the mean of its nearest
neighbours that have it, mirrored at the borders. It is done in 8 bits, in blocks of rows.
"""

import re
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from nap_stream.decode.depth import Pixels, eight_bits
from nap_stream.decode.picture import UnreadableError, corrupt, require_pixels, unsupported
from nap_stream.records import Status
from nap_stream.settings.frames import RawSettings

NPY_MAGIC: Final = b"\x93NUMPY"
_MAX_HEADER_BYTES = 4_096
_VERSIONS: Final = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_CHANNELS: Final = frozenset({1, 3, 4})
_FORMAT: Final = re.compile(r"(mono|rgba|bgra|rgb|bgr|bayer_[rgb]{4})(\d+)(p|packed)?")
_BLOCK_ROWS = 256
_COLOUR_PLACES: Final = {"r": 0, "g": 1, "b": 2}
_GREEN_TAPS: Final = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]], np.uint16)
_OTHER_TAPS: Final = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.uint16)
"""Weights of neighbours in quarters, where the mosaic has the colour in half or a quarter."""


def frame_bytes(settings: RawSettings) -> int:
    """How many bytes a frame has."""
    family, bits, packing = _parts(settings)
    samples = settings.width * settings.height * (len(family) if family in _INTERLEAVED else 1)
    if packing:
        return (samples * bits + 7) // 8
    return samples * (1 if bits == 8 else 2)  # noqa: PLR2004


def read_frame(
    data: bytes, settings: RawSettings, max_pixels: int, bits: int | None
) -> tuple[Pixels, str | None]:
    """The pixels of a frame of `frame_bytes`, and a warning; see `eight_bits`.

    ``bits`` are those of samples of 16 bits; other formats say by themselves how many they have.

    Raises:
        UnreadableError: It has more pixels than the limit.
    """
    height, width = settings.height, settings.width
    require_pixels((width, height), max_pixels)
    family, own_bits, packing = _parts(settings)
    samples: NDArray[Any]
    if packing == "packed":
        samples = _unpacked_12(np.frombuffer(data, np.uint8), width * height)
    elif packing:
        samples = _unpacked(np.frombuffer(data, np.uint8), own_bits, width * height)
    else:
        samples = np.frombuffer(data, np.uint8 if own_bits == 8 else "<u2")  # noqa: PLR2004
    warning = None
    if samples.dtype != np.uint8:
        is_full = own_bits == 16  # noqa: PLR2004
        samples, warning = eight_bits(samples, bits if is_full else own_bits)
    if family in _INTERLEAVED:
        interleaved = samples.reshape(height, width, len(family))
        places = [family.index(colour) for colour in "rgb"]
        return np.ascontiguousarray(interleaved[..., places]), warning
    plane = samples.astype(np.uint8, copy=False).reshape(height, width)
    if family == "mono":
        return np.repeat(plane[..., None], 3, axis=2), warning
    return demosaiced(plane, family.removeprefix("bayer_")), warning


def demosaiced(mosaic: NDArray[np.uint8], pattern: str) -> Pixels:
    """RGB of a Bayer mosaic (H, W); ``pattern`` is that of its first 2 x 2 pixels, as rggb."""
    height, width = mosaic.shape
    found = np.empty((height, width, 3), np.uint8)
    # Mirrored without the border itself, the pattern goes on. Of one row or column there is no
    # other to mirror.
    mode = "reflect" if min(height, width) > 1 else "edge"
    padded = np.pad(mosaic, 1, mode)  # type: ignore[call-overload]
    for start in range(0, height, _BLOCK_ROWS):
        rows = min(_BLOCK_ROWS, height - start)
        block = padded[start : start + rows + 2].astype(np.uint16)
        for colour, place in _COLOUR_PLACES.items():
            mask = _mask(pattern, colour, start - 1, block.shape)
            taps = _GREEN_TAPS if colour == "g" else _OTHER_TAPS
            weights = _filtered(mask, taps)
            sums = _filtered(block * mask, taps)
            rounded = (sums + weights // 2) // np.maximum(weights, 1)
            found[start : start + rows, :, place] = np.where(
                mask[1:-1, 1:-1] == 1, block[1:-1, 1:-1], rounded
            )
    return found


def read_npy(data: bytes, max_pixels: int, bits: int | None) -> tuple[Pixels, str | None]:
    """The pixels of a numpy file: uint8 or uint16, (H, W), (H, W, C) or (C, H, W), C 1, 3 or 4.

    Nothing is unpickled. A fourth channel is dropped, as alpha is. See `eight_bits` for the rest.

    Raises:
        UnreadableError: It holds something else, or is not whole.
    """
    buffer = BytesIO(data)
    try:
        version = npy.read_magic(buffer)
        read = _VERSIONS.get(version)
        if read is None:
            raise unsupported(f"version {version[0]}.{version[1]} of .npy is not read")
        shape, in_columns, dtype = read(buffer, max_header_size=_MAX_HEADER_BYTES)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise corrupt("its header is not that of a .npy file") from error
    if dtype not in (np.uint8, np.dtype("<u2"), np.dtype(">u2")):
        raise unsupported(f"a .npy array of {dtype}: write uint8 or uint16")
    height, width, places = _layout(shape)
    require_pixels((width, height), max_pixels)
    count = int(np.prod(shape, dtype=object))
    start = buffer.tell()
    if len(data) - start != count * dtype.itemsize:
        raise corrupt(
            f"{len(data) - start} bytes of a .npy array that has {count * dtype.itemsize}",
            (width, height),
        )
    flat: NDArray[Any] = np.frombuffer(data, dtype, offset=start)
    array = flat.reshape(shape[::-1]).T if in_columns else flat.reshape(shape)
    samples: NDArray[Any] = array[..., None] if array.ndim == 2 else array  # noqa: PLR2004
    samples = samples.transpose(places)
    warning = None
    if dtype != np.uint8:
        samples, warning = eight_bits(samples, bits)
    repeated = samples[..., [0, 0, 0] if samples.shape[2] == 1 else [0, 1, 2]]
    return np.ascontiguousarray(repeated), warning


_INTERLEAVED: Final = frozenset({"rgb", "bgr", "rgba", "bgra"})


def _layout(shape: tuple[int, ...]) -> tuple[int, int, tuple[int, int, int]]:
    """Height, width, and in which order of its axes an array is (H, W, C)."""
    if len(shape) == 2 and min(shape) > 0:  # noqa: PLR2004
        return *shape, (0, 1, 2)
    if len(shape) == 3 and min(shape) > 0:  # noqa: PLR2004
        if shape[2] in _CHANNELS:
            return shape[0], shape[1], (0, 1, 2)
        if shape[0] in _CHANNELS:
            return shape[1], shape[2], (1, 2, 0)
    raise UnreadableError(
        f"a .npy array of shape {str(shape)[:60]}: expected (H, W), (H, W, C) or (C, H, W), "
        "C 1, 3 or 4",
        Status.UNSUPPORTED,
    )


def _parts(settings: RawSettings) -> tuple[str, int, str | None]:
    """Kind of pixels, bits of a sample, and how they are packed."""
    match = _FORMAT.fullmatch(settings.format)
    if match is None:
        raise ValueError(f"not a raw format: {settings.format}")
    return match[1], int(match[2]), match[3]


def _unpacked(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint16]:
    """Samples that follow each other from the lowest bit up."""
    padded = np.concatenate([data, np.zeros(2, np.uint8)])
    found = np.empty(count, np.uint16)
    # Of 10 or 12 bits, the places of bits in bytes repeat after four samples.
    for place in range(4):
        first = (np.arange(place, count, 4) * bits) // 8
        shift = place * bits % 8
        words = padded[first].astype(np.uint32) | (padded[first + 1].astype(np.uint32) << 8)
        found[place::4] = (words >> shift) & (2**bits - 1)
    return found


def _unpacked_12(data: NDArray[np.uint8], count: int) -> NDArray[np.uint16]:
    """Two samples in three bytes: eight high bits, four low bits of each, eight high bits."""
    padded = np.concatenate([data, np.zeros(-len(data) % 3, np.uint8)])
    triples = padded.reshape(-1, 3).astype(np.uint16)
    found = np.empty(2 * len(triples), np.uint16)
    found[0::2] = triples[:, 0] << 4 | triples[:, 1] & 15
    found[1::2] = triples[:, 2] << 4 | triples[:, 1] >> 4
    return found[:count]


def _mask(pattern: str, colour: str, first_row: int, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """1 where a mosaic that begins at ``first_row`` and column -1 has the colour, else 0."""
    found = np.zeros(shape, np.uint16)
    for place, name in enumerate(pattern):
        if name == colour:
            row, column = divmod(place, 2)
            found[(row - first_row) % 2 :: 2, (column + 1) % 2 :: 2] = 1
    return found


def _filtered(block: NDArray[np.uint16], taps: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The weighted sums of 3 x 3 neighbours; two rows and columns fewer."""
    height, width = block.shape[0] - 2, block.shape[1] - 2
    found = np.zeros((height, width), np.uint16)
    for row in range(3):
        for column in range(3):
            if taps[row, column]:
                found += taps[row, column] * block[row : row + height, column : column + width]
    return found
