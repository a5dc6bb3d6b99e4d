from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nap_stream.calibration.calibration import base_scores_of, fit_arrays
from nap_stream.calibration.fit import (
    ALWAYS,
    FOLDS,
    Fitted,
    Folds,
    fit,
    in_order,
    search_weight,
    unfitted,
)
from nap_stream.calibration.read import Reading, Values
from nap_stream.core.base_scores import BaseScores, fit_scores
from nap_stream.core.methods import NAP, every_method, parse_method
from nap_stream.core.score_specs import BaseScore, Fits, ScoreParameters, needs_fit
from tests.support.small_calibration import calibration_of
from tests.support.small_settings import load_small

KNN = (*ALWAYS, BaseScore.KNN)
EVERY = tuple(BaseScore)
PARAMETERS = ScoreParameters(knn_k=3)


def reading_of(n: int, seed: int = 0, *, repeated: int = 0) -> Reading:
    """Random outputs of a model with three classes and four features, some images twice."""
    generator = np.random.default_rng(seed)
    features = generator.random((n, 4), np.float32)
    features[n - repeated :] = features[:repeated]
    return Reading(
        names=("a",) * n,
        labels=(None,) * n,
        positions=np.arange(n),
        logits=generator.normal(size=(n, 3)).astype(np.float32),
        features=features,
        nap=generator.random(n, np.float32),
        undecodable=0,
        first_problem="",
    )


def fitted_on(reading: Reading, names: tuple[BaseScore, ...] = KNN, k: int = 3) -> Fitted:
    folds = Folds.choose(len(reading))
    return fit(names, reading, folds, load_small("SmallNet"), ScoreParameters(knn_k=k))


def neighbour_distances(
    features: NDArray[np.float32], fold: NDArray[np.int64], k: int
) -> NDArray[np.float64]:
    """To the k-th nearest image of other folds, between unit vectors, by brute force."""
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distances = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    distances[fold[:, None] == fold[None]] = np.inf
    found: NDArray[np.float64] = np.sort(distances, axis=1)[:, k - 1]
    return found


@pytest.mark.parametrize("k", [1, 3])
def test_neighbours_are_of_other_folds(k: int) -> None:
    reading = reading_of(30)
    assert reading.features is not None
    fitted = fitted_on(reading, k=k)
    expected = 2 - neighbour_distances(reading.features, Folds.choose(30).fold, k)
    np.testing.assert_allclose(fitted.values["knn"], expected, atol=1e-5)
    # To images of a stream the bank answers as it is, an image of its own included.
    again = reading.values(fitted.base_scores)["knn"]
    assert (again >= fitted.values["knn"]).all()
    if k == 1:
        np.testing.assert_allclose(again, 2, atol=1e-5)
        assert fitted.values["knn"].max() < 1.999


@pytest.mark.parametrize("n", [9, 12])
def test_too_few_images_for_the_neighbours_says_how_many(n: int) -> None:
    # Of twelve images, nine are left where a fold of three is not; of thirteen, ten.
    with pytest.raises(ValueError, match=r"knn .*10 needs as many .* got [79] with"):
        fitted_on(reading_of(n), k=10)
    assert len(fitted_on(reading_of(13), k=10).values["knn"]) == 13


def test_every_value_is_of_a_fit_that_left_the_images_fold_out() -> None:
    reading = reading_of(20)
    fitted = fitted_on(reading, EVERY)
    again = reading.values(fitted.base_scores)
    assert fitted.values.keys() == {"nap", *map(str, BaseScore)}
    fold = Folds.choose(20).fold
    for name in ("nap", *map(str, BaseScore)):
        if name == NAP or not needs_fit(BaseScore(name)):
            np.testing.assert_array_equal(fitted.values[name], again[name])
            continue
        for number in range(FOLDS):
            assert reading.features is not None
            others = fit_scores([BaseScore(name)], reading.features[fold != number], PARAMETERS)
            scores = BaseScores(
                [BaseScore(name)], PARAMETERS, load_small("SmallNet").linear_head(), others, "cpu"
            )
            expected = reading.values(scores)[name][fold == number]
            np.testing.assert_array_equal(fitted.values[name][fold == number], expected)
    assert reading.features is not None
    assert fitted.fits.react_clip == pytest.approx(np.quantile(reading.features, 0.9), rel=1e-5)
    assert fitted.fits.feature_mean is not None
    np.testing.assert_allclose(fitted.fits.feature_mean, reading.features.mean(0), rtol=1e-5)


def test_what_needs_features_is_refused_without_them() -> None:
    reading = replace(reading_of(20), features=None)
    with pytest.raises(ValueError, match="no react and knn without features"):
        fitted_on(reading, (*ALWAYS, BaseScore.REACT, BaseScore.KNN))
    fitted = fitted_on(reading, ALWAYS)
    assert fitted.values.keys() == {"nap", "msp", "max_logit", "energy"}
    assert (fitted.fits.react_clip, fitted.fits.knn_bank) == (None, None)


@pytest.mark.parametrize("name", ["react", "dice", "knn"])
def test_what_must_be_fitted_is_refused_unfitted(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be fitted"):
        unfitted((*ALWAYS, BaseScore(name)), load_small("SmallNet"), ScoreParameters())


@pytest.mark.parametrize("name", ["ash", "scale"])
def test_what_needs_a_head_is_refused_without_one(name: str) -> None:
    loaded = load_small("ReluHeadNet")
    assert loaded.linear_head() is None
    with pytest.raises(ValueError, match=f"{name} needs the model's last linear layer"):
        unfitted((*ALWAYS, BaseScore(name)), loaded, ScoreParameters())
    assert unfitted(ALWAYS, loaded, ScoreParameters()).values == {}


def test_the_head_is_the_models() -> None:
    loaded = load_small("SmallNet")
    head = loaded.linear_head()
    assert head is not None
    layer = loaded.module.get_submodule("head")
    assert isinstance(layer, torch.nn.Linear)
    np.testing.assert_array_equal(head.weight, layer.weight.numpy())
    np.testing.assert_array_equal(head.bias, layer.bias.numpy())


def test_the_location_is_the_mean_logit_behind_a_score() -> None:
    reading = reading_of(30)
    shifted = replace(reading, logits=reading.logits - 7)
    mean = float(shifted.logits.mean(dtype=np.float64))
    fitted = fitted_on(shifted)
    for name in ("nap-energy", "nap-max_logit"):
        assert fitted.location(parse_method(name)) == pytest.approx(mean, rel=1e-5)
    # The softmax does not see a constant, and a distance has no logits.
    for name in ("nap-msp", "nap-knn"):
        assert fitted.location(parse_method(name)) == pytest.approx(0, abs=1e-6)
    unmoved = unfitted(ALWAYS, load_small("SmallNet"), ScoreParameters())
    assert unmoved.location(parse_method("nap-energy")) == 0


def test_references_are_ascending_and_of_the_method() -> None:
    fitted = fitted_on(reading_of(30))
    for method in every_method():
        if method.selects or method.base not in {None, *KNN}:
            continue
        found = fitted.references(method)
        expected = {NAP, str(method.base)} if method.needs_reference else set()
        assert found.keys() == expected
        for name, column in found.items():
            assert column.dtype == np.float64
            np.testing.assert_array_equal(column, np.sort(fitted.values[name]))


def values_of(nap: NDArray[np.float64], energy: NDArray[np.float64]) -> Values:
    return {"nap": nap.astype(np.float32), "energy": energy.astype(np.float32)}


@pytest.mark.parametrize("name", ["nap-energy", "fisher-energy"])
@pytest.mark.parametrize(("tells", "weight"), [("nap", 0.0), ("energy", 1.0)])
def test_the_weight_goes_to_the_score_that_tells(name: str, tells: str, weight: float) -> None:
    generator = np.random.default_rng(0)
    inside = values_of(*generator.uniform(10, 20, (2, 200)))
    outside = values_of(*generator.uniform(10, 20, (2, 200)))
    # Only this score tells the two apart, and not all of them.
    outside[tells] = outside[tells] - 7
    scores = BaseScores(ALWAYS, ScoreParameters(), None, Fits(), "cpu")
    search = search_weight(
        parse_method(name), Fitted(scores, Fits(), inside, (), {}), {"pseudo": outside}
    )
    assert abs(search.chosen - weight) <= 0.5
    mean = np.mean(search.auroc, axis=0)
    best, worst = (mean[-1], mean[0]) if weight else (mean[0], mean[-1])
    assert best > 0.8
    assert worst == pytest.approx(0.5, abs=0.1)
    assert (search.inside_images, search.pseudo_images) == (200, 200)


def test_each_name_once_in_the_enumerations_order() -> None:
    names = in_order((BaseScore.KNN, BaseScore.ENERGY, BaseScore.MSP, BaseScore.ENERGY))
    assert names == (BaseScore.MSP, BaseScore.ENERGY, BaseScore.KNN)


def test_the_scores_of_a_calibration_are_those_it_was_made_with() -> None:
    loaded, reading = load_small("SmallNet"), reading_of(20)
    fitted = fitted_on(reading, EVERY)
    values = reading.values(fitted.base_scores)
    calibration = calibration_of(
        values["energy"].tolist(),
        values["nap"].tolist(),
        scores=EVERY,
        parameters=ScoreParameters(knn_k=3),
        react_clip=fitted.fits.react_clip,
        arrays={
            **{f"value.{name}": values[name] for name in EVERY if name not in ALWAYS},
            **fit_arrays(fitted.fits),
        },
    )
    again = reading.values(base_scores_of(calibration, loaded))
    assert again.keys() == values.keys()
    for name, column in again.items():
        assert column.tobytes() == values[name].tobytes()
