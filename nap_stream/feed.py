"""From image files to the model's input size, by the decoder that the preprocessing names.

Calibration, evaluation and workers read images so, that their pixels be the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Refusal
from nap_stream.jpeg import undecoded_jpeg
from nap_stream.model.device_decode import DeviceDecoder
from nap_stream.model.preprocessing import decoded_size, preprocess
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings

DEVICE_BATCH = 32
"""Files that are decoded on the device at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """An image as the model takes it: ``pixels`` are uint8 (3, H, W), on the CPU.

    ``warning`` is what its decoder warned of, None where it was content.
    """

    pixels: torch.Tensor
    warning: str | None = None


def on_cpu(
    data: bytes | None, limits: LimitSettings, preprocessing: PreprocessingSettings
) -> torch.Tensor | Refusal:
    """Decode a file and bring it to the model's input size on the CPU: uint8 (3, H, W)."""
    found = input_on_cpu(data, limits, preprocessing)
    return found if isinstance(found, Refusal) else found.pixels


def input_on_cpu(
    data: bytes | None, limits: LimitSettings, preprocessing: PreprocessingSettings
) -> Input | Refusal:
    """The same, with what the decoder warned of."""
    found = decode_image(data, limits, decoded_size(preprocessing), preprocessing)
    if isinstance(found, Refusal):
        return found
    return Input(preprocess(found.pixels, preprocessing), found.warning)


def model_inputs(
    files: Sequence[bytes],
    limits: LimitSettings,
    preprocessing: PreprocessingSettings,
    on_device: DeviceDecoder | None,
) -> list[Input | Refusal]:
    """Decode files to the model's input size, in order.

    ``on_device`` takes the JPEGs that a worker leaves to it, and warns of none. What it cannot
    decode, and all else, is decoded on the CPU.
    """
    found: list[Input | Refusal | None] = [None] * len(files)
    if on_device is not None:
        left = [
            number for number, data in enumerate(files) if undecoded_jpeg(data, limits) is not None
        ]
        for start in range(0, len(left), DEVICE_BATCH):
            numbers = left[start : start + DEVICE_BATCH]
            decoded = on_device([files[number] for number in numbers])
            for number, pixels in zip(numbers, decoded, strict=True):
                found[number] = None if pixels is None else Input(pixels.cpu())
    return [
        input_on_cpu(data, limits, preprocessing) if one is None else one
        for data, one in zip(files, found, strict=True)
    ]
