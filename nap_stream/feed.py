"""From image files to the model's input size, by the decoder that the preprocessing names.

Calibration, evaluation and workers read images so, that their pixels be the same.
"""

from collections.abc import Sequence

import torch

from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Refusal
from nap_stream.jpeg import undecoded_jpeg
from nap_stream.model.device_decode import DeviceDecoder
from nap_stream.model.preprocessing import decoded_size, preprocess
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings

DEVICE_BATCH = 32
"""Files that are decoded on the device at once."""


def on_cpu(
    data: bytes | None, limits: LimitSettings, preprocessing: PreprocessingSettings
) -> torch.Tensor | Refusal:
    """Decode a file and bring it to the model's input size on the CPU: uint8 (3, H, W)."""
    found = decode_image(data, limits, decoded_size(preprocessing), preprocessing)
    return found if isinstance(found, Refusal) else preprocess(found.pixels, preprocessing)


def model_inputs(
    files: Sequence[bytes],
    limits: LimitSettings,
    preprocessing: PreprocessingSettings,
    on_device: DeviceDecoder | None,
) -> list[torch.Tensor | Refusal]:
    """Decode files to the model's input size, uint8 (3, H, W) each, on the CPU, in order.

    ``on_device`` takes the JPEGs that a worker leaves to it. What it cannot decode, and all else,
    is decoded on the CPU.
    """
    found: list[torch.Tensor | Refusal | None] = [None] * len(files)
    if on_device is not None:
        left = [
            number for number, data in enumerate(files) if undecoded_jpeg(data, limits) is not None
        ]
        for start in range(0, len(left), DEVICE_BATCH):
            numbers = left[start : start + DEVICE_BATCH]
            decoded = on_device([files[number] for number in numbers])
            for number, pixels in zip(numbers, decoded, strict=True):
                found[number] = None if pixels is None else pixels.cpu()
    return [
        on_cpu(data, limits, preprocessing) if pixels is None else pixels
        for data, pixels in zip(files, found, strict=True)
    ]
