import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from benchmarks import plain_pytorch
from nap_stream.evaluation.metrics import DetectionMetrics, Metric, Scores, measure

# Few distinct values, so that ties are common.
TIED = arrays(np.float64, st.integers(1, 40), elements=st.integers(-4, 4).map(float))


def scores(*values: float) -> Scores:
    return np.array(values, dtype=np.float64)


def test_by_hand_with_ties() -> None:
    found = measure(scores(3, 2, 2, 1), scores(2, 0))

    # 6 of the 8 pairs are in order, each tie a half; all four are kept only from 1 on; then the
    # precision at each distinct threshold, weighted by the recall gained there.
    expected = DetectionMetrics(
        auroc=6 / 8,
        fpr95=1 / 2,
        aupr_in=1 * 1 / 4 + 3 / 4 * 2 / 4 + 4 / 5 * 1 / 4,
        aupr_out=1 * 1 / 2 + 2 / 5 * 1 / 2,
    )
    np.testing.assert_allclose(found.values(), expected.values(), rtol=1e-14)


def test_higher_is_in_distribution() -> None:
    low, high = scores(0, 1, 2), scores(3, 4)

    assert measure(high, low) == DetectionMetrics(auroc=1, fpr95=0, aupr_in=1, aupr_out=1)
    wrong = measure(low, high)
    assert (wrong.auroc, wrong.fpr95) == (0, 1)


def test_fpr95_keeps_exactly_95_per_cent_where_it_can() -> None:
    inside = np.arange(1.0, 21)

    # 19 of 20 are at 2 or above.
    assert measure(inside, scores(1.5, 2.5)).fpr95 == 0.5
    assert measure(inside, scores(1.5, 1.9)).fpr95 == 0


def test_fpr95_takes_ties_whole() -> None:
    # 18 of 20 are above 1, and the last two come together.
    inside = np.array([1.0, 1, *range(3, 21)])

    assert measure(inside, scores(1, 2, 0.5, 0.5)).fpr95 == 0.5


@given(TIED, TIED)
def test_agrees_with_the_plain_script(inside: Scores, outside: Scores) -> None:
    found = measure(inside, outside)

    assert found.fpr95 == plain_pytorch.fpr95(inside, outside)
    assert found.auroc == pytest.approx(plain_pytorch.auroc(inside, outside), abs=1e-14)


@given(TIED, TIED)
def test_swapping_the_sets_and_the_sign_swaps_the_precision_curves(
    inside: Scores, outside: Scores
) -> None:
    found, swapped = measure(inside, outside), measure(-outside, -inside)

    assert (swapped.aupr_in, swapped.aupr_out) == (found.aupr_out, found.aupr_in)
    assert swapped.auroc == pytest.approx(found.auroc, abs=1e-14)


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        (scores(), scores(1), r"in-distribution scores have shape \(0,\)"),
        (scores(1), scores(), r"OOD scores have shape \(0,\)"),
        (scores(1, np.nan), scores(1), "1 of 2 in-distribution scores are not finite"),
        (scores(1), scores(np.inf, np.nan, 0), "2 of 3 OOD scores are not finite"),
        (np.ones((2, 2)), scores(1), r"shape \(2, 2\)"),
    ],
)
def test_refuses_what_cannot_be_ranked(
    inside: NDArray[np.float64], outside: NDArray[np.float64], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure(inside, outside)


def test_metrics_are_named_in_the_order_of_their_values() -> None:
    found = DetectionMetrics(auroc=0.1, fpr95=0.2, aupr_in=0.3, aupr_out=0.4)

    assert [found.value(metric) for metric in Metric] == found.values().tolist()
    assert DetectionMetrics.from_values(found.values()) == found
    assert [metric.heading for metric in Metric] == [
        "AUROC ↑",
        "FPR95 ↓",
        "AUPR-In ↑",
        "AUPR-Out ↑",
    ]
