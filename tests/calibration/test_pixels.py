"""What holds of every transform and every fault."""

import hashlib

import pytest
import torch
from torch import Tensor

from nap_stream.calibration.faults import FAULTS
from nap_stream.calibration.pseudo_ood import PSEUDO_OOD, transformed
from tests.support.pixel_batches import all_sizes, apply, images

ALL = {**PSEUDO_OOD, **FAULTS}
RANDOM = {
    "patch_shuffle",
    "elastic",
    "gaussian_noise",
    "plain_frame",
    "uniform_noise",
    "smooth_field",
    "shapes",
    "gradient",
    "covered lens",
    "dirt spots",
    "under-exposure",
    "sensor noise",
}

all_counts = pytest.mark.parametrize("count", [1, 3])
all_names = pytest.mark.parametrize("name", ALL)


@all_counts
@all_sizes
@all_names
def test_the_contract(name: str, size: tuple[int, int], count: int) -> None:
    batch = images(count, size)
    before = batch.clone()
    found = apply(name, batch)
    assert (found.shape, found.dtype) == (batch.shape, torch.uint8)
    assert torch.equal(batch, before)
    assert torch.equal(apply(name, batch), found)
    assert found.untyped_storage().data_ptr() != batch.untyped_storage().data_ptr()
    assert not any(torch.equal(*pair) for pair in zip(found, batch, strict=True))
    channels_last = batch.contiguous(memory_format=torch.channels_last)
    assert torch.equal(apply(name, channels_last), found)


@all_names
def test_images_stay_on_their_device(name: str) -> None:
    # A device without storage, which every machine has; nothing on it mixes with what is on
    # the CPU.
    found = apply(name, images(3, (17, 40)).to("meta"))
    assert (found.device.type, found.shape, found.dtype) == ("meta", (3, 3, 17, 40), torch.uint8)


@all_names
def test_random_from_the_seed_and_the_first_index_alone(name: str) -> None:
    batch = images(3, (32, 32))
    torch.manual_seed(1)
    found = transformed(name, batch, 7, 64)
    torch.manual_seed(2)
    assert torch.equal(transformed(name, batch, 7, 64), found)
    others = [transformed(name, batch, 8, 64), transformed(name, batch, 7, 67)]
    for other in others:
        assert torch.equal(other, found) == (name not in RANDOM)


@pytest.mark.parametrize("name", ["gaussian_noise", "sensor noise"])
def test_the_generator_comes_from_seed_name_and_first_index(name: str) -> None:
    batch = images(1, (8, 8))
    digest = hashlib.sha256(f"7/{name}/64".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]))
    assert torch.equal(apply(name, batch, 64), ALL[name](batch, generator))


@pytest.mark.parametrize("name", sorted(set(ALL) - RANDOM))
def test_the_rest_treats_each_image_alone(name: str) -> None:
    batch = images(3, (17, 40))
    alone = torch.cat([apply(name, image[None]) for image in batch])
    assert torch.equal(apply(name, batch), alone)


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_randomness_differs_between_the_images_of_a_batch(name: str) -> None:
    first, second = apply(name, images(1, (32, 32)).repeat(2, 1, 1, 1))
    assert not torch.equal(first, second)


def test_a_name_says_which_transform_or_fault() -> None:
    assert not PSEUDO_OOD.keys() & FAULTS.keys()
    with pytest.raises(KeyError, match="sharpen"):
        apply("sharpen", images(1, (8, 8)))


@pytest.mark.parametrize("name", ["solarize", "haze"])
@pytest.mark.parametrize(
    "batch",
    [
        images(1, (8, 8)).float(),
        images(1, (8, 8))[0],
        images(1, (8, 8))[:, :1],
        images(1, (8, 8))[:0],
        images(1, (7, 8)),
        images(1, (8, 7)),
    ],
    ids=["float", "one image", "grey", "empty", "low", "narrow"],
)
def test_what_is_no_batch_of_images(batch: Tensor, name: str) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(N, 3, H, W\)"):
        apply(name, batch)
