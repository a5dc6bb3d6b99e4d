import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nap_stream.core import feature_scores
from nap_stream.core.base_scores import (
    BaseScores,
    ash,
    dice,
    dice_weight,
    drawn_from_blocks,
    energy,
    evenly_spaced,
    fit_scores,
    gen,
    max_logit,
    msp,
    react,
    scale,
)
from nap_stream.core.feature_scores import Fdbd, Mahalanobis, knn, nci, unit_gaussian, unit_rows
from nap_stream.core.score_specs import (
    BaseScore,
    Fits,
    Head,
    ScoreParameters,
    TooFewImagesError,
    needs_features,
    needs_fit,
    needs_head,
)

WIDTH, CLASSES = 16, 4
CPU = torch.device("cpu")
# Percentiles that keep the factors of ASH and SCALE below e^4, so that float32 suffices.
PARAMETERS = ScoreParameters(ash_percentile=0.6, scale_percentile=0.7, knn_k=3, knn_bank_size=10)

every_score = pytest.mark.parametrize("name", list(BaseScore))


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


HEAD = Head(normal(1, CLASSES, WIDTH), normal(2, CLASSES))
TRAINING = normal(3, 40, WIDTH)
FITS = fit_scores(list(BaseScore), TRAINING, PARAMETERS)


def batch(seed: int, rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.tensor(normal(seed, rows, WIDTH))
    return features @ torch.tensor(HEAD.weight).T + torch.tensor(HEAD.bias), features


def test_every_score_is_the_function_of_its_name() -> None:
    logits, features = batch(7)
    weight, bias = torch.tensor(HEAD.weight), torch.tensor(HEAD.bias)
    assert FITS.react_clip is not None
    mean = torch.tensor(TRAINING.mean(axis=0))
    mask = dice_weight(weight, mean, PARAMETERS.dice_sparsity)
    expected = {
        BaseScore.MSP: msp(logits),
        BaseScore.MAX_LOGIT: max_logit(logits),
        BaseScore.ENERGY: energy(logits),
        BaseScore.REACT: react(features, FITS.react_clip, weight, bias),
        BaseScore.ASH: ash(features, PARAMETERS.ash_percentile, weight, bias),
        BaseScore.SCALE: scale(features, PARAMETERS.scale_percentile, weight, bias),
        BaseScore.DICE: dice(features, mask, bias),
        BaseScore.KNN: knn(features, unit_rows(torch.tensor(TRAINING[::4])), PARAMETERS.knn_k),
        BaseScore.FDBD: Fdbd(weight, bias, mean)(features),
        BaseScore.MAHALANOBIS: Mahalanobis(unit_gaussian(TRAINING, 128), CPU)(features),
        BaseScore.GEN: gen(logits, 0.1, 100),
        BaseScore.NCI: nci(features, mean, weight, bias),
    }
    scores = BaseScores(list(BaseScore), PARAMETERS, HEAD, FITS, "cpu")(logits, features)
    assert list(scores) == list(BaseScore)
    for name, score in scores.items():
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, expected[name], msg=str(name))


def test_the_parameters_reach_their_scores() -> None:
    logits, features = batch(7)
    other = ScoreParameters(
        react_percentile=0.5,
        ash_percentile=0.5,
        scale_percentile=0.5,
        dice_sparsity=0.5,
        knn_k=5,
        knn_bank_size=40,
        gen_gamma=0.5,
        mahalanobis_rank=4,
    )
    without = {BaseScore.MSP, BaseScore.MAX_LOGIT, BaseScore.ENERGY, BaseScore.FDBD, BaseScore.NCI}
    names = [name for name in BaseScore if name not in without]
    one = BaseScores(names, PARAMETERS, HEAD, FITS, "cpu")(logits, features)
    fits = fit_scores(names, TRAINING, other)
    two = BaseScores(names, other, HEAD, fits, "cpu")(logits, features)
    assert not any(torch.allclose(one[name], two[name]) for name in names)


def test_names_keep_their_order_and_repeated_ones_count_once() -> None:
    names = [BaseScore.ENERGY, BaseScore.MSP, BaseScore.ENERGY]
    scores = BaseScores(names, PARAMETERS, None, Fits(), "cpu")(batch(0)[0], None)
    assert list(scores) == [BaseScore.ENERGY, BaseScore.MSP]


@every_score
@given(seed=st.integers(0, 1000), order=st.permutations(range(6)))
def test_rows_do_not_depend_on_each_other(name: BaseScore, seed: int, order: list[int]) -> None:
    logits, features = batch(seed)
    scorer = BaseScores([name], PARAMETERS, HEAD, FITS, "cpu")
    together = scorer(logits, features)[name]
    shuffled = scorer(logits[order], features[order])[name]
    assert torch.allclose(shuffled, together[order], rtol=1e-5, atol=1e-3)
    alone = [scorer(logits[i : i + 1], features[i : i + 1])[name] for i in range(6)]
    assert torch.allclose(torch.cat(alone), together, rtol=1e-5, atol=1e-3)


@every_score
def test_what_a_score_says_it_needs_is_enough_and_necessary(name: BaseScore) -> None:
    logits, features = batch(0)
    head = HEAD if needs_head(name) else None
    fits = fit_scores([name], TRAINING, PARAMETERS) if needs_fit(name) else Fits()
    scorer = BaseScores([name], PARAMETERS, head, fits, "cpu")
    scorer(logits, features if needs_features(name) else None)
    if needs_head(name):
        with pytest.raises(ValueError, match=f"{name} needs .* choose among msp, .*gen$"):
            BaseScores([name], PARAMETERS, None, fits, "cpu")
    if needs_fit(name):
        with pytest.raises(ValueError, match=f"{name} must be fitted"):
            BaseScores([name], PARAMETERS, head, Fits(), "cpu")
    if needs_features(name):
        with pytest.raises(ValueError, match=f"{name} needs the penultimate features"):
            scorer(logits, None)


@every_score
def test_a_fit_holds_what_was_asked_for_alone(name: BaseScore) -> None:
    fits = fit_scores([name], TRAINING, PARAMETERS)
    held = [f.name for f in dataclasses.fields(fits) if getattr(fits, f.name) is not None]
    every = fit_scores(list(BaseScore), TRAINING, PARAMETERS).only([name])
    assert [f.name for f in dataclasses.fields(every) if getattr(every, f.name) is not None] == held
    expected = {
        BaseScore.REACT: ["react_clip"],
        BaseScore.DICE: ["feature_mean"],
        BaseScore.KNN: ["knn_bank"],
        BaseScore.FDBD: ["feature_mean"],
        BaseScore.MAHALANOBIS: ["gaussian"],
        BaseScore.NCI: ["feature_mean"],
    }
    assert held == expected.get(name, [])


def test_refitted_scores_are_those_of_the_other_fits() -> None:
    logits, features = batch(0)
    other = fit_scores(list(BaseScore), TRAINING[:20], PARAMETERS)
    first = BaseScores(BaseScore, PARAMETERS, HEAD, FITS, "cpu")
    before = first(logits, features)
    expected = BaseScores(BaseScore, PARAMETERS, HEAD, other, "cpu")(logits, features)
    found = first.refitted(other)(logits, features)
    for name in BaseScore:
        assert torch.equal(found[name], expected[name])
        assert torch.equal(first(logits, features)[name], before[name])
        assert needs_fit(name) == (not torch.equal(found[name], before[name]))
    with pytest.raises(ValueError, match="must be fitted"):
        first.refitted(Fits())


def test_the_table_of_the_head_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, distances = [], feature_scores._distances

    def counted(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        made.append(len(one))
        return distances(one, other)

    monkeypatch.setattr(feature_scores, "_distances", counted)
    scores = BaseScores([BaseScore.FDBD], PARAMETERS, HEAD, FITS, "cpu")
    for _ in range(3):
        scores.refitted(FITS)(*batch(0))
    assert made == [CLASSES]


def test_fits_by_hand() -> None:
    features = np.array([[3, 4], [0, 0], [0, -2], [1, 0]], np.float32)
    parameters = ScoreParameters(react_percentile=0.5, knn_k=1, knn_bank_size=2)
    fits = fit_scores(list(BaseScore), features, parameters)
    assert fits.react_clip == 0
    assert fits.feature_mean is not None
    assert fits.feature_mean.tolist() == [1, 0.5]
    assert fits.knn_bank is not None
    # The row of zeros is left out; of the three others the first and the second are taken.
    assert fits.knn_bank.flatten().tolist() == pytest.approx([0.6, 0.8, 0, -1])


def test_an_image_of_the_bank_is_its_own_neighbour() -> None:
    parameters = ScoreParameters(knn_k=1, knn_bank_size=40)
    fits = fit_scores([BaseScore.KNN], TRAINING, parameters)
    scorer = BaseScores([BaseScore.KNN], parameters, None, fits, "cpu")
    score = scorer(torch.zeros(40, CLASSES), torch.tensor(TRAINING))[BaseScore.KNN]
    assert torch.allclose(score, torch.full((40,), 2.0), atol=1e-6)


def test_too_few_images_for_knn_are_refused() -> None:
    few = np.concatenate([TRAINING[:2], np.zeros((5, WIDTH), np.float32)])
    with pytest.raises(TooFewImagesError, match=r"k = 3 needs .* got 2 with features other than"):
        fit_scores([BaseScore.KNN], few, PARAMETERS)
    fit_scores([BaseScore.REACT, BaseScore.DICE], few[:1], PARAMETERS)


@pytest.mark.parametrize("name", [BaseScore.REACT, BaseScore.DICE, BaseScore.KNN])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_cannot_be_fitted(name: BaseScore, bad: float) -> None:
    features = TRAINING.copy()
    features[3, 3] = bad
    with pytest.raises(ValueError, match="finite features, got 1 "):
        fit_scores([name], features, PARAMETERS)


@pytest.mark.parametrize("bad", [TRAINING.astype(np.float64), TRAINING[0], TRAINING[:0]])
def test_features_of_another_shape_or_dtype_cannot_be_fitted(bad: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="expected features as float32 of 2 dimensions"):
        fit_scores([BaseScore.REACT], bad, PARAMETERS)


def test_a_fit_that_does_not_go_with_the_head_or_the_parameters_is_refused() -> None:
    narrow = Fits(feature_mean=np.ones(3, np.float32), knn_bank=np.eye(2, dtype=np.float32))
    with pytest.raises(ValueError, match="dice was fitted on 3 features, the head takes 16"):
        BaseScores([BaseScore.DICE], PARAMETERS, HEAD, narrow, "cpu")
    with pytest.raises(ValueError, match="knn needs 3 rows in its bank, got 2"):
        BaseScores([BaseScore.KNN], PARAMETERS, HEAD, narrow, "cpu")


@pytest.mark.parametrize(
    "field", ["react_percentile", "ash_percentile", "scale_percentile", "dice_sparsity"]
)
@pytest.mark.parametrize("value", [0, 1, 65.0, float("nan")])
def test_fractions_are_fractions(field: str, value: float) -> None:
    arguments: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=rf"{field} as a fraction in \(0, 1\)"):
        ScoreParameters(**arguments)


@pytest.mark.parametrize(("k", "size"), [(0, 5), (6, 5)])
def test_the_bank_must_hold_k_rows(k: int, size: int) -> None:
    with pytest.raises(ValueError, match="knn_k"):
        ScoreParameters(knn_k=k, knn_bank_size=size)


def test_a_head_of_another_shape_or_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(K, D\)"):
        Head(HEAD.weight, HEAD.bias[:-1])
    with pytest.raises(ValueError, match="weight as float32"):
        Head(HEAD.weight.astype(np.float64), HEAD.bias)
    with pytest.raises(ValueError, match="finite bias"):
        Head(HEAD.weight, HEAD.bias * np.float32(np.nan))


def test_fits_are_checked() -> None:
    with pytest.raises(ValueError, match="react_clip"):
        Fits(react_clip=float("nan"))
    with pytest.raises(ValueError, match="feature_mean as float32 of 1"):
        Fits(feature_mean=TRAINING)
    with pytest.raises(ValueError, match="finite knn_bank"):
        Fits(knn_bank=np.full((1, 2), np.inf, np.float32))


logits_rows = st.integers(1, 6).flatmap(
    lambda classes: st.lists(
        st.lists(st.floats(-50, 50, width=32), min_size=classes, max_size=classes),
        min_size=1,
        max_size=4,
    )
)


def test_hand_computed_values() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    assert msp(logits).tolist() == pytest.approx([0.5, 0.75])
    assert energy(logits).tolist() == pytest.approx([math.log(2), math.log(4)])
    assert max_logit(logits).tolist() == pytest.approx([0, math.log(3)])


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1000.0, 0.0], [-1000.0, -1000.0]])
    assert msp(logits).tolist() == pytest.approx([1, 0.5])
    assert energy(logits).tolist() == pytest.approx([1000, -1000 + math.log(2)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_computed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.zeros(1, 1000, dtype=dtype)
    assert energy(logits).dtype == msp(logits).dtype == max_logit(logits).dtype == torch.float32
    assert energy(logits).tolist() == pytest.approx([math.log(1000)], rel=1e-6)
    assert msp(logits).tolist() == pytest.approx([1e-3], rel=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(bad: float) -> None:
    logits = torch.tensor([[bad, 0.0], [1.0, 0.0]])
    for score in (msp, max_logit, energy):
        assert score(logits).isfinite().tolist() == [False, True]


@given(logits_rows)
def test_ranges(rows: list[list[float]]) -> None:
    logits = torch.tensor(rows)
    classes = logits.shape[1]
    peak = logits.amax(dim=1)
    assert (msp(logits) >= 1 / classes - 1e-6).all()
    assert (msp(logits) <= 1 + 1e-6).all()
    assert (energy(logits) >= peak - 1e-4).all()
    assert (energy(logits) <= peak + math.log(classes) + 1e-4).all()


@given(logits_rows, st.floats(-20, 20, width=32))
def test_a_shift_of_all_logits_moves_energy_and_max_logit_alone(
    rows: list[list[float]], shift: float
) -> None:
    logits = torch.tensor(rows)
    assert energy(logits + shift).tolist() == pytest.approx(
        (energy(logits) + shift).tolist(), abs=1e-4
    )
    assert max_logit(logits + shift).tolist() == pytest.approx(
        (max_logit(logits) + shift).tolist(), abs=1e-4
    )
    assert msp(logits + shift).tolist() == pytest.approx(msp(logits).tolist(), abs=1e-4)


@given(logits_rows)
def test_max_logit_is_the_predicted_classes_logit(rows: list[list[float]]) -> None:
    assert max_logit(torch.tensor(rows)).tolist() == [max(row) for row in rows]


@pytest.mark.parametrize(
    ("count", "limit", "rows"),
    [
        (10, 4, [0, 2, 5, 7]),
        (10, 3, [0, 3, 6]),
        (9, 3, [0, 3, 6]),
        (10, 1, [0]),
        (4, 4, [0, 1, 2, 3]),
        (3, 5, [0, 1, 2]),
        (0, 5, []),
    ],
)
def test_by_hand(count: int, limit: int, rows: list[int]) -> None:
    chosen = evenly_spaced(count, limit)
    assert chosen.dtype == np.int64
    assert chosen.tolist() == rows


@given(st.integers(0, 5_000), st.integers(1, 5_000))
def test_gaps_differ_by_one_at_most(count: int, limit: int) -> None:
    chosen = evenly_spaced(count, limit)
    gaps = np.diff(np.append(chosen, count))
    assert len(chosen) == min(count, limit)
    assert not len(chosen) or chosen[0] == 0
    assert not len(gaps) or (gaps.min() >= 1 and np.ptp(gaps) <= 1)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=10), st.integers(1, 1_000))
def test_sorted_classes_keep_their_shares(sizes: list[int], limit: int) -> None:
    class_id = np.repeat(np.arange(len(sizes)), sizes)
    chosen = class_id[evenly_spaced(len(class_id), limit)]
    share = len(chosen) / max(len(class_id), 1)
    expected = np.array(sizes) * share
    assert np.abs(np.bincount(chosen, minlength=len(sizes)) - expected).max() < 1


def test_large_counts_do_not_overflow() -> None:
    chosen = evenly_spaced(10**12, 1_000_000)
    assert chosen[-1] == 10**12 - 1_000_000


@given(st.integers(0, 3_000), st.integers(1, 3_000), st.integers(0, 2**32))
def test_one_of_each_block_is_drawn(count: int, limit: int, seed: int) -> None:
    drawn = drawn_from_blocks(count, limit, seed)
    blocks = np.append(evenly_spaced(count, limit), count)
    assert drawn.dtype == np.int64
    assert ((blocks[:-1] <= drawn) & (drawn < blocks[1:])).all()
    assert drawn.tolist() == drawn_from_blocks(count, limit, seed).tolist()


def test_what_recurs_in_step_with_the_blocks_is_not_preferred() -> None:
    # Three cameras in turn, a third of the rows drawn: each camera gets about a third.
    cameras = np.bincount(drawn_from_blocks(9_000, 3_000, seed=0) % 3)
    assert (abs(cameras - 1_000) < 100).all()
