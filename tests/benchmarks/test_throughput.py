from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.throughput import (
    CASES,
    FORWARD,
    LOOP,
    NOW,
    RAY_DATA,
    THEN,
    Found,
    pictures,
    print_case,
    verdicts,
)
from benchmarks.throughput_line import Line, scored_times_s, while_all_work
from benchmarks.throughput_peers import NETWORKS, middle_rate, prepare, preprocessed
from tests.scored_log.builders import NOON_MS, chain, failed, origin, scored
from tests.support.shared_data import shared_data


def test_a_rate_leaves_out_how_a_run_starts_and_ends() -> None:
    steady = np.linspace(0, 49.5, 100)
    steady[:10] -= 1_000
    steady[90:] += 1_000
    rate, first, last = middle_rate(steady[::-1])
    assert rate == pytest.approx(2.0)
    assert (first, last) == (5.0, 44.5)


def test_rows_of_one_moment_have_no_rate() -> None:
    with pytest.raises(ValueError, match="take more images"):
        middle_rate(np.zeros(50))


def test_only_rows_between_the_last_to_start_and_the_first_to_end_count() -> None:
    early, late = np.array([0.0, 1.0, 2.0, 3.0]), np.array([2.0, 2.5, 3.5])
    assert np.sort(while_all_work([early, late])).tolist() == [2.0, 2.0, 2.5, 3.0]
    assert while_all_work([early]).tolist() == early.tolist()


def _found(**rates: list[float]) -> Found:
    names = {
        "one": f"{NOW}, 1 worker",
        "two": f"{NOW}, 2 workers",
        "then": f"{THEN}, 2 workers",
        "slow": f"{FORWARD}, float32, 1 process x 2",
        "fast": f"{FORWARD}, bfloat16 channels_last, 2 processes x 1",
        "loop": LOOP,
        "ray": RAY_DATA,
    }
    return Found("resnet18", {names[key]: value for key, value in rates.items()}, {}, {})


def test_verdicts_are_of_the_best_medians() -> None:
    found = _found(
        one=[10, 90, 80], two=[85], then=[30], slow=[50], fast=[100], loop=[20], ray=[84]
    )
    assert verdicts(found, CASES["resnet18"]) == [
        "0.85 of forward alone, asked 0.8: kept",
        "2.83 of the line of before, asked 2.5: kept",
        "2 workers are 1.06 of 1 worker, asked 1: kept",
        "1.01 of the best peer, asked 1: kept",
    ]


def test_a_ratio_that_is_not_kept_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    found = _found(one=[60], two=[50], then=[30], fast=[100])
    found.cpu_s[f"{NOW}, 1 worker"] = 0.0125
    print_case(found, CASES["resnet18"])
    printed = capsys.readouterr().out
    assert "| nap-stream, 2 workers | 50.0 | 50.0 to 50.0 | 0.50 | 1.67 | |" in printed
    assert "| 0.60 | 2.00 | 12.500 |" in printed
    assert printed.count("NOT kept") == 3


def test_without_the_line_of_now_nothing_is_said_of_it() -> None:
    assert verdicts(_found(then=[30], fast=[100]), CASES["resnet18"]) == []


def test_a_way_that_is_clearly_slower_than_another_of_its_kind_is_beaten() -> None:
    found = _found(then=[30], slow=[84], fast=[100])
    assert found.beaten(f"{FORWARD}, float32, 1 process x 2")
    assert not found.beaten(f"{FORWARD}, bfloat16 channels_last, 2 processes x 1")
    assert not found.beaten(f"{THEN}, 2 workers")
    assert not found.beaten(f"{THEN}, that has not run")


@pytest.mark.data
def test_a_prepared_network_decides_and_its_clearest_images_are_kept(tmp_path: Path) -> None:
    images = tmp_path / "images.parquet"
    pq.write_table(pq.read_table(shared_data("cifar10_test.parquet")).slice(0, 200), images)
    weights, decided = tmp_path / "weights.pt", tmp_path / "decided.parquet"
    found = prepare("free32", str(images), str(weights), str(decided), keep=60)
    assert found["classes"] >= 5
    assert pq.read_metadata(decided).num_rows == 60
    model = NETWORKS["free32"].build()
    model.load_state_dict(torch.load(weights, weights_only=True))


@pytest.mark.data
def test_peers_resize_and_crop_a_photo() -> None:
    pixels = preprocessed(pictures("photos")[0], NETWORKS["resnet18"])
    assert pixels.shape == (3, 224, 224)
    assert pixels.dtype == torch.uint8
    assert float(pixels.float().std()) > 5


def test_scored_rows_alone_have_a_time(tmp_path: Path) -> None:
    chain(tmp_path, [(2, [scored(origin(0)), failed(origin(1))]), (3, [scored(origin(2))])])
    (times,) = scored_times_s(tmp_path)
    assert times.tolist() == [(NOON_MS + 9) / 1_000] * 2


def test_a_line_says_which_settings_it_has(tmp_path: Path) -> None:
    line = Line(Path(__file__).parents[2], tmp_path)
    assert line.knows("PreprocessingSettings", "resize")
    assert not line.knows("PreprocessingSettings", "sharpen")
