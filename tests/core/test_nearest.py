import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core import base_scores
from nap_stream.core.base_scores import knn, unit_rows

seeds = st.integers(0, 2**32 - 1)


def example(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(6, 7, generator=random)
    return features, unit_rows(torch.randn(9, 7, generator=random))


def test_distances_by_hand() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    # (3, 0) points at the first row: distances 0, sqrt 2 and 2.
    features = torch.tensor([[3.0, 0.0]])
    assert knn(features, bank, 1).tolist() == [2]
    assert knn(features, bank, 2).tolist() == pytest.approx([2 - math.sqrt(2)])
    assert knn(features, bank, 3).tolist() == [0]


def test_a_zero_vector_is_at_distance_one_from_all() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert knn(torch.zeros(1, 2), bank, 2).tolist() == [1]


def test_unit_rows_by_hand() -> None:
    rows = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert unit_rows(rows).flatten().tolist() == pytest.approx([0.6, -0.8, 0, 0])


@given(seeds, st.integers(-44, 37))
def test_unit_rows_of_any_size_have_norm_one(seed: int, power: int) -> None:
    rows = example(seed)[0] * 10.0**power
    # Subnormal numbers have few digits, so that a row of them can be all zeros.
    norms = unit_rows(rows[rows.any(dim=1)]).norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-6)


def test_small_distances_keep_their_digits() -> None:
    bank = torch.tensor([[1.0, 0.0]])
    # The angle is 1e-4; from the product of the vectors the distance would be 0.
    features = torch.tensor([[1.0, 1e-4]])
    assert (2 - knn(features, bank, 1)).item() == pytest.approx(1e-4, rel=2e-3)


@pytest.mark.parametrize("k", [0, 4])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="3 rows of the bank"):
        knn(torch.ones(1, 2), torch.eye(3)[:, :2], k)


@given(seeds, st.integers(1, 9))
def test_against_sorting_all_distances(seed: int, k: int) -> None:
    features, bank = example(seed)
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    distances = (unit[:, None] - bank.double()[None]).norm(dim=2).sort(dim=1).values[:, k - 1]
    score = knn(features, bank, k)
    assert torch.allclose(score.double(), 2 - distances, atol=1e-5)
    assert ((score >= 0) & (score <= 2)).all()


@given(seeds, st.floats(1e-3, 1e3))
def test_the_length_of_the_features_does_not_matter(seed: int, factor: float) -> None:
    features, bank = example(seed)
    assert torch.allclose(knn(features * factor, bank, 3), knn(features, bank, 3), atol=1e-5)


@given(seeds, st.permutations(range(9)))
def test_the_order_of_the_bank_does_not_matter(seed: int, order: list[int]) -> None:
    features, bank = example(seed)
    assert torch.allclose(knn(features, bank[order], 4), knn(features, bank, 4), atol=1e-6)


@given(seeds, st.permutations(range(6)))
def test_rows_do_not_depend_on_each_other(seed: int, order: list[int]) -> None:
    features, bank = example(seed)
    together = knn(features, bank, 2)
    assert torch.allclose(knn(features[order], bank, 2), together[order], atol=1e-6)
    alone = torch.cat([knn(row[None], bank, 2) for row in features])
    assert torch.allclose(alone, together, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 9, 20, 54])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    features, bank = example(0)
    whole = knn(features, bank, 2)
    monkeypatch.setattr(base_scores, "_SIMILARITIES_AT_ONCE", at_once)
    assert torch.allclose(knn(features, bank, 2), whole, atol=1e-6)


def test_an_empty_batch() -> None:
    assert knn(torch.zeros(0, 7), example(0)[1], 2).shape == (0,)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_nan_and_spoils_no_other(bad: float) -> None:
    features, bank = example(0)
    clean = knn(features, bank, 2)
    features[1, 3] = bad
    score = knn(features, bank, 2)
    assert score.isnan().tolist() == [False, True, False, False, False, False]
    assert torch.equal(score[2:], clean[2:])


def test_computed_in_float32_whatever_the_dtype_and_autocast() -> None:
    features, bank = example(0)
    low = features.half()
    plain = knn(low.float(), bank, 2)
    assert plain.dtype == torch.float32
    assert torch.equal(knn(low, bank, 2), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(knn(low, bank, 2), plain)
