from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits, load_sample_images

from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Refusal
from nap_stream.demo.digits import (
    BROKEN,
    CAMERAS,
    CLASS_NAMES,
    CORRUPTIONS,
    DIGIT_SIDE,
    FACTORY,
    MEAN,
    OCCLUDED_SIDE,
    PATCH_SIDE,
    SIDE,
    STD,
    Digits,
    DigitsNet,
    Phase,
    Splits,
    accuracy,
    as_input,
    blurred,
    inverted,
    kind_of,
    load_splits,
    noisy,
    occluded,
    photo_patches,
    plan_stream,
    png,
    train,
    write_digits,
    write_stream,
)
from nap_stream.image_files import iter_images
from nap_stream.model.load import LoadedModel, load_model
from nap_stream.settings.schema import LimitSettings, ModelSettings, PreprocessingSettings


def test_each_digit_is_in_exactly_one_split(splits: Splits) -> None:
    numbers = [set(part.number.tolist()) for part in parts(splits)]

    assert [len(part) for part in parts(splits)] == [500, 500, 797]
    assert sum(len(found) for found in numbers) == len(set.union(*numbers)) == 1_797


def test_labels_and_pixels_are_those_of_the_data_set(splits: Splits) -> None:
    original = load_digits()
    stream = splits.stream

    assert np.array_equal(stream.label, original.target[stream.number])
    brightness = original.images[stream.number].mean(axis=(1, 2)) / 16 * 255
    enlarged = stream.pixels.mean(axis=(1, 2, 3)) * (SIDE / DIGIT_SIDE) ** 2
    assert np.abs(brightness - enlarged).max() < 8


def test_images_are_grey_rgb_with_a_black_margin(splits: Splits) -> None:
    pixels = splits.training.pixels
    inner = slice(4, 28)

    assert pixels.shape == (500, 32, 32, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert pixels.sum() == pixels[:, inner, inner].sum()


def test_the_seed_alone_decides_how_digits_are_dealt_out(splits: Splits) -> None:
    again, other = load_splits(seed=3), load_splits(seed=4)

    assert np.array_equal(again.stream.number, splits.stream.number)
    assert not np.array_equal(other.stream.number, splits.stream.number)


def parts(splits: Splits) -> tuple[Digits, Digits, Digits]:
    return splits.training, splits.calibration, splits.stream


def generator() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_follow_from_the_generator_and_leave_their_input(
    kind: str, splits: Splits
) -> None:
    digit = splits.stream.pixels[0]
    before = digit.copy()

    first, second = (CORRUPTIONS[kind](digit, generator()) for _ in range(2))

    assert np.array_equal(first, second)
    assert np.array_equal(digit, before)
    assert first.shape == digit.shape
    assert first.dtype == np.uint8
    assert not np.array_equal(first, digit)


def test_noise_is_grey_and_as_strong_as_stated() -> None:
    middle = np.full((32, 32, 3), 128, np.uint8)

    noise = noisy(middle, generator()).astype(float)

    assert (noise[..., 0] == noise[..., 2]).all()
    assert 60 < noise.std() < 80  # 80, less what is clipped at 0 and 255


def test_inverted_black_is_white() -> None:
    assert (inverted(np.zeros((32, 32, 3), np.uint8), generator()) == 255).all()


def test_blurring_takes_the_contrast(splits: Splits) -> None:
    digit = splits.stream.pixels[0]

    assert blurred(digit, generator()).max() < digit.max() * 0.8


def test_the_occluded_square_is_of_one_grey() -> None:
    result = occluded(np.zeros((32, 32, 3), np.uint8), generator())

    covered = result[result.any(axis=2)]
    assert len(covered) == OCCLUDED_SIDE**2
    assert len(np.unique(covered)) == 1
    assert covered[0, 0] >= 64


def test_patches_are_cut_from_the_photographs() -> None:
    patches = photo_patches(3, generator())

    again = photo_patches(3, generator())
    assert all(np.array_equal(a, b) for a, b in zip(patches, again, strict=True))
    assert not np.array_equal(patches[0], patches[1])
    assert all(patch.shape == (32, 32, 3) and patch.dtype == np.uint8 for patch in patches)
    draws = generator()
    photograph = load_sample_images().images[draws.integers(2)]
    top = draws.integers(photograph.shape[0] - PATCH_SIDE + 1)
    left = draws.integers(photograph.shape[1] - PATCH_SIDE + 1)
    square = Image.fromarray(photograph[top : top + PATCH_SIDE, left : left + PATCH_SIDE])
    small = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(patches[0], small)


@pytest.fixture(scope="module")
def phases(splits: Splits) -> tuple[Phase, Phase, Phase]:
    return plan_stream(splits.stream, seed=3)


def kinds(phase: Phase) -> Counter[str]:
    return Counter(image.kind for image in phase.images)


def test_only_digits_come_before_the_change_and_after_the_return(
    phases: tuple[Phase, Phase, Phase],
) -> None:
    before, mixed, after = phases

    assert kinds(before) == {"digit": 300}
    assert kinds(mixed)["digit"] == kinds(mixed).total() / 2 == 100
    assert kinds(mixed)["photo"] == 50
    assert set(kinds(mixed)) == {"digit", "photo", *CORRUPTIONS}
    assert kinds(after) == {"digit": 347}


def test_no_digit_comes_twice_and_none_was_trained_or_calibrated_on(
    splits: Splits, phases: tuple[Phase, Phase, Phase]
) -> None:
    digits = [
        int(image.name[-8:-4])
        for phase in phases
        for image in phase.images
        if image.kind != "photo"
    ]

    assert sorted(digits) == sorted(splits.stream.number.tolist())


def test_out_of_distribution_images_stand_among_the_digits(
    phases: tuple[Phase, Phase, Phase],
) -> None:
    flags = [image.kind != "digit" for image in phases[1].images]

    assert 30 < sum(flags[:100]) < 70


def test_only_broken_cameras_show_other_things(phases: tuple[Phase, Phase, Phase]) -> None:
    before, mixed, after = phases
    for phase in (before, after):
        cameras = Counter(image.camera for image in phase.images)
        assert set(cameras) == set(CAMERAS)
        assert max(cameras.values()) - min(cameras.values()) <= 1
    for image in mixed.images:
        assert (image.camera in BROKEN) == (image.kind != "digit")
    assert {image.camera for image in mixed.images} == set(CAMERAS)


def test_the_seed_decides_the_whole_stream(
    splits: Splits, phases: tuple[Phase, Phase, Phase]
) -> None:
    again = plan_stream(splits.stream, seed=3)

    for one, other in zip(phases, again, strict=True):
        assert [image.name for image in one.images] == [image.name for image in other.images]
        for a, b in zip(one.images, other.images, strict=True):
            assert np.array_equal(a.pixels, b.pixels)


def test_files_hold_the_images_and_parquet_the_same_bytes_in_sending_order(
    phases: tuple[Phase, Phase, Phase], tmp_path: Path
) -> None:
    parquet = tmp_path / "stream.parquet"

    write_stream(phases, tmp_path / "images", parquet)

    sent = [image for phase in phases for image in phase.images]
    for image, file in zip(sent, iter_images(parquet), strict=True):
        assert (file.name, file.label) == (image.name, image.camera)
        assert kind_of(file.name) == image.kind
        assert file.data == (tmp_path / "images" / image.name).read_bytes()
    assert len({image.name for image in sent}) == len(sent)


def test_the_monitor_decodes_what_is_sent(phases: tuple[Phase, Phase, Phase]) -> None:
    for image in phases[1].images:
        decoded = decode_image(png(image.pixels), LimitSettings())
        assert not isinstance(decoded, Refusal)
        assert np.array_equal(decoded.pixels.permute(1, 2, 0).numpy(), image.pixels)


def test_digits_lie_in_folders_by_label(splits: Splits, tmp_path: Path) -> None:
    write_digits(splits.calibration, tmp_path)

    labels = Counter(file.label for file in iter_images(tmp_path))
    assert labels == Counter(str(label) for label in splits.calibration.label)


def test_a_phase_says_what_is_in_it(phases: tuple[Phase, Phase, Phase]) -> None:
    assert phases[0].description() == "digits (300 digit)"
    assert phases[1].description().startswith("two cameras broken (100 digit, 50 photo, ")


@pytest.fixture(scope="module")
def network(splits: Splits) -> DigitsNet:
    return train(splits.training.pixels, splits.training.label, seed=3)


@pytest.fixture
def loaded(network: DigitsNet, tmp_path: Path) -> LoadedModel:
    weights = tmp_path / "model.safetensors"
    save_file(network.state_dict(), weights)
    settings = ModelSettings(
        factory=FACTORY,
        weights=weights,
        class_names=CLASS_NAMES,
        preprocessing=PreprocessingSettings(resize=None, crop=SIDE, mean=MEAN, std=STD),
    )
    return load_model(settings, torch.device("cpu"))


def test_tells_most_digits_that_it_has_not_seen(network: DigitsNet, splits: Splits) -> None:
    assert not network.training
    assert accuracy(network, splits.stream.pixels, splits.stream.label) > 0.93


def test_accuracy_is_the_share_of_right_answers(network: DigitsNet, splits: Splits) -> None:
    pixels = splits.stream.pixels[:40]
    with torch.inference_mode():
        told = network(as_input(pixels)).argmax(dim=1).numpy()
    half_wrong = np.where(np.arange(40) < 20, told, (told + 1) % 10)

    assert accuracy(network, pixels, half_wrong) == 0.5


@pytest.fixture
def two_torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_torch_threads")
def test_training_leaves_torch_as_it_was(splits: Splits) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)

    train(splits.training.pixels[:64], splits.training.label[:64], seed=3)

    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == 2


def test_the_monitor_finds_its_last_feature_map(loaded: LoadedModel) -> None:
    assert loaded.feature_site.shape == (128, 4, 4)
    assert loaded.class_names == CLASS_NAMES


def test_the_monitor_computes_the_same_logits(
    loaded: LoadedModel, network: DigitsNet, splits: Splits
) -> None:
    pixels = splits.stream.pixels[:8]
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)

    with torch.inference_mode():
        logits = loaded.module(loaded.normalise(batch))
        expected = network(as_input(pixels))

    torch.testing.assert_close(logits, expected)
