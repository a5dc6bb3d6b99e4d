import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import transforms
from torchvision.transforms import v2

from nap_stream.model.preprocessing import (
    Normaliser,
    decoded_size,
    default_batch_size,
    input_size,
    preprocess,
)
from nap_stream.settings.schema import PreprocessingSettings

SIDES = st.integers(5, 60)


def image(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("crop", "images"),
    [(32, 128), (112, 128), (128, 98), (224, 32), (384, 32), ((112, 224), 64), (1, 128)],
)
def test_small_images_make_large_batches(crop: int | tuple[int, int], images: int) -> None:
    assert default_batch_size(PreprocessingSettings(crop=crop)) == images


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size", [(40, 60), (60, 40), (8, 9), (33, 33)])
def test_as_torchvision_transforms(interpolation: str, size: tuple[int, int]) -> None:
    settings = PreprocessingSettings(resize=20, crop=16, interpolation=interpolation)
    reference = v2.Compose(
        [
            v2.Resize(20, interpolation=v2.InterpolationMode(interpolation), antialias=True),
            v2.CenterCrop(16),
        ]
    )
    pixels = image(*size)
    assert torch.equal(preprocess(pixels, settings), reference(pixels))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@given(size=st.tuples(SIDES, SIDES), resize=SIDES | st.tuples(SIDES, SIDES), crop=SIDES)
def test_any_sizes_are_as_torchvision_makes_them(
    interpolation: str, size: tuple[int, int], resize: int | tuple[int, int], crop: int
) -> None:
    settings = PreprocessingSettings(resize=resize, crop=crop, interpolation=interpolation)
    sides = [resize] if isinstance(resize, int) else list(resize)
    reference = v2.Compose(
        [
            v2.Resize(sides, interpolation=v2.InterpolationMode(interpolation), antialias=True),
            v2.CenterCrop(crop),
        ]
    )
    # Interleaved, as decoded images are.
    pixels = image(*size).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(preprocess(pixels, settings), reference(pixels))


def test_both_sides_may_be_given() -> None:
    settings = PreprocessingSettings(resize=(20, 30), crop=(18, 24))
    found = preprocess(image(50, 50), settings)
    assert found.shape == (3, 18, 24)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert input_size(settings) == (18, 24)


def test_without_resize_a_small_image_is_padded_with_zeros() -> None:
    found = preprocess(image(2, 4), PreprocessingSettings(resize=None, crop=6))
    assert torch.equal(found[:, 2:4, 1:5], image(2, 4))
    assert found.sum() == image(2, 4).sum()


def test_without_resize_a_large_image_is_only_cropped() -> None:
    found = preprocess(image(8, 8), PreprocessingSettings(resize=None, crop=4))
    assert torch.equal(found, image(8, 8)[:, 2:6, 2:6])


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_thin_image_needs_no_more_memory_than_its_crop(size: tuple[int, int]) -> None:
    found = preprocess(torch.full((3, *size), 9, dtype=torch.uint8), PreprocessingSettings())
    assert found.shape == (3, 224, 224)
    assert (found == 9).all()


def test_cutting_a_long_image_keeps_its_centre() -> None:
    settings = PreprocessingSettings(resize=8, crop=8)
    pixels = image(8, 8 * 40 + 1)
    expected = v2.CenterCrop(8)(v2.Resize(8, antialias=True)(pixels))
    assert torch.equal(preprocess(pixels, settings), expected)


def test_the_layout_of_pixels_does_not_matter() -> None:
    pixels = image(37, 53)
    relaid = pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    settings = PreprocessingSettings(resize=20, crop=16)
    assert torch.equal(preprocess(relaid, settings), preprocess(pixels, settings))


@pytest.mark.parametrize("resize", [20, None])
@pytest.mark.parametrize("size", [(37, 53), (20, 20), (10, 40)])
def test_pixels_stay_interleaved_and_become_dense(
    resize: int | None, size: tuple[int, int]
) -> None:
    settings = PreprocessingSettings(resize=resize, crop=16)
    planar = image(*size)
    interleaved = planar.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert preprocess(planar, settings).is_contiguous()
    found = preprocess(interleaved, settings)
    assert found.permute(1, 2, 0).is_contiguous()
    assert torch.equal(found, preprocess(planar, settings))


@pytest.mark.parametrize("resize", [16, (16, 16), None])
def test_an_image_of_the_inputs_size_is_not_copied(resize: int | tuple[int, int] | None) -> None:
    pixels = image(16, 16).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    found = preprocess(pixels, PreprocessingSettings(resize=resize, crop=16))
    assert found.data_ptr() == pixels.data_ptr()
    assert found.stride() == pixels.stride()


def test_the_size_that_scaled_decoding_leaves() -> None:
    assert decoded_size(PreprocessingSettings()) is None
    assert decoded_size(PreprocessingSettings(scaled_decoding=True)) == (256, 256)
    sides = PreprocessingSettings(resize=(20, 30), crop=20, scaled_decoding=True)
    assert decoded_size(sides) == (20, 30)


def test_normalising_as_torchvision_does() -> None:
    settings = PreprocessingSettings(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    batch = torch.stack([image(4, 5), image(4, 5).flip(0)])
    reference = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(settings.mean, settings.std)]
    )
    expected = torch.stack([reference(one.permute(1, 2, 0).numpy()) for one in batch])
    found = Normaliser(settings, torch.device("cpu"), torch.float32)(batch)
    assert torch.equal(found, expected)
    assert found[0, 0, 0, 0].item() == pytest.approx((batch[0, 0, 0, 0].item() / 255 - 0.1) / 0.5)


@pytest.mark.parametrize("size", [(16, 16), (16, 20)])
def test_interleaved_pixels_are_normalised_to_the_same_bits_and_stay_interleaved(
    size: tuple[int, int],
) -> None:
    settings = PreprocessingSettings(crop=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    batch = torch.stack([image(*size) for _ in range(3)])
    normalise = Normaliser(settings, torch.device("cpu"), torch.float32)

    found = normalise(batch.contiguous(memory_format=torch.channels_last))

    assert torch.equal(found, normalise(batch))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_normalising_to_the_models_dtype() -> None:
    normalise = Normaliser(PreprocessingSettings(), torch.device("cpu"), torch.bfloat16)
    assert normalise(image(2, 2)[None]).dtype == torch.bfloat16


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "resize"), [(500, 375, 224), (3_500, 224, 224), (400, 224, None)]
)
def test_a_crop_does_not_keep_the_image_around_it_in_memory(
    height: int, width: int, resize: int | None, interleaved: bool
) -> None:
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    if interleaved:
        pixels = torch.zeros(height, width, 3, dtype=torch.uint8).permute(2, 0, 1)

    found = preprocess(pixels, PreprocessingSettings(resize=resize, crop=224))

    assert found.shape == (3, 224, 224)
    assert found.untyped_storage().nbytes() == found.nbytes
