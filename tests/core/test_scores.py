import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.base_scores import energy, max_logit, msp

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
