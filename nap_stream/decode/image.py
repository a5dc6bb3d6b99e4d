"""From bytes to uint8 pixels. A bad image is a row, not a crash.

An image is of one of `formats.FORMATS`, told by its first bytes, or a raw frame, told by its size.
It is read as torchvision's dataset loader reads the ones that models are trained on: converted to
RGB, alpha and palette transparency dropped, EXIF orientation ignored, the first frame of an
animation. One thing differs: samples of 16 bits are scaled to 8, not clipped. The settings of
preprocessing change some of that.

libjpeg-turbo decodes plain JPEGs through simplejpeg, to the pixels that Pillow gives. Pillow
decodes all else: what libjpeg-turbo so much as warns of, too, so that Pillow alone says what cannot
be decoded. What libjpeg-turbo warned of goes with the picture.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from PIL import ImageFile

from nap_stream.decode import raw
from nap_stream.decode.depth import Pixels, missing_rows, rgb_pixels
from nap_stream.decode.formats import FORMATS, ImageSource, jpeg_orientation, sniff, source
from nap_stream.decode.picture import (
    Picture,
    Refusal,
    UnreadableError,
    corrupt,
    describe,
    one_line,
    require_pixels,
)
from nap_stream.decode.unreadable import looks_like
from nap_stream.jpeg import decode_jpeg, divisor, is_damage, plain_header, warning_of
from nap_stream.records import Status
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings

MAX_JPEG_SCANS = 100
"""Each scan of a progressive file costs the time of a whole image; encoders make about ten."""
_START_OF_SCAN = b"\xff\xda"
_SIDES_SWAPPED: Final = range(5, 9)
"""The orientations that lay an image on its side."""
DEFAULT_PREPROCESSING: Final = PreprocessingSettings()


def decode_image(
    data: bytes | None,
    limits: LimitSettings,
    at_least: tuple[int, int] | None = None,
    preprocessing: PreprocessingSettings = DEFAULT_PREPROCESSING,
) -> Picture | Refusal:
    """Decode one image file; None stands for a missing one. Never raises for what the bytes hold.

    Nothing is decoded of more bytes than ``limits`` allow, nor of a file that declares more pixels.
    ``at_least``, height and width in pixels, lets a JPEG be decoded to 1/8, 1/4 or 1/2 of its
    sides, the smallest that keeps them so large; None decodes all of it. Of ``preprocessing``,
    bits, exif_orientation, channel_order and raw matter here.
    """
    if data is None:
        return Refusal(Status.TOMBSTONE, "the value is null")
    if not data:
        return Refusal(Status.EMPTY, "the value has no bytes")
    frame = preprocessing.raw
    is_frame = frame is not None and len(data) == raw.frame_bytes(frame)
    kind = "raw" if is_frame else sniff(data)
    if len(data) > limits.max_image_bytes:
        return Refusal(
            Status.TOO_LARGE,
            f"{len(data)} bytes, more than limits.max_image_bytes = {limits.max_image_bytes}",
            format=kind,
        )
    if kind is None:
        return Refusal(Status.UNSUPPORTED, _unknown(data, preprocessing))
    if kind == "jpeg":
        found = _jpeg(data, limits.max_image_pixels, at_least, preprocessing)
    else:
        found = _Reader(data, kind, limits.max_image_pixels, preprocessing).read()
    if isinstance(found, Picture) and found.is_damaged and limits.damaged == "refuse":
        problem = f"it is damaged, and limits.damaged is refuse ({found.warning})"
        return Refusal(Status.CORRUPT, problem, found.width, found.height, found.format)
    return found


def _unknown(data: bytes, preprocessing: PreprocessingSettings) -> str:
    frame = preprocessing.raw
    wanted = ""
    if frame is not None:
        wanted = (
            f", nor a frame of {raw.frame_bytes(frame)} bytes (model.preprocessing.raw: "
            f"{frame.format}, {frame.width} x {frame.height}) but of {len(data)}"
        )
    return f"not a {FORMATS} image{wanted}: {one_line(looks_like(data))}"


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one file of a known format, other than by simplejpeg."""

    data: bytes
    kind: str
    max_pixels: int
    preprocessing: PreprocessingSettings

    def read(self, at_least: tuple[int, int] | None = None) -> Picture | Refusal:
        size: tuple[int, int] | None = None
        try:
            if self.kind in {"raw", "npy"}:
                return self._array()
            origin = source(self.data, self.kind, self.max_pixels)
            with origin.open() as image:
                size = image.size
                require_pixels(size, self.max_pixels)
                return self._picture(origin, image, at_least)
        except UnreadableError as error:
            problem = error.status, str(error)
            size = size or error.size
        except MemoryError as error:
            problem = Status.TOO_LARGE, f"there is not the memory to decode it ({describe(error)})"
        # Decoders raise whatever hostile bytes make them raise.
        except Exception as error:  # noqa: BLE001
            problem = Status.CORRUPT, f"it cannot be decoded ({describe(error)})"
        width, height = size if size is not None else (None, None)
        return Refusal(*problem, width, height, self.kind)

    def _picture(
        self, origin: ImageSource, image: ImageFile.ImageFile, at_least: tuple[int, int] | None
    ) -> Picture:
        width, height = image.size
        if (divided := divisor(width, height, at_least)) > 1:
            image.draft(image.mode, (width // divided, height // divided))
        pixels, odd = rgb_pixels(origin.open, image, self.preprocessing.bits)
        # What opening took as its size need not be what came of it.
        require_pixels(image.size, self.max_pixels)
        damage = origin.damage
        if origin.whole_png is not None and missing_rows(image):
            damage = origin.whole_png.missing() or damage
        note = origin.note if odd else None
        said = "; ".join(part for part in (damage, odd, note) if part)
        as_tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        return Picture(
            _finished(as_tensor, origin.orientation, self.preprocessing),
            width,
            height,
            self.kind,
            said or None,
            damage is not None,
        )

    def _array(self) -> Picture:
        bits, frame = self.preprocessing.bits, self.preprocessing.raw
        if self.kind == "npy":
            pixels, warning = raw.read_npy(self.data, self.max_pixels, bits)
        elif frame is not None:
            pixels, warning = raw.read_frame(self.data, frame, self.max_pixels, bits)
        else:
            raise corrupt("there is no format of raw frames")
        height, width, _ = pixels.shape
        found = _finished(torch.from_numpy(pixels).permute(2, 0, 1), 1, self.preprocessing)
        return Picture(found, width, height, self.kind, warning)


def _jpeg(
    data: bytes,
    max_pixels: int,
    at_least: tuple[int, int] | None,
    preprocessing: PreprocessingSettings,
) -> Picture | Refusal:
    header = plain_header(data)
    may_have_scans = header is None or not header.is_one_scan
    if may_have_scans and data.count(_START_OF_SCAN) > MAX_JPEG_SCANS:
        return Refusal(
            Status.TOO_LARGE, f"a JPEG of more than {MAX_JPEG_SCANS} scans", format="jpeg"
        )
    orientation = 1
    if header is not None and preprocessing.exif_orientation == "apply":
        orientation = jpeg_orientation(data)
    if at_least is not None and orientation in _SIDES_SWAPPED:
        at_least = at_least[1], at_least[0]
    warning = None
    if header is not None and header.width * header.height <= max_pixels:
        pixels = decode_jpeg(data, header, at_least)
        if isinstance(pixels, torch.Tensor):
            pixels = _finished(pixels, orientation, preprocessing)
            return Picture(pixels, header.width, header.height, "jpeg")
        warning = pixels
    found = _Reader(data, "jpeg", max_pixels, preprocessing).read(at_least)
    if isinstance(found, Refusal):
        return found
    if header is None:
        warning = warning_of(data)
    said = None if warning is None else one_line(warning)
    return replace(found, warning=said, is_damaged=said is not None and is_damage(said))


def _finished(
    pixels: torch.Tensor, orientation: int, preprocessing: PreprocessingSettings
) -> torch.Tensor:
    """Turned, and in the order of channels that is asked for; see `Picture`."""
    is_turned = orientation != 1 and preprocessing.exif_orientation == "apply"
    if not is_turned and preprocessing.channel_order == "rgb":
        return pixels
    interleaved: Pixels = pixels.permute(1, 2, 0).numpy()
    if is_turned:
        interleaved = turned(interleaved, orientation)
    if preprocessing.channel_order == "bgr":
        interleaved = interleaved[..., ::-1]
    return torch.from_numpy(np.ascontiguousarray(interleaved)).permute(2, 0, 1)


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Turn an image upright, (H, W, 3), as EXIF's orientation 1 to 8 says."""
    return _TURNS[orientation](pixels) if orientation in _TURNS else pixels


_TURNS: Final[dict[int, Callable[[Pixels], Pixels]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels, 1),
}
