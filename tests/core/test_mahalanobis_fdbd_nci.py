"""The scores of features that are fitted to a mean: Mahalanobis, fDBD and NCI."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf

from nap_stream.core import feature_scores
from nap_stream.core.feature_scores import Fdbd, Mahalanobis, nci, unit_gaussian
from nap_stream.core.score_specs import UnitGaussian

CPU = torch.device("cpu")
seeds = st.integers(0, 2**32 - 1)
SHAPES = [(30, 50), (20, 20), (200, 20), (3, 8)]
"""Fewer images than features, as many, and more."""


def drawn(seed: int, n: int, d: int) -> NDArray[np.float32]:
    """Not negative, of several lengths, as the pooled activations of a ReLU network are."""
    random = np.random.default_rng(seed)
    return (random.exponential(1, (n, d)) * random.uniform(0.1, 9, (n, 1))).astype(np.float32)


def mahalanobis(
    training: NDArray[np.float32], features: NDArray[np.float32], rank: int
) -> NDArray[np.float32]:
    score = Mahalanobis(unit_gaussian(training, rank), CPU)(torch.tensor(features))
    return np.asarray(score.numpy())


def unit(features: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = features.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(norms == 0, 1, norms))


def by_scikit_learn(training: NDArray[np.float32]) -> tuple[NDArray[np.float64], ...]:
    """The mean and the covariance of unit rows."""
    mean = unit(training).mean(axis=0)
    covariance, _ = ledoit_wolf(unit(training) - mean, assume_centered=True)
    return mean, covariance


def with_the_mean_of_the_rest(covariance: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """The covariance with its eigenvalues after the ``rank`` greatest replaced by their mean."""
    values, vectors = np.linalg.eigh(covariance)
    values[:-rank] = values[:-rank].mean()
    return np.asarray((vectors * values) @ vectors.T)


def squared_distance(
    features: NDArray[np.float32], mean: NDArray[np.float64], covariance: NDArray[np.float64]
) -> NDArray[np.float64]:
    rows = unit(features) - mean
    return np.asarray((rows * np.linalg.solve(covariance, rows.T).T).sum(axis=1))


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("extra", [0, 100])
def test_at_full_rank_mahalanobis_is_that_of_the_whole_inverse(n: int, d: int, extra: int) -> None:
    training, features = drawn(0, n, d), drawn(1, 40, d)
    expected = -squared_distance(features, *by_scikit_learn(training))
    np.testing.assert_allclose(mahalanobis(training, features, d + extra), expected, rtol=1e-4)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("rank", [1, 2])
def test_at_a_lower_rank_the_other_directions_have_their_mean_variance(
    n: int, d: int, rank: int
) -> None:
    training, features = drawn(0, n, d), drawn(1, 40, d)
    mean, covariance = by_scikit_learn(training)
    expected = -squared_distance(features, mean, with_the_mean_of_the_rest(covariance, rank))
    np.testing.assert_allclose(mahalanobis(training, features, rank), expected, rtol=1e-4)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_variances_are_the_greatest_eigenvalues_and_rest_the_mean_of_the_others(
    n: int, d: int
) -> None:
    training = drawn(0, n, d)
    mean, covariance = by_scikit_learn(training)
    eigenvalues = np.linalg.eigvalsh(covariance)[::-1]
    gaussian = unit_gaussian(training, 2)
    np.testing.assert_allclose(gaussian.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(gaussian.variances, eigenvalues[:2], rtol=1e-5)
    assert gaussian.rest == pytest.approx(eigenvalues[2:].mean(), rel=1e-5)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_directions_are_orthogonal_and_of_norm_one(n: int, d: int) -> None:
    directions = unit_gaussian(drawn(0, n, d), d).directions
    np.testing.assert_allclose(directions @ directions.T, np.eye(len(directions)), atol=1e-5)


def test_fewer_images_than_features_span_one_direction_less_than_images() -> None:
    assert unit_gaussian(drawn(0, 10, 40), 40).directions.shape == (9, 40)


@pytest.mark.parametrize(("n", "d"), [(30, 12), (12, 30)])
def test_the_length_of_features_does_not_matter_to_mahalanobis(n: int, d: int) -> None:
    training, features = drawn(0, n, d), drawn(1, 5, d)
    lengths = np.geomspace(1e-6, 1e6, n, dtype=np.float32)[:, None]
    np.testing.assert_allclose(
        mahalanobis(training * lengths, features * 1000, 3),
        mahalanobis(training, features, 3),
        rtol=1e-4,
    )


def test_mahalanobis_by_hand() -> None:
    gaussian = UnitGaussian(
        mean=np.array([0.6, 0.0, 0.0], np.float32),
        directions=np.array([[0, 1, 0]], np.float32),
        variances=np.array([0.5], np.float32),
        rest=0.25,
    )
    # (3, 4, 0) points at (0.6, 0.8, 0): 0.8 along the direction. (0, 0, 2) is 0.6 and 1 beside it.
    score = Mahalanobis(gaussian, CPU)(torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]))
    assert score.tolist() == pytest.approx([-0.64 / 0.5, -1.36 / 0.25])


@given(seeds)
def test_mahalanobis_is_at_most_zero(seed: int) -> None:
    assert (mahalanobis(drawn(seed, 12, 6), drawn(seed + 1, 20, 6), 6) <= 0).all()


def test_rounding_makes_no_score_positive() -> None:
    # All of each row lies along its own direction: what is beside it is 0 up to rounding, which
    # so small a rest would make large.
    for direction in unit(drawn(0, 50, 7)).astype(np.float32):
        gaussian = UnitGaussian(floats(7) * 0, direction[None], floats(1) * 1e6, 1e-12)
        assert Mahalanobis(gaussian, CPU)(torch.tensor(direction[None])).item() <= 0


@pytest.mark.parametrize(("n", "d"), [(10, 4), (3, 8), (2, 5)])
@pytest.mark.parametrize("value", [0.0, 1.0, -3e-20, 7e30])
def test_constant_features_give_a_constant_score(n: int, d: int, value: float) -> None:
    features = np.full((n, d), value, np.float32)
    gaussian = unit_gaussian(features, 128)
    assert np.isfinite(gaussian.variances).all()
    assert math.isfinite(gaussian.rest)
    score = Mahalanobis(gaussian, CPU)(torch.tensor(features))
    assert score.isfinite().all()
    assert len(set(score.tolist())) == 1


def test_other_images_than_the_constant_ones_score_lower_and_finite() -> None:
    training = np.ones((10, 4), np.float32)
    scores = mahalanobis(training, np.array([[2, 2, 2, 2], [1, 2, 3, 4]], np.float32), 128)
    assert np.isfinite(scores).all()
    assert scores[1] < scores[0]


def test_a_feature_that_is_always_zero_changes_no_more_than_the_shrinkage() -> None:
    training, features = drawn(0, 60, 6), drawn(1, 9, 6)
    training[:, 2], features[:, 2] = 0, 0
    expected = -squared_distance(features, *by_scikit_learn(training))
    np.testing.assert_allclose(mahalanobis(training, features, 6), expected, rtol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(50, 8), (8, 50)])
def test_rows_of_zeros_count_as_vectors_of_length_zero(n: int, d: int) -> None:
    training, features = drawn(0, n, d), drawn(1, 9, d)
    training[:3], features[0] = 0, 0
    expected = -squared_distance(features, *by_scikit_learn(training))
    np.testing.assert_allclose(mahalanobis(training, features, d), expected, rtol=1e-4)


Score = Callable[[torch.Tensor], torch.Tensor]


def mahalanobis_score() -> Score:
    return Mahalanobis(unit_gaussian(drawn(0, 30, 12), 4), CPU)


def head(classes: int = 5, width: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight, a bias and a mean of features."""
    random = torch.Generator().manual_seed(3)
    weight = torch.randn(classes, width, generator=random)
    bias = torch.randn(classes, generator=random)
    return weight, bias, torch.rand(width, generator=random)


def fdbd_score() -> Score:
    return Fdbd(*head())


def fdbd_score_of_many_classes() -> Score:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_scores, "_MOST_CLASSES_KEPT", 4)
        return Fdbd(*head())


def nci_score() -> Score:
    weight, bias, mean = head()
    return lambda features: nci(features, mean, weight, bias)


every_score = pytest.mark.parametrize(
    "make", [mahalanobis_score, fdbd_score, fdbd_score_of_many_classes, nci_score]
)


@every_score
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_nan_and_spoils_no_other(
    make: Callable[[], Score], bad: float
) -> None:
    features = torch.tensor(drawn(1, 4, 12))
    clean = make()(features)
    features[1, 3] = bad
    score = make()(features)
    assert score.isnan().tolist() == [False, True, False, False]
    others = [0, 2, 3]
    torch.testing.assert_close(score[others], clean[others])


@every_score
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_computed_in_float32_whatever_the_dtype(
    make: Callable[[], Score], dtype: torch.dtype
) -> None:
    features = torch.tensor(drawn(1, 4, 12)).to(dtype)
    score = make()(features)
    assert score.dtype == torch.float32
    assert torch.equal(score, make()(features.float()))


@every_score
def test_autocast_changes_nothing(make: Callable[[], Score]) -> None:
    features = torch.tensor(drawn(1, 4, 12))
    plain = make()(features)
    with torch.autocast("cpu", torch.bfloat16):
        score = make()(features)
    assert score.dtype == torch.float32
    assert torch.equal(score, plain)


@every_score
def test_a_row_does_not_depend_on_the_others(make: Callable[[], Score]) -> None:
    features = torch.tensor(drawn(1, 40, 12))
    alone = torch.cat([make()(row[None]) for row in features])
    torch.testing.assert_close(make()(features), alone, rtol=1e-4, atol=1e-5)


@every_score
def test_an_empty_batch_and_a_blank_image_are_scored(make: Callable[[], Score]) -> None:
    assert make()(torch.zeros(0, 12)).shape == (0,)
    assert make()(torch.zeros(2, 12)).isfinite().all()


@every_score
def test_the_input_is_left_as_it_was(make: Callable[[], Score]) -> None:
    features = torch.tensor(drawn(1, 4, 12))
    before = features.clone()
    make()(features)
    assert torch.equal(features, before)


def test_fdbd_of_two_classes_by_hand() -> None:
    weight, bias = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([0.0, 1.0])
    mean = torch.tensor([1.0, 1.0])
    # Logits 6 and 5, weights 5 apart, the mean 1 away. Then 3 and 13; the mean is 2 away.
    score = Fdbd(weight, bias, mean)(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
    assert score.tolist() == pytest.approx([1 / 5 / 1, 10 / 5 / 2])


def test_fdbd_of_two_classes_is_the_distance_to_their_boundary() -> None:
    # The boundary is the line x = 0, the image 4 from it and 5 from the mean.
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    score = Fdbd(weight, torch.zeros(2), torch.tensor([0.0, 3.0]))(torch.tensor([[-4.0, 0.0]]))
    assert score.tolist() == pytest.approx([4 / 5])


def test_fdbd_of_three_classes_by_hand() -> None:
    weight = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 2.0]])
    bias = torch.tensor([1.0, 0.0, 0.0])
    # Logits 1, 11 and 4; from the predicted weights the others are 5 and sqrt(13) away; the
    # features are (1, 2), the mean is 2 away.
    score = Fdbd(weight, bias, torch.tensor([1.0, 0.0]))(torch.tensor([[1.0, 2.0]]))
    assert score.tolist() == pytest.approx([(10 / 5 + 7 / math.sqrt(13)) / 2 / 2])


def test_fdbd_on_a_boundary_is_zero() -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert Fdbd(weight, torch.zeros(2), torch.zeros(2))(torch.ones(1, 2)).tolist() == [0]


def test_fdbd_of_one_class_is_zero() -> None:
    features = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    score = Fdbd(torch.tensor([[1.0, 2.0]]), torch.ones(1), torch.zeros(2))(features)
    assert score.tolist() == [0, 0]


def test_fdbd_of_classes_with_the_same_weights_and_bias_is_finite() -> None:
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # The boundary between the first two is everywhere: 0, beside 2 / sqrt(2).
    score = Fdbd(weight, torch.zeros(3), torch.zeros(2))(torch.tensor([[2.0, 0.0]]))
    assert score.tolist() == pytest.approx([2 / math.sqrt(2) / 2 / 2])


@pytest.mark.parametrize("classes", [5, 60])
@pytest.mark.parametrize("images", [1, 40])
def test_fdbd_of_many_classes_computes_what_the_table_gives(
    monkeypatch: pytest.MonkeyPatch, classes: int, images: int
) -> None:
    features = torch.tensor(drawn(1, images, 12))
    from_table = Fdbd(*head(classes))(features)
    monkeypatch.setattr(feature_scores, "_MOST_CLASSES_KEPT", classes - 1)
    as_it_goes = Fdbd(*head(classes))
    assert as_it_goes._between is None
    torch.testing.assert_close(as_it_goes(features), from_table, rtol=1e-4, atol=1e-6)


def test_nci_by_hand() -> None:
    weight, bias = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([3.0, 0.0])
    mean = torch.tensor([1.0, 0.0])
    # Logits 7 and 6: (3, 3) from the mean, norm sqrt(18), times (1, 0).
    # Logits 3 and 8: (-1, 4), norm sqrt(17), times (0, 2).
    score = nci(torch.tensor([[4.0, 3.0], [0.0, 4.0]]), mean, weight, bias)
    assert score.tolist() == pytest.approx([3 / math.sqrt(18), 8 / math.sqrt(17)])


def test_nci_opposite_to_the_weights_of_the_class_is_negative() -> None:
    # Of one class, that is predicted whatever the features are.
    score = nci(
        torch.tensor([[-2.0, 0.0]]), torch.zeros(2), torch.tensor([[3.0, 0.0]]), torch.zeros(1)
    )
    assert score.tolist() == [-3]


def test_nci_of_the_mean_itself_is_zero() -> None:
    weight, bias, mean = head()
    assert nci(mean[None], mean, weight, bias).tolist() == [0]


@given(seeds, st.floats(1e-2, 1e2))
def test_nci_does_not_depend_on_the_distance_to_the_mean(seed: int, factor: float) -> None:
    # Of one class: with several, another might be predicted.
    weight, bias, mean = head(classes=1)
    centred = torch.tensor(drawn(seed, 5, 12)) - 1
    near = nci(mean + centred, mean, weight, bias)
    torch.testing.assert_close(
        nci(mean + centred * factor, mean, weight, bias), near, rtol=1e-3, atol=1e-3
    )


def floats(*shape: int) -> NDArray[np.float32]:
    return np.ones(shape, np.float32)


def test_a_gaussian_of_fitting_shapes_is_taken() -> None:
    assert UnitGaussian(floats(3), floats(2, 3), floats(2), 1.0).rest == 1


@pytest.mark.parametrize(
    ("mean", "directions", "variances", "message"),
    [
        (floats(1, 3), floats(2, 3), floats(2), "mean as float32 of 1 dim"),
        (floats(0), floats(2, 0), floats(2), "mean as float32 of 1 dim"),
        (floats(3), floats(3), floats(2), "directions as float32 of 2 dim"),
        (floats(3), floats(2, 3), floats(2, 1), "variances as float32 of 1 dim"),
        (floats(3), floats(0, 3), floats(0), "directions as float32 of 2 dim"),
        (floats(3), floats(3, 2), floats(2), "shape (2, 3), got (3, 2)"),
        (floats(3), floats(1, 3), floats(2), "shape (2, 3), got (1, 3)"),
        (floats(3), floats(2, 4), floats(2), "shape (2, 3), got (2, 4)"),
    ],
)
def test_a_gaussian_of_other_shapes_is_refused(
    mean: NDArray[np.float32],
    directions: NDArray[np.float32],
    variances: NDArray[np.float32],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        UnitGaussian(mean, directions, variances, 1.0)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64])
def test_a_gaussian_of_another_dtype_is_refused(which: int, dtype: type) -> None:
    parts = [floats(3), floats(2, 3), floats(2)]
    parts[which] = parts[which].astype(dtype)
    with pytest.raises(ValueError, match="as float32"):
        UnitGaussian(parts[0], parts[1], parts[2], 1.0)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gaussian_that_is_not_finite_is_refused(which: int, bad: float) -> None:
    parts = [floats(3), floats(2, 3), floats(2)]
    parts[which].flat[0] = bad
    with pytest.raises(ValueError, match="expected a finite"):
        UnitGaussian(parts[0], parts[1], parts[2], 1.0)


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_a_variance_that_is_not_positive_is_refused(bad: float) -> None:
    variances = np.array([1, bad], np.float32)
    with pytest.raises(ValueError, match="variances above 0"):
        UnitGaussian(floats(3), floats(2, 3), variances, 1.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_rest_that_is_not_positive_and_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="variances above 0"):
        UnitGaussian(floats(3), floats(2, 3), floats(2), bad)
