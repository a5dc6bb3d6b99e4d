from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nap_stream.decode import Refusal, decode_image
from nap_stream.demo.images import (
    BROKEN,
    CAMERAS,
    CORRUPTIONS,
    Phase,
    Splits,
    kind_of,
    plan_stream,
    png,
    write_digits,
    write_stream,
)
from nap_stream.image_files import iter_images
from nap_stream.settings.schema import LimitSettings


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
