from pathlib import Path

import pytest

from nap_stream.calibration.calibration import Calibration
from nap_stream.core.detection import window_limits
from nap_stream.demo.outcome import HistoryPoint, LoggedImage, ood_history, read_images
from nap_stream.drift.detectors import detection_plan
from nap_stream.records import TopicPartition
from nap_stream.settings.schema import DriftSettings
from tests.scored_log.builders import NOON_MS, chain, failed, origin, scored
from tests.support.small_calibration import calibration_of

DRIFT = DriftSettings(window_records=4, pane_ms=100, expected_run_length=100)


@pytest.fixture
def calibration() -> Calibration:
    scores = [float(number) for number in range(1, 100)]
    return calibration_of(scores, scores, alpha=0.05)


def image(time_ms: int, *, is_ood: bool | None) -> LoggedImage:
    return LoggedImage(0, time_ms, f"{time_ms}.png", "digit", "", time_ms, "ok", is_ood)


def test_gives_the_window_at_the_end_of_each_pane(calibration: Calibration) -> None:
    flags = [False, False, True, True, True, False, False]
    images = [image(1_000 + 100 * n, is_ood=flag) for n, flag in enumerate(flags)]

    history = ood_history(images, DRIFT, calibration)

    limit, _ = window_limits(detection_plan(DRIFT, calibration.facts), 4)
    bound = limit / 4
    assert history == [
        HistoryPoint(1_400, 0.5, bound),
        HistoryPoint(1_500, 0.75, bound),
        HistoryPoint(1_600, 0.75, bound),
        HistoryPoint(1_700, 0.5, bound),
    ]


def test_leaves_out_what_was_not_scored(calibration: Calibration) -> None:
    images = [image(1_000 + n, is_ood=None if n % 2 else True) for n in range(8)]

    assert [point.fraction for point in ood_history(images, DRIFT, calibration)] == [1.0]


def test_there_is_nothing_before_the_window_is_full(calibration: Calibration) -> None:
    assert ood_history([image(1_000, is_ood=True)] * 3, DRIFT, calibration) == []


def test_reads_all_rows_of_the_topic_in_order_of_event_time(tmp_path: Path) -> None:
    digits = [TopicPartition("digits", number) for number in (0, 1)]
    headers: tuple[tuple[str, bytes | None], ...] = (("other", b"x"), ("camera", b"c2"))
    late = origin(
        0, partition=digits[0], event_time_ms=NOON_MS + 20, key=b"photo/a.png", headers=headers
    )
    early = origin(0, partition=digits[1], event_time_ms=NOON_MS + 10, key=None)
    chain(tmp_path, [(1, [scored(late, p_value=0.01)])], digits[0])
    chain(tmp_path, [(1, [failed(early)])], digits[1])
    chain(tmp_path, [(1, [scored(origin(0))])], TopicPartition("cars", 0))

    assert read_images(tmp_path, "digits") == [
        LoggedImage(1, 0, "", "", "", NOON_MS + 10, "corrupt", None),
        LoggedImage(0, 0, "photo/a.png", "photo", "c2", NOON_MS + 20, "ok", True),
    ]
