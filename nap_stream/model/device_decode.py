"""JPEGs from bytes to the model's input size on a GPU: nvJPEG in batches, then resize and crop.

The decoder and the interpolation are passed in: on a CPU others take their places, and all else is
the same. nvJPEG itself has not been run: there was no GPU.
"""

from collections.abc import Callable, Sequence

import torch

from nap_stream.errors import ConfigError
from nap_stream.model.preprocessing import Interpolate, antialiased, preprocess
from nap_stream.settings.schema import PreprocessingSettings

DecodeBatch = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
"""Files, each uint8 (bytes,) on the CPU → RGB, each uint8 (3, h, w) on the device, in order.

It raises where it cannot decode one of them."""
_OUT_OF_MEMORY = "out of memory"
PIXELS_AT_ONCE = 2**24
"""Of images that are resized together: as float32 they take 12 bytes a pixel."""


class DeviceDecoder:
    """Decodes JPEGs to the model's input size on a device. For one thread at a time.

    Antialiased interpolation of bytes is there on a CPU alone: here it is of float32, rounded. So
    pixels differ from those of the CPU's decoder, by its arithmetic and by this.
    """

    def __init__(
        self,
        preprocessing: PreprocessingSettings,
        decode: DecodeBatch,
        *,
        interpolate: Interpolate | None = None,
        pixels_at_once: int = PIXELS_AT_ONCE,
    ) -> None:
        self._preprocessing, self._decode = preprocessing, decode
        self._interpolate = interpolate or rounded
        self._pixels_at_once = pixels_at_once

    def __call__(self, jpegs: Sequence[bytes]) -> list[torch.Tensor | None]:
        """Decode files, in order: uint8 (3, H, W) each, on the device.

        Returns:
            None for a file that cannot be decoded or resized here.

        Raises:
            torch.OutOfMemoryError: The images do not fit the device's memory.
        """
        files = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in jpegs]
        # All of it first: nvJPEG may write into memory that queued kernels still read.
        # https://github.com/meta-pytorch/torchcodec/pull/1634
        found = self._all(files)
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, pixels in enumerate(found):
            if pixels is not None:
                groups.setdefault(tuple(pixels.shape), []).append(number)
        for (_, height, width), numbers in groups.items():
            at_once = max(1, self._pixels_at_once // (height * width))
            for start in range(0, len(numbers), at_once):
                self._resize(found, numbers[start : start + at_once])
        return found

    def _all(self, files: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        if not files:
            return []
        try:
            return list(self._decode(files))
        except torch.OutOfMemoryError:
            raise
        # One file that it does not take fails the batch, by whatever it raises.
        except Exception as error:
            # torchvision raises its own error for that of torch's allocator.
            if _OUT_OF_MEMORY in str(error):
                raise torch.OutOfMemoryError(str(error)) from error
            return [None] if len(files) == 1 else [self._all([file])[0] for file in files]

    def _resize(self, found: list[torch.Tensor | None], numbers: Sequence[int]) -> None:
        """Bring images of one size to the model's; None for all of them where that fails."""
        same = torch.cat([image for number in numbers if (image := found[number]) is not None])
        resized: torch.Tensor | None
        try:
            resized = preprocess(same, self._preprocessing, self._interpolate)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # noqa: BLE001  kernels have limits of their own
            resized = None
        for place, number in enumerate(numbers):
            found[number] = None if resized is None else resized[3 * place : 3 * place + 3]


def rounded(pixels: torch.Tensor, size: Sequence[int], mode: str) -> torch.Tensor:
    """Interpolate in float32, and round: on any device. See `Interpolate`."""
    resized = antialiased(pixels[None].float(), size, mode)[0]
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def device_decoder(
    preprocessing: PreprocessingSettings, device: torch.device
) -> DeviceDecoder | None:
    """NvJPEG for a model on a device; None where the CPU decodes.

    Raises:
        ConfigError: The settings say nvjpeg, and the device is no GPU.
    """
    if preprocessing.jpeg_decoder == "cpu":
        return None
    if device.type != "cuda":
        raise ConfigError(
            f"nvJPEG decodes on a GPU, and the model is on the device {device}",
            "model.preprocessing.jpeg_decoder",
            "Use a GPU (worker.num_gpus, --device cuda), or set cpu and calibrate anew",
        )
    return DeviceDecoder(preprocessing, _nvjpeg(device))


def _nvjpeg(device: torch.device) -> DecodeBatch:
    # Importing it takes seconds.
    from torchvision.io import ImageReadMode, decode_jpeg  # noqa: PLC0415

    def decode(files: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        found: Sequence[torch.Tensor] = decode_jpeg(list(files), ImageReadMode.RGB, device)
        return found

    return decode
