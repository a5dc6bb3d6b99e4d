from collections.abc import Sequence
from typing import NoReturn

import pytest
import torch

from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Picture
from nap_stream.errors import ConfigError
from nap_stream.model.device_decode import DeviceDecoder, device_decoder, rounded
from nap_stream.model.preprocessing import preprocess
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings
from tests.support.device_decoders import DecoderHere
from tests.support.image_bytes import encoded, picture

SETTINGS = PreprocessingSettings(resize=12, crop=8)
SIZES = [(30, 20), (20, 30), (30, 20), (16, 16), (30, 20)]
FILES = [
    encoded(picture(width, height, seed=number), "JPEG")
    for number, (width, height) in enumerate(SIZES)
]


class Interpolations:
    """Keeps the shapes of what is interpolated; fails for the height ``fails``."""

    def __init__(self, fails: int | None = None) -> None:
        self.fails = fails
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, pixels: torch.Tensor, size: Sequence[int], mode: str) -> torch.Tensor:
        self.shapes.append(tuple(pixels.shape))
        if pixels.shape[1] == self.fails:
            raise RuntimeError("Too much shared memory required")
        return rounded(pixels, size, mode)


def pixels_of(data: bytes) -> torch.Tensor:
    found = decode_image(data, LimitSettings())
    assert isinstance(found, Picture)
    return found.pixels


def assert_same(found: Sequence[torch.Tensor | None], files: Sequence[bytes]) -> None:
    for pixels, data in zip(found, files, strict=True):
        assert pixels is not None
        expected = preprocess(pixels_of(data), SETTINGS, rounded)
        assert torch.equal(pixels.cpu(), expected)


def test_images_come_in_order_and_sizes_are_resized_together(device: torch.device) -> None:
    interpolate, decode = Interpolations(), DecoderHere(device=device)
    found = DeviceDecoder(SETTINGS, decode, interpolate=interpolate)(FILES)
    assert_same(found, FILES)
    assert decode.batches == [5]
    assert interpolate.shapes == [(9, 20, 30), (3, 30, 20), (3, 16, 16)]


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_pixels_are_the_cpus_but_for_rounding(mode: str) -> None:
    settings = SETTINGS.model_copy(update={"interpolation": mode})
    for data in FILES:
        (found,) = DeviceDecoder(settings, DecoderHere())([data])
        assert found is not None
        expected = preprocess(pixels_of(data), settings)
        assert (found.int() - expected.int()).abs().max() <= 1


def test_many_images_of_a_size_are_resized_in_parts() -> None:
    interpolate = Interpolations()
    decoder = DeviceDecoder(
        SETTINGS, DecoderHere(), interpolate=interpolate, pixels_at_once=2 * 30 * 20
    )
    assert_same(decoder(FILES), FILES)
    assert interpolate.shapes == [(6, 20, 30), (3, 20, 30), (3, 30, 20), (3, 16, 16)]


def test_a_size_that_needs_no_resizing() -> None:
    settings = PreprocessingSettings(resize=None, crop=18)
    found = DeviceDecoder(settings, DecoderHere())(FILES[:3])
    for pixels, data in zip(found, FILES, strict=False):
        assert pixels is not None
        assert torch.equal(pixels, preprocess(pixels_of(data), settings))


def test_one_file_that_is_refused_leaves_the_others() -> None:
    decode = DecoderHere(FILES[2])
    found = DeviceDecoder(SETTINGS, decode)(FILES)
    assert found[2] is None
    assert_same(found[:2] + found[3:], FILES[:2] + FILES[3:])
    assert decode.batches == [5, 1, 1, 1, 1, 1]


def test_a_single_file_that_is_refused_is_not_tried_again() -> None:
    decode = DecoderHere(FILES[0])
    assert DeviceDecoder(SETTINGS, decode)(FILES[:1]) == [None]
    assert decode.batches == [1]


def test_a_size_that_cannot_be_resized_leaves_the_others() -> None:
    found = DeviceDecoder(SETTINGS, DecoderHere(), interpolate=Interpolations(fails=20))(FILES)
    assert [pixels is None for pixels in found] == [True, False, True, False, True]
    assert_same([found[1], found[3]], [FILES[1], FILES[3]])


def test_nothing_is_resized_before_all_is_decoded() -> None:
    order: list[str] = []

    def decode(files: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        order.append("decode")
        return DecoderHere(FILES[2])(files)

    def interpolate(pixels: torch.Tensor, size: Sequence[int], mode: str) -> torch.Tensor:
        order.append("resize")
        return rounded(pixels, size, mode)

    DeviceDecoder(SETTINGS, decode, interpolate=interpolate)(FILES)
    assert order == ["decode"] * 6 + ["resize"] * 3


def test_memory_that_runs_out_is_for_the_lane() -> None:
    def full(*_: object) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def full_by_another_name(*_: object) -> NoReturn:
        raise RuntimeError("Error while decoding JPEG images: CUDA out of memory. Tried to")

    for decoder in (
        DeviceDecoder(SETTINGS, full),
        DeviceDecoder(SETTINGS, full_by_another_name),
        DeviceDecoder(SETTINGS, DecoderHere(), interpolate=full),
    ):
        with pytest.raises(torch.OutOfMemoryError):
            decoder(FILES)


def test_nvjpeg_is_for_gpus() -> None:
    cpu = torch.device("cpu")
    assert device_decoder(SETTINGS, cpu) is None
    with pytest.raises(ConfigError, match="nvJPEG decodes on a GPU") as caught:
        device_decoder(SETTINGS.model_copy(update={"jpeg_decoder": "nvjpeg"}), cpu)
    assert caught.value.where == "model.preprocessing.jpeg_decoder"
