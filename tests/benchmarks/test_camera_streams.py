import numpy as np
import pytest

from benchmarks.camera_streams import ALPHA, DAY_S, Autoregressive, Camera, Markov, fleet_shares
from nap_stream.core.decorrelation import decorrelation_panes


def flags(
    camera: Camera, seconds: int, step: int = 1
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    edges = np.arange(0, seconds + 1, step)
    bins = camera.bins(edges, np.random.default_rng(1))
    assert bins.shape[0] == len(edges) - 1
    flagged: np.ndarray[tuple[int], np.dtype[np.int64]] = bins[:, :2].sum(axis=1)
    return flagged


@pytest.mark.parametrize("dwell", [1, 20])
def test_flags_come_in_runs_of_the_length_asked_for(dwell: float) -> None:
    flagged = flags(Markov(0.2, dwell), 200_000)
    assert flagged.max() == 1
    assert flagged.mean() == pytest.approx(0.2, rel=0.1)
    runs = int((np.diff(flagged) == 1).sum())
    # Independent ones come in runs of 1 / (1 - 0.2).
    assert flagged.sum() / runs == pytest.approx(max(dwell, 1.25), rel=0.1)


def test_stretches_hold_all_images_and_the_same_ones_however_they_are_cut() -> None:
    edges = np.array([0, 100, 250, 1_000])
    bins = Markov(0.3, 30).bins(edges, np.random.default_rng(1))
    assert bins.sum(axis=1).tolist() == [100, 150, 750]
    whole = Markov(0.3, 30).bins(edges[[0, -1]], np.random.default_rng(1))
    assert whole[0, :2].sum() == bins[:, :2].sum()


@pytest.mark.parametrize("camera", [Markov(0.05, 10, 3), Autoregressive(0.05, 10, 3)])
def test_nights_have_more_flags(camera: Camera) -> None:
    hours = flags(camera, 40 * DAY_S, 3_600).reshape(40, 24).sum(axis=0)
    night = hours[:6].sum() + hours[18:].sum()
    assert night / hours[6:18].sum() == pytest.approx(3, rel=0.15)


def test_scores_decorrelate_in_the_time_asked_for() -> None:
    flagged = flags(Autoregressive(0.5, 20), 1_000_000, 10)
    assert flagged.mean() == pytest.approx(0.5, abs=0.05)
    # Of the sign of an AR(1) it is somewhat less: that of 2 / pi arcsin(rho).
    found = decorrelation_panes([(np.arange(len(flagged)), flagged.astype(np.float64))])
    assert 10 < found < 20


def test_cameras_differ_where_they_may() -> None:
    rng = np.random.default_rng(1)
    assert fleet_shares(3, 0.0, rng).tolist() == [ALPHA] * 3
    shares = fleet_shares(1_000, 0.02, rng)
    assert shares.mean() == pytest.approx(ALPHA, rel=0.1)
    assert shares.std() > 0.02
