import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nap_stream.evaluation import metrics
from nap_stream.evaluation.metrics import (
    DetectionMetrics,
    Scores,
    draw_counts,
    measure,
    percentile_intervals,
    resampled_metrics,
)

TIED = arrays(np.float64, st.integers(1, 40), elements=st.integers(-4, 4).map(float))
APART = arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6))


@given(st.one_of(TIED, APART), st.one_of(TIED, APART), st.integers(0, 2**32))
def test_is_what_scikit_learn_gives_for_the_images_drawn(
    inside: Scores, outside: Scores, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    inside_counts = draw_counts(len(inside), 3, generator)
    outside_counts = draw_counts(len(outside), 3, generator)

    found = resampled_metrics(inside, outside, inside_counts, outside_counts)

    for resample in range(3):
        drawn_inside = np.repeat(inside, inside_counts[:, resample])
        drawn_outside = np.repeat(outside, outside_counts[:, resample])
        expected = measure(drawn_inside, drawn_outside).values()
        np.testing.assert_allclose(found[resample], expected, rtol=0, atol=1e-12)


@given(st.one_of(TIED, APART), st.one_of(TIED, APART))
def test_images_drawn_once_each_give_the_metrics_themselves(
    inside: Scores, outside: Scores
) -> None:
    once = np.ones((len(inside), 1), dtype=np.int32), np.ones((len(outside), 1), dtype=np.int32)

    (found,) = resampled_metrics(inside, outside, *once)

    np.testing.assert_allclose(found, measure(inside, outside).values(), rtol=0, atol=1e-12)


def test_resamples_that_are_taken_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    inside, outside = generator.normal(1, 1, 30), generator.normal(0, 1, 20)
    counts = draw_counts(30, 25, generator), draw_counts(20, 25, generator)
    whole = resampled_metrics(inside, outside, *counts)

    monkeypatch.setattr(metrics, "_BLOCK_VALUES", 200)

    # Sums over columns of another width may round their last bit differently.
    np.testing.assert_allclose(
        resampled_metrics(inside, outside, *counts), whole, rtol=0, atol=1e-14
    )


def test_draws_as_many_images_as_there_are_with_replacement() -> None:
    counts = draw_counts(400, 50, np.random.default_rng(0))

    assert counts.shape == (400, 50)
    assert (counts.sum(axis=0) == 400).all()
    # (1 - 1/400)^400, about 1/e of the images, are not drawn.
    assert np.mean(counts == 0) == pytest.approx(0.3674, abs=0.01)


def test_the_interval_is_central() -> None:
    samples = np.arange(101.0)[:, np.newaxis] * np.array([1, 2, 3, 4]) / 400

    interval = percentile_intervals(samples, 0.9)

    np.testing.assert_allclose(interval.low.values(), np.array([5, 10, 15, 20]) / 400)
    np.testing.assert_allclose(interval.high.values(), np.array([95, 190, 285, 380]) / 400)
    assert isinstance(interval.low, DetectionMetrics)


def test_the_interval_has_the_width_that_theory_gives() -> None:
    # Normal scores one deviation apart: an AUROC of 0.7602 whose standard error, with 500 and
    # 300 images, is 0.01725 (Hanley and McNeil 1982, with the true Q1 = Q2 = 0.6337).
    generator = np.random.default_rng(5)
    inside, outside = generator.normal(1, 1, 500), generator.normal(0, 1, 300)
    counts = draw_counts(500, 1_000, generator), draw_counts(300, 1_000, generator)

    auroc = resampled_metrics(inside, outside, *counts)[:, 0]

    assert auroc.std() == pytest.approx(0.01725, rel=0.1)
