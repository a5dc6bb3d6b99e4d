"""From samples of any depth to 8 bits, and from any mode of Pillow to RGB."""

import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from nap_stream.decode.picture import unsupported

Pixels = NDArray[np.uint8]
"""RGB, shape (height, width, 3)."""
OpenImage = Callable[[], ImageFile.ImageFile]

_GUESSES: Final = (8, 10, 12, 14)
_WIDE_COLOUR: Final = {"RGB;16B", "RGB;16L", "RGB;16N", "RGBA;16B", "RGBA;16L", "RGBA;16N"}
_OTHER_BYTE: Final = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Pillow takes the high byte of 16-bit colour. Read in the other byte order, it takes the low."""
_PACKED_12: Final = "I;12"
_TOO_DEEP: Final = frozenset({"I", "F"})


def eight_bits(samples: NDArray[np.uint16], bits: int | None) -> tuple[Pixels, str | None]:
    """The high 8 of so many significant bits, the low ones of 16; None stands for all 16.

    Returns:
        An array of the same shape, and a warning: of samples beyond those bits, which are cut off
        at the highest value, or of samples that seem to have fewer than 16.
    """
    largest = int(samples.max(initial=0))
    if bits is None:
        return (samples >> 8).astype(np.uint8), fewer_bits(largest)
    if largest >> bits:
        samples = np.minimum(samples, 2**bits - 1)
        warning = f"samples up to {largest} have more than model.preprocessing.bits = {bits}"
        return (samples >> (bits - 8)).astype(np.uint8), warning
    return (samples >> (bits - 8)).astype(np.uint8), None


def fewer_bits(largest: int) -> str | None:
    """What is to be said of 16-bit samples of which none is larger; None for nothing."""
    guess = next((bits for bits in _GUESSES if largest < 2**bits), None)
    if guess is None or largest == 0:
        return None
    return (
        f"no 16-bit sample is above {largest}: looks like {guess}-bit data in 16 bits, shown too "
        f"dark; set model.preprocessing.bits: {guess}"
    )


def rgb_pixels(
    open_image: OpenImage, image: ImageFile.ImageFile, bits: int | None
) -> tuple[Pixels, str | None]:
    """The pixels of an opened image, and a warning. ``open_image`` opens it once more.

    Raises:
        UnreadableError: Its samples cannot be brought to 8 bits.
    """
    raw_mode = _raw_mode(image)
    if image.mode.startswith("I;16"):
        found, warning = eight_bits(np.asarray(image), 12 if raw_mode == _PACKED_12 else bits)
        return np.repeat(found[..., None], 3, axis=2), warning
    if image.mode in _TOO_DEEP:
        raise unsupported(
            "samples of 32 bits, floating point or with a sign: write 8 or 16 bits", image.size
        )
    if ";16" not in raw_mode:
        # Of a palette with transparency, the conversion warns that it is dropped.
        image.info.pop("transparency", None)
        return np.array(image.convert("RGB")), None
    is_read_twice = raw_mode in _WIDE_COLOUR
    if bits not in {None, 16} and not is_read_twice:
        raise unsupported(
            f"model.preprocessing.bits cannot be applied to its samples ({raw_mode})", image.size
        )
    high = np.array(image.convert("RGB"))
    if bits in {None, 16}:
        largest = int(high.max(initial=0))
        is_dark = largest == 0 and is_read_twice and not _low_bytes(open_image, raw_mode).any()
        has_a_guess = bits is None and raw_mode.startswith(("RGB", "L")) and not is_dark
        return high, fewer_bits((largest << 8) + 255) if has_a_guess else None
    wide = _low_bytes(open_image, raw_mode).astype(np.uint16)
    wide |= high.astype(np.uint16) << 8
    return eight_bits(wide, bits)


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How Pillow reads the samples, "" where it does not say."""
    arguments = image.tile[0].args if image.tile else ""
    found = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return found if isinstance(found, str) else ""


def _low_bytes(open_image: OpenImage, raw_mode: str) -> Pixels:
    """The low byte of each 16-bit sample of a colour image."""
    low = raw_mode[:-1] + _OTHER_BYTE[raw_mode[-1]]

    def other(arguments: Any) -> Any:
        return (low, *arguments[1:]) if isinstance(arguments, tuple) else low

    with open_image() as image:
        image.tile = [tile._replace(args=other(tile.args)) for tile in image.tile]
        return np.array(image.convert("RGB"))


def missing_rows(image: Image.Image) -> bool:
    """Whether one of the last two rows of a loaded image is all zero, as rows never decoded are."""
    width, height = image.size
    rows = np.asarray(image.crop((0, max(0, height - 2), width, height)))
    return not rows.reshape(len(rows), -1).any(axis=1).all()
