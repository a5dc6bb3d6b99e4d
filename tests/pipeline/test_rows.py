import io

import numpy as np
import pytest
import torch
from PIL import Image

from nap_stream.calibration.calibration import Calibration
from nap_stream.clock import ManualClock
from nap_stream.model.forward import BatchScores
from nap_stream.pipeline.scoring import RecordScorer
from nap_stream.records import DecodedImage, FailedImage, Message, Status, TopicPartition
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings
from tests.support.small_calibration import calibration_of

PREPROCESSING = PreprocessingSettings(resize=None, crop=4, mean=(0, 0, 0), std=(1, 1, 1))


class Bright:
    """A stand-in for the model: its scores are the image's mean brightness."""

    def __call__(self, batch: torch.Tensor) -> BatchScores:
        brightness = batch.float().mean(dim=(1, 2, 3)).numpy()
        nap = np.where(brightness == 13, np.nan, brightness).astype(np.float32)
        class_id = (brightness > 100).astype(np.int64)
        values = {"nap": nap, "msp": np.full_like(nap, 0.5), "max_logit": brightness - 1}
        return BatchScores(class_id, values | {"energy": brightness, "knn": brightness / 256})


@pytest.fixture
def rows(calibration: Calibration) -> RecordScorer:
    return RecordScorer(
        scorer=Bright(),  # type: ignore[arg-type]  # anything that scores a batch will do
        class_names=("dark", "light"),
        calibration=calibration,
        preprocessing=PREPROCESSING,
        limits=LimitSettings(),
        kept_headers=("label",),
        clock=ManualClock(now_ms=5_000),
    )


@pytest.fixture
def calibration() -> Calibration:
    """99 images of brightness 1 to 99: alpha 0.05 flags what is below 5."""
    brightness = range(1, 100)
    return calibration_of(brightness, brightness, alpha=0.05)


def png(brightness: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 8), (brightness,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def message(value: bytes | None, offset: int = 0) -> Message:
    headers = (("label", b"x"), ("other", b"y"))
    return Message(TopicPartition("images", 0), offset, 1_000, b"key", value, headers)


def decoded(rows: RecordScorer, brightness: int) -> DecodedImage:
    (row,) = rows.decode(message(png(brightness)))
    assert isinstance(row, DecodedImage)
    return row


def test_decoding_gives_the_models_input_size_and_keeps_the_files_own(rows: RecordScorer) -> None:
    row = decoded(rows, 50)

    assert row.pixels.shape == (3, 4, 4)
    assert (row.width, row.height, row.format) == (6, 8, "png")
    assert row.origin.headers == (("label", b"x"),)
    assert row.origin.ingest_time_ms == 5_000


def test_rows_carry_scores_p_value_and_flag(rows: RecordScorer) -> None:
    dark, light = rows.score([decoded(rows, 4), decoded(rows, 150)])

    assert dark.scores is not None
    assert light.scores is not None
    assert (dark.scores.class_name, light.scores.class_name) == ("dark", "light")
    # Four of 99 calibration scores are at most 4; none is above 99.
    assert dark.scores.ood_p_value == pytest.approx(5 / 100)
    assert dark.scores.is_ood
    assert light.scores.ood_p_value == 1.0
    assert not light.scores.is_ood
    assert light.scores.fused == pytest.approx(150)


def test_rows_carry_every_value_under_its_name(rows: RecordScorer) -> None:
    (row,) = rows.score([decoded(rows, 64)])

    assert row.scores is not None
    assert (row.scores.confidence, row.scores.max_logit) == (0.5, 63)
    assert (row.scores.energy, row.scores.nap, row.scores.knn) == (64, 64, 0.25)
    assert (row.scores.react, row.scores.ash, row.scores.scale, row.scores.dice) == (None,) * 4


def test_scores_that_are_not_finite_make_a_row_without_scores(rows: RecordScorer) -> None:
    fine, bad = rows.score([decoded(rows, 50), decoded(rows, 13)])

    assert fine.status is Status.OK
    assert bad.status is Status.NOT_FINITE
    assert bad.scores is None
    assert "not finite" in (bad.error or "")
    assert bad.sha256 is not None


def test_a_failed_image_becomes_a_row_with_its_error(rows: RecordScorer) -> None:
    (failed,) = rows.decode(message(b"hello, I am text"))
    assert isinstance(failed, FailedImage)

    record = rows.fail(failed)

    assert record.status is Status.UNSUPPORTED
    assert record.scores is None
    assert record.error == failed.error
