import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from nap_stream.calibration.calibration import Calibration
from nap_stream.clock import ManualClock, SystemClock
from nap_stream.core.hidden_keys import CLEAR, HiddenKeys, Stored
from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Picture
from nap_stream.feed import on_cpu
from nap_stream.model.device_decode import DeviceDecoder
from nap_stream.model.forward import BatchScores
from nap_stream.model.lane import CpuTransport, Lane
from nap_stream.model.preprocessing import preprocess
from nap_stream.pipeline.rows import MessageDecoder, RowScorer
from nap_stream.pipeline.scoring import ScoringStage
from nap_stream.records import DecodedRows, Fetched, Message, TopicPartition
from nap_stream.scored_log.format import ROWS, SCORE_COLUMNS
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings
from tests.support.baseline_calibrations import with_baseline
from tests.support.device_decoders import DecoderHere, without_tables
from tests.support.image_bytes import encoded, picture
from tests.support.scored_records import DecodedImage, images_of
from tests.support.small_calibration import calibration_of

PREPROCESSING = PreprocessingSettings(resize=None, crop=4, mean=(0, 0, 0), std=(1, 1, 1))


class Bright:
    """A stand-in for the model: its scores are the image's mean brightness."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, batch: torch.Tensor) -> BatchScores:
        self.sizes.append(len(batch))
        brightness = batch.float().mean(dim=(1, 2, 3)).numpy()
        nap = np.where(brightness == 13, np.nan, brightness).astype(np.float32)
        class_id = (brightness > 100).astype(np.int64)
        values = {"nap": nap, "msp": np.full_like(nap, 0.5), "max_logit": brightness - 1}
        return BatchScores(class_id, values | {"energy": brightness, "knn": brightness / 256})


def decoder(preprocessing: PreprocessingSettings) -> MessageDecoder:
    return MessageDecoder(
        preprocessing=preprocessing,
        limits=LimitSettings(),
        kept_headers=("label",),
        clock=ManualClock(now_ms=4_000),
    )


@pytest.fixture
def decode() -> MessageDecoder:
    return decoder(PREPROCESSING)


@pytest.fixture
def score(calibration: Calibration) -> RowScorer:
    return scorer(Bright(), calibration)


def scorer(
    model: Bright, calibration: Calibration, batch_size: int = 32, hidden: HiddenKeys = CLEAR
) -> RowScorer:
    return RowScorer(
        hidden=hidden,
        score_images=Lane(model, CpuTransport(), batch_size=batch_size, size=(4, 4)),
        class_names=("dark", "light"),
        calibration=calibration,
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


def test_decoding_gives_the_models_input_size_and_keeps_the_files_own(
    decode: MessageDecoder,
) -> None:
    given = message(png(50))
    rows = decode(given)
    (image,) = images_of(rows, given.partition)

    assert isinstance(image, DecodedImage)
    assert image.pixels.shape == (3, 4, 4)
    assert (image.width, image.height, image.format) == (6, 8, "png")
    assert image.origin.headers == (("label", b"x"),)
    assert image.origin.ingest_time_ms == 4_000


@pytest.mark.parametrize("value", [png(50), b"no image"])
def test_keys_stand_in_rows_as_the_settings_say(
    value: bytes, decode: MessageDecoder, calibration: Calibration
) -> None:
    hidden = HiddenKeys(Stored.HASHED, (("label", Stored.DROPPED),), b"secret")
    (row,) = scorer(Bright(), calibration, hidden=hidden)([decode(message(value))]).to_pylist()
    assert (row["key"], row["headers"]) == (hidden.hashed(b"key"), [])
    hidden = HiddenKeys(Stored.DROPPED, (("label", Stored.HASHED),), b"secret")
    (row,) = scorer(Bright(), calibration, hidden=hidden)([decode(message(value))]).to_pylist()
    hashed = [{"name": "label", "value": hidden.hashed(b"x")}]
    assert (row["key"], row["headers"]) == (None, hashed)


def test_a_large_jpeg_is_decoded_scaled_where_the_settings_say_so() -> None:
    settings = PreprocessingSettings(resize=8, crop=8, scaled_decoding=True)
    decode = decoder(settings)
    data = encoded(picture(161, 120), "JPEG")
    found = decode_image(data, LimitSettings(), (8, 8))
    assert isinstance(found, Picture)

    rows = decode(message(data))

    assert (rows.columns["width"], rows.columns["height"]) == ([161], [120])
    assert found.pixels.shape == (3, 15, 21)
    (pixels,) = rows.pixels
    assert isinstance(pixels, torch.Tensor)
    assert torch.equal(pixels, preprocess(found.pixels, settings))


def test_rows_carry_scores_p_value_and_flag(decode: MessageDecoder, score: RowScorer) -> None:
    rows = score([decode(message(png(4))), decode(message(png(150), 1))])
    dark, light = rows.to_pylist()

    assert rows.schema.equals(ROWS)
    assert (dark["offset"], light["offset"]) == (0, 1)
    assert (dark["class_name"], light["class_name"]) == ("dark", "light")
    assert (dark["class_id"], light["class_id"]) == (0, 1)
    # Four of 99 calibration scores are at most 4; none is above 99.
    assert dark["ood_p_value"] == pytest.approx(5 / 100)
    assert (dark["is_ood"], light["is_ood"]) == (True, False)
    assert light["ood_p_value"] == 1.0
    assert light["fused"] == pytest.approx(150)
    assert (dark["status"], dark["error"]) == ("ok", None)
    assert dark["headers"] == [{"name": "label", "value": b"x"}]
    assert dark["scored_time"].timestamp() == 5


def test_rows_carry_both_p_values_where_a_baseline_judges(
    decode: MessageDecoder, calibration: Calibration
) -> None:
    judge = with_baseline(calibration, np.arange(40.0, 59.0))
    rows = scorer(Bright(), judge)([decode(message(png(v), o)) for o, v in enumerate((39, 58, 13))])
    low, high, bad = rows.to_pylist()

    assert rows.schema.equals(ROWS)
    # Of 19 scores none is at most 39, and all are at most 58; of the images' 99 it is 39 and 58.
    assert (low["ood_p_value"], high["ood_p_value"]) == (pytest.approx(0.05), 1)
    assert [row["calibration_p_value"] for row in (low, high, bad)] == [0.4, 0.59, None]
    assert (low["is_ood"], high["is_ood"], bad["is_ood"]) == (True, False, None)
    (plain,) = scorer(Bright(), calibration)([decode(message(png(39)))]).to_pylist()
    assert (plain["ood_p_value"], plain["calibration_p_value"]) == (0.4, None)


def test_rows_carry_every_value_under_its_name(decode: MessageDecoder, score: RowScorer) -> None:
    (row,) = score([decode(message(png(64)))]).to_pylist()

    assert (row["confidence"], row["max_logit"]) == (0.5, 63)
    assert (row["energy"], row["nap"], row["knn"]) == (64, 64, 0.25)
    assert [row[name] for name in ("react", "ash", "scale", "dice")] == [None] * 4


def test_no_forward_pass_has_more_images_than_asked_for(
    decode: MessageDecoder, calibration: Calibration
) -> None:
    model = Bright()
    messages = [message(png(20 + offset), offset) for offset in range(7)]

    rows = scorer(model, calibration, batch_size=3)([decode(each) for each in messages])

    assert model.sizes == [3, 3, 1]
    assert rows.column("energy").to_pylist() == list(range(20, 27))


def test_scores_that_are_not_finite_make_a_row_without_scores(
    decode: MessageDecoder, score: RowScorer
) -> None:
    rows = score([decode(message(value, o)) for o, value in enumerate((png(50), png(13), None))])
    fine, bad, gone = rows.to_pylist()

    assert [row["status"] for row in (fine, bad, gone)] == ["ok", "not_finite", "tombstone"]
    assert fine["nap"] == 50
    for row in (bad, gone):
        assert {row[name] for name in SCORE_COLUMNS} == {None}
    assert "not finite" in bad["error"]
    assert bad["sha256"] is not None


def test_a_failed_image_becomes_a_row_with_its_error(
    decode: MessageDecoder, score: RowScorer
) -> None:
    decoded = decode(message(b"hello, I am text"))
    (row,) = score([decoded]).to_pylist()
    (failed,) = decoded.failed

    assert row["status"] == "unsupported"
    assert {row[name] for name in SCORE_COLUMNS} == {None}
    assert row["error"] == failed.error


NVJPEG = PREPROCESSING.model_copy(update={"jpeg_decoder": "nvjpeg"})


def grey_jpeg(brightness: int) -> bytes:
    return encoded(Image.new("RGB", (6, 8), (brightness,) * 3), "JPEG")


def leaving_jpegs(*values: bytes) -> list[DecodedRows]:
    leave = decoder(NVJPEG)
    return [leave(message(value, offset)) for offset, value in enumerate(values)]


def device_scorer(calibration: Calibration, decode: DecoderHere) -> RowScorer:
    lane = Lane(
        Bright(),
        CpuTransport(),
        batch_size=2,
        size=(4, 4),
        decode_jpegs=DeviceDecoder(NVJPEG, decode),
    )
    return RowScorer(
        score_images=lane,
        class_names=("dark", "light"),
        calibration=calibration,
        decode_on_cpu=partial(on_cpu, limits=LimitSettings(), preprocessing=NVJPEG),
        clock=ManualClock(now_ms=5_000),
    )


def test_rows_of_jpegs_decoded_on_the_device_are_those_of_the_cpu(
    decode: MessageDecoder, score: RowScorer, calibration: Calibration
) -> None:
    values = [grey_jpeg(20), png(30), grey_jpeg(40), b"text", grey_jpeg(50), grey_jpeg(60)]
    expected = score([decode(message(value, o)) for o, value in enumerate(values)]).to_pylist()

    # The device refuses one, which the CPU then decodes.
    scorer_there = device_scorer(calibration, DecoderHere(values[2]))
    rows = scorer_there(leaving_jpegs(*values)).to_pylist()

    assert rows == expected
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "unsupported", "ok", "ok"]


def test_a_jpeg_that_nothing_decodes_becomes_the_row_and_the_dead_letter_it_was(
    decode: MessageDecoder, score: RowScorer, calibration: Calibration
) -> None:
    broken = without_tables(grey_jpeg(70))
    values = [grey_jpeg(20), broken, png(30)]
    decoded_here = [decode(message(value, o)) for o, value in enumerate(values)]
    expected = score(decoded_here).to_pylist()
    (failed,) = decoded_here[1].failed
    left = leaving_jpegs(*values)
    assert [len(part.failed) for part in left] == [0, 0, 0]

    rows = device_scorer(calibration, DecoderHere())(left).to_pylist()

    assert rows == expected
    assert rows[1]["status"] == "corrupt"
    assert [len(part.failed) for part in left] == [0, 1, 0]
    assert left[1].failed == [failed]
    assert failed.payload == broken


def test_the_dead_letter_of_a_jpeg_that_was_left_goes_with_its_rows(
    calibration: Calibration,
) -> None:
    broken = without_tables(grey_jpeg(70))
    values = [grey_jpeg(20), broken, b"text", grey_jpeg(30)]
    messages = tuple(message(value, offset) for offset, value in enumerate(values))
    stage = ScoringStage(
        decoder(NVJPEG),
        [device_scorer(calibration, DecoderHere())],
        batch_size=8,
        linger_s=0.0,
        decode_threads=1,
        max_decoded_images=8,
        clock=SystemClock(),
        observe=lambda *_: None,
    )
    partition = messages[0].partition
    try:
        stage.submit(Fetched(partition, messages, 4), epoch=0)
        assert stage.wait_until_done(frozenset({partition}), 10)
        (scored,) = stage.take()
    finally:
        stage.close()

    assert scored.rows.column("status").to_pylist() == ["ok", "corrupt", "unsupported", "ok"]
    assert {image.origin.offset: image.payload for image in scored.failed} == {
        1: broken,
        2: b"text",
    }
