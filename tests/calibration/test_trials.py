from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nap_stream.calibration.artifact import load_calibration
from nap_stream.calibration.document import CalibrationDocument
from nap_stream.calibration.read import Reader
from nap_stream.calibration.run import calibrate
from nap_stream.calibration.trials import MAX_IMAGES, WAYS, trial_warning
from nap_stream.clock import ManualClock
from nap_stream.core.labels import Labelled
from nap_stream.model.load import load_model
from nap_stream.settings.schema import LimitSettings, ModelSettings, PreprocessingSettings
from tests.support.colour_net import COLOURS, SIDE, write_colours
from tests.support.small_calibration import calibration_request, write_calibrated
from tests.support.small_settings import CPU, PLAIN

NONE, ONE, HALF, BYTE = (0.0,) * 3, (1.0,) * 3, (0.5,) * 3, (1 / 255,) * 3
IMAGENET = PreprocessingSettings()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("colours"), 15)


def settings(
    trained: dict[str, Any],
    mean: tuple[float, ...] = IMAGENET.mean,
    std: tuple[float, ...] = IMAGENET.std,
    names: tuple[str, ...] | None = tuple(COLOURS),
) -> ModelSettings:
    preprocessing = PreprocessingSettings.model_validate(
        {"resize": None, "crop": SIDE, "mean": mean, "std": std}
    )
    return ModelSettings(
        factory="tests.support.colour_net:build",
        kwargs=trained,
        class_names=names,
        preprocessing=preprocessing,
        **PLAIN,
    )


def warned(images: Path, model: ModelSettings, clock: ManualClock | None = None) -> tuple[str, ...]:
    loaded = load_model(model, CPU)
    reading = Reader.of(loaded, LimitSettings(), images)
    found = reading.read(reading.files(), 16, lambda _: None)
    labelled = Labelled.of(found.labels, found.class_id, loaded.class_names)
    return trial_warning(labelled, loaded, images, LimitSettings(), clock=clock or ManualClock(0))


@pytest.mark.parametrize(
    ("trained", "configured", "words"),
    [
        ({"bgr": True}, (IMAGENET.mean, IMAGENET.std), "red and blue exchanged (BGR)"),
        ({}, (NONE, ONE), "mean and std of ImageNet"),
        ({"mean": HALF, "std": HALF}, (NONE, BYTE), "mean and std 0.5"),
        ({"mean": NONE, "std": ONE}, (NONE, BYTE), "mean 0 and std 1 (pixels"),
        ({"mean": NONE, "std": BYTE}, (IMAGENET.mean, IMAGENET.std), "mean 0 and std 1/255"),
    ],
)
def test_the_preprocessing_of_training_is_found(
    images: Path, trained: dict[str, Any], configured: Any, words: str
) -> None:
    (warning,) = warned(images, settings(trained, *configured))

    assert warning.startswith("the preprocessing looks wrong: with ")
    # Where others do as well on these images, they are named too.
    assert words in warning.partition(" the accuracy")[0]
    assert "the accuracy is 1.00 on 60 of the images, and as configured 0." in warning


def test_the_preprocessing_of_caffe_is_found(images: Path) -> None:
    way = next(way for way in WAYS if "Caffe" in way.words)
    (warning,) = warned(images, settings({"mean": way.mean, "std": way.std, "bgr": True}))

    assert "(Caffe) the accuracy is 1.00" in warning


def test_images_that_should_not_be_resized_are_found(images: Path) -> None:
    preprocessing = PreprocessingSettings(resize=40, crop=36)
    model = settings({}).model_copy(
        update={
            "factory": "tests.support.colour_net:build_sized",
            "preprocessing": preprocessing,
        }
    )
    (warning,) = warned(images, model)

    assert "with the images in their own size, not resized the accuracy is 1.00" in warning


def test_a_good_model_costs_nothing(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nap_stream.calibration.trials._sample", None)

    assert warned(images, settings({})) == ()


def test_a_model_of_other_classes_is_told_nothing(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nap_stream.calibration.trials._sample", None)

    assert warned(images, settings({"bgr": True}, names=("a", "b", "c", "d"))) == ()


def test_a_model_that_is_bad_in_every_way_is_told_nothing(images: Path, tmp_path: Path) -> None:
    # The images of each class lie under all names.
    for number, name in enumerate(COLOURS):
        for index, file in enumerate(sorted((images / name).iterdir())):
            other = list(COLOURS)[(number + index) % len(COLOURS)]
            target = tmp_path / other / f"{name}-{file.name}"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())

    assert warned(tmp_path, settings({})) == ()


def test_names_in_another_order_are_not_taken_for_a_wrong_preprocessing(images: Path) -> None:
    names = ("cyan", "bright", "dark", "red")

    assert warned(images, settings({}, names=names)) == ()
    document = calibrated(images, settings({}, names=names))
    assert [w for w in document.warnings if "look swapped" in w]
    assert not [w for w in document.warnings if "near that of guessing" in w and "accuracy" in w]


def test_a_slow_model_sees_fewer_images(tmp_path: Path) -> None:
    folder = write_colours(tmp_path, 40)

    class SlowClock(ManualClock):
        def monotonic(self) -> float:
            self.advance(1.0)
            return super().monotonic()

    (warning,) = warned(folder, settings({"bgr": True}), SlowClock(0))

    assert "on 50 of the images" in warning
    (warning,) = warned(folder, settings({"bgr": True}))
    assert f"on {MAX_IMAGES} of the images" in warning


def test_calibrate_tells_it_with_the_worst_classes_and_keeps_it(
    images: Path, tmp_path: Path
) -> None:
    folder = write_calibrated(tmp_path / "made", images, model=settings({"bgr": True}))
    document = load_calibration(folder).document

    assert document.warnings[0].startswith("the preprocessing looks wrong: with red and blue")
    assert {one.name for one in document.worst_classes} == {"cyan", "red"}
    assert document.accuracy is not None
    assert np.isclose(document.accuracy, 0.5, atol=0.05)


def calibrated(images: Path, model: ModelSettings) -> CalibrationDocument:
    request = calibration_request(images, model=model)
    return calibrate(request, device=CPU, clock=ManualClock(0)).document
