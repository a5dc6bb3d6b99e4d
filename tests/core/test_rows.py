import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.base_scores import drawn_from_blocks, evenly_spaced


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
