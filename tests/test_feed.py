from pathlib import Path

import pytest
import torch

from nap_stream.calibration.read import Reader
from nap_stream.calibration.run import calibrate
from nap_stream.clock import ManualClock
from nap_stream.decode.picture import Refusal
from nap_stream.errors import ConfigError
from nap_stream.feed import DEVICE_BATCH, Input, model_inputs, on_cpu
from nap_stream.model.device_decode import DeviceDecoder
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings
from tests.support.device_decoders import DecoderHere, without_tables
from tests.support.image_bytes import encoded, jpeg, picture
from tests.support.small_calibration import calibration_request, write_images
from tests.support.small_models import SIZE
from tests.support.small_settings import CPU, load_small, small_settings

NVJPEG = PreprocessingSettings(resize=SIZE, crop=SIZE, jpeg_decoder="nvjpeg")
LIMITS = LimitSettings()
PROGRESSIVE = encoded(picture(seed=5), "JPEG", progressive=True)
PNG = encoded(picture(seed=6), "PNG")


def test_the_device_gets_what_workers_leave_to_it_and_the_cpu_the_rest() -> None:
    decode = DecoderHere(jpeg(3))
    decoder = DeviceDecoder(NVJPEG, decode)
    broken = without_tables(jpeg(4))
    files = [jpeg(0), PNG, PROGRESSIVE, b"text", jpeg(3), broken, jpeg(1)]

    found = model_inputs(files, LIMITS, NVJPEG, decoder)

    assert decode.batches[0] == 4
    for number in (0, 6):
        (expected,) = DeviceDecoder(NVJPEG, DecoderHere())([files[number]])
        one = found[number]
        assert isinstance(one, Input)
        assert expected is not None
        assert torch.equal(one.pixels, expected)
    for number in (1, 2, 4):
        expected_here, one = on_cpu(files[number], LIMITS, NVJPEG), found[number]
        assert isinstance(one, Input)
        assert isinstance(expected_here, torch.Tensor)
        assert torch.equal(one.pixels, expected_here)
    assert found[3] == on_cpu(b"text", LIMITS, NVJPEG)
    assert found[5] == on_cpu(broken, LIMITS, NVJPEG)
    assert isinstance(found[5], Refusal)


def test_the_device_gets_so_many_files_at_once() -> None:
    decode = DecoderHere()
    model_inputs([jpeg()] * (DEVICE_BATCH + 3), LIMITS, NVJPEG, DeviceDecoder(NVJPEG, decode))
    assert decode.batches == [DEVICE_BATCH, 3]


def test_a_reader_reads_by_the_device(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(picture(20, 15, number), "JPEG"))
    decode = DecoderHere()
    loaded = load_small("SmallNet", preprocessing=NVJPEG)
    reader = Reader(loaded, LIMITS, tmp_path, on_device=DeviceDecoder(NVJPEG, decode))

    reading = reader.read(reader.files(), 4, lambda _: None)

    assert len(reading) == 5
    assert decode.batches == [4, 1]


def test_calibrating_by_nvjpeg_needs_a_gpu(tmp_path: Path) -> None:
    request = calibration_request(
        write_images(tmp_path / "images", 40), model=small_settings(preprocessing=NVJPEG)
    )
    with pytest.raises(ConfigError, match="nvJPEG decodes on a GPU"):
        calibrate(request, device=CPU, clock=ManualClock())
