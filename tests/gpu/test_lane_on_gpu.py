"""What only a GPU has: pinned memory, streams, and memory that runs out."""

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from nap_stream.calibration.fit import ALWAYS, unfitted
from nap_stream.core.score_specs import ScoreParameters
from nap_stream.model.lane import CudaTransport, open_lane, share_memory
from nap_stream.model.load import load_model
from nap_stream.settings.schema import PreprocessingSettings
from tests.support.lanes import decoded, every_base_score, model_on
from tests.support.small_settings import small_settings

pytestmark = pytest.mark.gpu
MIB = 2**20
SIDE, WIDTH = 256, 64
"""Of a network whose first map takes 16 MiB an image."""


@contextmanager
def synchronisations() -> Iterator[list[str]]:
    """What torch says of each wait for the device while the block runs."""
    found: list[str] = []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found.extend(str(each.message) for each in caught if "synchroniz" in str(each.message))


def test_the_buffer_is_pinned(cuda: torch.device) -> None:
    assert CudaTransport(cuda).buffer((2, 8, 8, 3)).is_pinned()


def test_a_batch_waits_for_the_device_once(cuda: torch.device) -> None:
    loaded = model_on(cuda)
    lane = open_lane(loaded, every_base_score(loaded), batch_size=4)
    lane(decoded(4))
    with synchronisations() as found:
        lane(decoded(12))
    assert len(found) == 3, found


def test_two_lanes_at_once_give_what_each_gives_alone(cuda: torch.device) -> None:
    models = [model_on(cuda), model_on(cuda)]
    lanes = [open_lane(each, every_base_score(each), batch_size=8) for each in models]
    pixels = decoded(200)
    alone = lanes[0](pixels)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda lane: [lane(pixels) for _ in range(20)], lanes))
    for found in (scores for each in both for scores in each):
        assert found.class_id.tolist() == alone.class_id.tolist()
        for name, column in alone.values.items():
            np.testing.assert_allclose(found.values[name], column, rtol=1e-5, err_msg=name)


def test_a_batch_that_does_not_fit_is_halved(cuda: torch.device) -> None:
    loaded = load_model(
        small_settings(
            "sized",
            kwargs={"classes": 3, "width": WIDTH},
            preprocessing=PreprocessingSettings(resize=None, crop=SIDE),
        ),
        cuda,
    )
    base_scores = unfitted(ALWAYS, loaded, ScoreParameters()).base_scores
    pixels = decoded(48, (SIDE, SIDE))
    expected = open_lane(loaded, base_scores, batch_size=4)(pixels)
    noted: list[int] = []
    lane = open_lane(loaded, base_scores, batch_size=48, note_out_of_memory=lambda: noted.append(1))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(cuda).total_memory
    try:
        share_memory((torch.cuda.memory_reserved(cuda) + 512 * MIB) / total, cuda)
        found = lane(pixels)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert noted
    assert found.class_id.tolist() == expected.class_id.tolist()
    for name, column in expected.values.items():
        np.testing.assert_allclose(found.values[name], column, rtol=1e-4, err_msg=name)
