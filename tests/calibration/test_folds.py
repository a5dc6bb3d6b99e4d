from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nap_stream.calibration import fit as fit_module
from nap_stream.calibration.fit import ALWAYS, FOLDS, PSEUDO_IMAGES, FitPart, Folds, fit
from nap_stream.calibration.read import Reader, Reading
from nap_stream.core.base_scores import fit_scores
from nap_stream.core.score_specs import BaseScore, Fits, ScoreParameters
from nap_stream.settings.schema import LimitSettings
from tests.support.small_calibration import write_images
from tests.support.small_settings import load_small

COUNTS = st.integers(1, 2_000)


@settings(deadline=None)
@given(COUNTS)
def test_no_block_crosses_folds_and_every_image_has_one(count: int) -> None:
    folds = Folds.choose(count)
    assert folds.fold.shape == (count,)
    assert folds.fold.dtype == np.int64
    assert set(folds.fold.tolist()) <= set(range(FOLDS))
    for number, block in enumerate(folds.blocks):
        assert set(folds.fold[block].tolist()) == {number}
    chosen = np.concatenate(folds.blocks)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, PSEUDO_IMAGES)
    assert 0 <= chosen.min() <= chosen.max() < count


@settings(deadline=None)
@given(COUNTS)
def test_sizes_differ_by_a_block_at_most(count: int) -> None:
    folds = Folds.choose(count)
    sizes = np.bincount(folds.fold, minlength=FOLDS)
    assert np.ptp(sizes) <= len(folds.blocks[0])
    assert sizes.max() == -(-count // FOLDS)
    assert len(folds.blocks) <= FOLDS
    assert {len(block) for block in folds.blocks[:-1]} <= {len(folds.blocks[0])}
    assert len(folds.blocks[-1]) <= len(folds.blocks[0])


def test_the_division_is_always_the_same() -> None:
    one, two = Folds.choose(333), Folds.choose(333)
    assert one.fold.tolist() == two.fold.tolist()
    assert [b.tolist() for b in one.blocks] == [b.tolist() for b in two.blocks]
    # In random order: the classes of a sorted folder are mixed.
    assert one.blocks[0].tolist() != sorted(one.blocks[0].tolist())


def reading_of(positions: NDArray[np.int64]) -> Reading:
    """Outputs of images whose first feature is their position, from 1."""
    random = np.random.default_rng(0)
    features = random.random((len(positions), 4), np.float32)
    features[:, 0] = positions + 1
    return Reading(
        names=tuple(map(str, positions)),
        labels=(None,) * len(positions),
        positions=positions,
        logits=random.normal(size=(len(positions), 3)).astype(np.float32),
        features=features,
        nap=random.random(len(positions), np.float32),
        undecodable=0,
        first_problem="",
    )


@given(st.integers(10, 400), st.sets(st.integers(0, 400), max_size=5))
def test_no_image_and_no_pseudo_image_is_scored_by_a_fit_that_saw_it(
    count: int, undecodable: set[int]
) -> None:
    folds = Folds.choose(count)
    reading = reading_of(np.setdiff1d(np.arange(count), list(undecodable)))
    seen: list[set[int]] = []

    def recording(names: Any, features: NDArray[np.float32], parameters: ScoreParameters) -> Fits:
        seen.append({round(float(row)) - 1 for row in features[:, 0]})
        return fit_scores(names, features, parameters)

    names = (*ALWAYS, BaseScore.MAHALANOBIS)
    loaded, parameters = load_small("SmallNet"), ScoreParameters()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "fit_scores", recording)
        fitted = fit(names, reading, folds, loaded, parameters)
    whole, *left_out = seen
    read = set(reading.positions.tolist())
    assert whole == read
    assert len(left_out) == len(fitted.left_out) == FOLDS
    for number, held in enumerate(left_out):
        own = set(np.flatnonzero(folds.fold == number).tolist())
        assert held == read - own
    # A pseudo-OOD image is of its block alone, which has a fit of its own.
    for number, block in enumerate(folds.blocks):
        assert not left_out[number] & set(block.tolist())
    # An image's own value is that of the fit without its fold.
    for row, position in enumerate(reading.positions):
        own_fit = fitted.left_out[folds.fold[position]]
        if row % 50 == 0:
            expected = reading.values(own_fit)["mahalanobis"][row]
            assert fitted.values["mahalanobis"][row] == expected


def test_each_block_is_scored_by_the_fit_that_left_it_out(tmp_path: Path) -> None:
    loaded = load_small("SmallNet")
    folder = write_images(tmp_path, 20)
    part, reader = FitPart.choose(folder, folder, 100), Reader(loaded, LimitSettings(), folder)
    reading = reader.read(part.files(), 8, lambda _images: None)
    folds = Folds.choose(20)
    names = (*ALWAYS, BaseScore.MAHALANOBIS)
    fitted = fit(names, reading, folds, loaded, ScoreParameters())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "PSEUDO_OOD", ("solarize",))
        found = fit_module.pseudo_values(part, folds, reader, fitted, lambda _images: None)
    files = list(part.files())
    for number, block in enumerate(folds.blocks):
        alone = reader.score_transformed(
            [[files[int(row)] for row in block]],
            "solarize",
            [fitted.left_out[number]],
            lambda _images: None,
        )
        rows = slice(4 * number, 4 * number + 4)
        np.testing.assert_allclose(
            found["solarize"]["mahalanobis"][rows], alone.values["mahalanobis"], rtol=1e-4
        )


def test_scores_that_take_nothing_have_no_folds() -> None:
    reading = reading_of(np.arange(10))
    fitted = fit(ALWAYS, reading, Folds.choose(10), load_small("SmallNet"), ScoreParameters())
    assert fitted.left_out == (fitted.base_scores,) * FOLDS
    assert fitted.fits.gaussian is None
    again = fitted.base_scores(torch.from_numpy(reading.logits), None)[BaseScore.ENERGY]
    np.testing.assert_array_equal(fitted.values["energy"], again.numpy())
