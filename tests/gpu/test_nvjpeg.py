"""nvJPEG beside the CPU's decoder."""

import pytest
import torch

from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Picture
from nap_stream.model.device_decode import device_decoder
from nap_stream.model.preprocessing import preprocess
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings
from tests.support.device_decoders import without_tables
from tests.support.image_bytes import encoded, picture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*TorchCodec:DeprecationWarning"),
]
SETTINGS = PreprocessingSettings(resize=64, crop=48, jpeg_decoder="nvjpeg")
SIZES = [(200, 150), (150, 200), (200, 150), (97, 61)]
MOST = 4.0
"""Of 255: the mean difference of a pixel. Smooth images differ by less than one."""


def here(data: bytes) -> torch.Tensor:
    found = decode_image(data, LimitSettings())
    assert isinstance(found, Picture)
    return preprocess(found.pixels, SETTINGS)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_about_the_cpus(cuda: torch.device, subsampling: int, mode: str) -> None:
    options = {"subsampling": subsampling} if mode == "RGB" else {}
    files = [
        encoded(picture(*size, number).convert(mode), "JPEG", quality=95, **options)
        for number, size in enumerate(SIZES)
    ]
    decoder = device_decoder(SETTINGS, cuda)
    assert decoder is not None
    for pixels, data in zip(decoder(files), files, strict=True):
        assert pixels is not None
        assert pixels.device.type == "cuda"
        assert (pixels.cpu().float() - here(data).float()).abs().mean() < MOST


def test_one_broken_file_leaves_the_others(cuda: torch.device) -> None:
    fine = encoded(picture(60, 50), "JPEG")
    decoder = device_decoder(SETTINGS, cuda)
    assert decoder is not None
    first, broken, last = decoder([fine, without_tables(fine), fine])
    assert broken is None
    assert first is not None
    assert last is not None
    assert torch.equal(first, last)
