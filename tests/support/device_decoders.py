"""Stand-ins for nvJPEG, on the CPU: a batch is decoded, or the whole of it is refused."""

from collections.abc import Sequence

import torch

from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Picture
from nap_stream.settings.schema import LimitSettings


class DecoderHere:
    """Decodes files of which none is among ``refuses``, and keeps the sizes of its batches."""

    def __init__(self, *refuses: bytes, device: torch.device | None = None) -> None:
        self.refuses, self.device = refuses, device or torch.device("cpu")
        self.batches: list[int] = []

    def __call__(self, files: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        self.batches.append(len(files))
        return [self._one(bytes(file.numpy())) for file in files]

    def _one(self, data: bytes) -> torch.Tensor:
        found = decode_image(data, LimitSettings())
        if data in self.refuses or not isinstance(found, Picture):
            raise RuntimeError("Error while decoding JPEG images: nvjpegDecode failed: 5")
        # nvJPEG gives one channel after the other.
        return found.pixels.contiguous().to(self.device)


def without_tables(jpeg: bytes) -> bytes:
    """A JPEG whose header is whole and that no decoder can read: it has no quantisation tables."""
    position, kept = 2, [jpeg[:2]]
    while jpeg[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
        if jpeg[position + 1] != 0xDB:
            kept.append(jpeg[position:end])
        position = end
    return b"".join([*kept, jpeg[position:]])
