"""The base scores against pytorch-ood's detectors, on the same logits, features and head.

pytorch-ood's scores are higher for out-of-distribution images: every sign is the other one. Its
KNN gives the distance, ours 2 - distance, so that it is positive. Its GEN is a mean over classes,
ours the sum. Both take percentiles as fractions here, under the names `percentile` and (DICE) `p`.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytorch_ood.detector import (  # type: ignore[import-untyped]  # it has no py.typed
    ASH,
    DICE,
    GEN,
    KNN,
    NCI,
    SCALE,
    EnergyBased,
    MaxLogit,
    MaxSoftmax,
    ReAct,
    fDBD,
)
from torch.nn import functional

from nap_stream.core.base_scores import BaseScores, ash, fit_scores, gen, scale
from nap_stream.core.score_specs import (
    BaseScore,
    Fits,
    Head,
    ScoreParameters,
)

WIDTH, CLASSES = 342, 10
RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.normal(0, 0.2, (CLASSES, WIDTH)).astype(np.float32)
BIAS = RANDOM.normal(0, 0.2, CLASSES).astype(np.float32)
# Exponential, as the pooled activations of a ReLU network are roughly: not negative.
TRAINING = RANDOM.exponential(0.5, (300, WIDTH)).astype(np.float32)
FEATURES = torch.tensor(RANDOM.exponential(0.6, (32, WIDTH)).astype(np.float32))
LABELS = torch.zeros(len(TRAINING), dtype=torch.int64)
LOGITS = functional.linear(FEATURES, torch.tensor(WEIGHT), torch.tensor(BIAS))


def head(feature_map: torch.Tensor) -> torch.Tensor:
    """Give the logits of a (N, D, 1, 1) map, which is what pytorch-ood shapes."""
    return functional.linear(feature_map.flatten(1), torch.tensor(WEIGHT), torch.tensor(BIAS))


def linear_head() -> torch.nn.Linear:
    layer = torch.nn.Linear(WIDTH, CLASSES)
    layer.weight.data, layer.bias.data = torch.tensor(WEIGHT), torch.tensor(BIAS)
    return layer


def as_map(features: torch.Tensor) -> torch.Tensor:
    return features[:, :, None, None]


def same(features: torch.Tensor) -> torch.Tensor:
    return features


def ours(name: BaseScore, parameters: ScoreParameters) -> torch.Tensor:
    fits = fit_scores([name], TRAINING, parameters)
    scorer = BaseScores([name], parameters, Head(WEIGHT, BIAS), fits, "cpu")
    return scorer(LOGITS, FEATURES)[name]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        (BaseScore.MSP, MaxSoftmax.score),
        (BaseScore.MAX_LOGIT, MaxLogit.score),
        (BaseScore.ENERGY, EnergyBased.score),
    ],
)
def test_scores_of_logits(name: BaseScore, theirs: Callable[[torch.Tensor], torch.Tensor]) -> None:
    torch.testing.assert_close(ours(name, ScoreParameters()), -theirs(LOGITS))


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.99])
def test_react(percentile: float) -> None:
    detector = ReAct(same, head, percentile=percentile)
    detector.fit_feature_maps(as_map(torch.tensor(TRAINING)), LABELS)
    fits = fit_scores([BaseScore.REACT], TRAINING, ScoreParameters(react_percentile=percentile))
    assert fits.react_clip == pytest.approx(detector.threshold, rel=1e-6)
    score = ours(BaseScore.REACT, ScoreParameters(react_percentile=percentile))
    torch.testing.assert_close(score, -detector.predict_feature_maps(as_map(FEATURES)))


@pytest.mark.parametrize("percentile", [0.3, 0.65, 0.9])
def test_ash(percentile: float) -> None:
    detector = ASH(same, head, variant="ash-s", percentile=percentile)
    score = ours(BaseScore.ASH, ScoreParameters(ash_percentile=percentile))
    torch.testing.assert_close(
        score, -detector.predict_feature_maps(as_map(FEATURES)), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("percentile", [0.3, 0.65, 0.85])
def test_scale(percentile: float) -> None:
    detector = SCALE(same, head, percentile=percentile)
    score = ours(BaseScore.SCALE, ScoreParameters(scale_percentile=percentile))
    torch.testing.assert_close(
        score, -detector.predict_feature_maps(as_map(FEATURES)), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("sparsity", [0.1, 0.7, 0.9])
def test_dice(sparsity: float) -> None:
    detector = DICE(same, torch.tensor(WEIGHT), torch.tensor(BIAS), sparsity)
    detector.fit_features(torch.tensor(TRAINING), LABELS)
    score = ours(BaseScore.DICE, ScoreParameters(dice_sparsity=sparsity))
    torch.testing.assert_close(score, -detector.predict_features(FEATURES))


@pytest.mark.parametrize("k", [1, 50, 300])
def test_knn(k: int) -> None:
    detector = KNN(same, k=k)
    detector.fit_features(torch.tensor(TRAINING), LABELS)
    score = ours(BaseScore.KNN, ScoreParameters(knn_k=k))
    torch.testing.assert_close(score.double(), 2 - detector.predict_features(FEATURES))


@pytest.mark.parametrize(("name", "detector"), [(BaseScore.FDBD, fDBD), (BaseScore.NCI, NCI)])
def test_scores_of_the_mean_and_the_head(name: BaseScore, detector: type[fDBD] | type[NCI]) -> None:
    theirs = detector(same, linear_head()).fit_features(torch.tensor(TRAINING))
    torch.testing.assert_close(ours(name, ScoreParameters()), -theirs.predict_features(FEATURES))


@pytest.mark.parametrize("gamma", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("classes", [1, 3, 10, 100])
def test_gen(gamma: float, classes: int) -> None:
    score = ours(BaseScore.GEN, ScoreParameters(gen_gamma=gamma, gen_classes=classes))
    mean = GEN.score(LOGITS, gamma=gamma, M=classes)
    torch.testing.assert_close(score, -mean * min(classes, CLASSES))


def test_gen_of_all_classes() -> None:
    torch.testing.assert_close(
        ours(BaseScore.GEN, ScoreParameters(gen_classes=CLASSES)), -GEN.score(LOGITS) * CLASSES
    )


def test_small_probabilities_count_as_they_are_on_purpose() -> None:
    """Theirs takes any below 1e-7 as 1e-7, which to the power of 0.1 is 0.2."""
    logits = torch.tensor([[0.0, 0.0, -40.0]])
    small = np.exp(-40) / 2
    halves = 2 * (0.5 * 0.5) ** 0.1
    assert gen(logits, 0.1, 3).item() == pytest.approx(-(halves + small**0.1), rel=1e-5)
    assert GEN.score(logits).item() * 3 == pytest.approx(halves + 1e-7**0.1, rel=1e-5)


@pytest.mark.parametrize(("function", "detector"), [(ash, ASH), (scale, SCALE)])
def test_negative_features_differ_on_purpose(
    function: Callable[..., torch.Tensor], detector: type[ASH] | type[SCALE]
) -> None:
    """Their sums run over negative activations too, so that s2 can be near zero or below."""
    # Of the larger half, which is kept, one activation is not 0.
    features = torch.zeros(1, WIDTH)
    features[0, :2] = torch.tensor([1.0, -0.999])
    weight = torch.ones(1, WIDTH)
    theirs = detector(same, lambda x: x.flatten(1) @ weight.T, percentile=0.5)
    # There s1 / s2 = 0.001 / 1; here the positive part gives 1 / 1.
    ratio = np.log(
        function(features, 0.5, weight, torch.zeros(1)).item()
        / -theirs.predict_feature_maps(as_map(features)).item()
    )
    assert ratio == pytest.approx(1 - 0.001, abs=1e-4)


def test_an_image_without_activations_is_finite_on_purpose() -> None:
    """Theirs is NaN: s1 / s2 = 0 / 0."""
    blank = torch.zeros(1, WIDTH)
    theirs = SCALE(same, head).predict_feature_maps(as_map(blank))
    assert theirs.isnan().all()
    scorer = BaseScores([BaseScore.SCALE], ScoreParameters(), Head(WEIGHT, BIAS), Fits(), "cpu")
    expected = torch.logsumexp(torch.tensor(BIAS), dim=0)[None]
    torch.testing.assert_close(scorer(LOGITS, blank)[BaseScore.SCALE], expected)
