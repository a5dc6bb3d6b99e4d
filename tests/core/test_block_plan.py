import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nap_stream.core.block_detectors import hits_of
from nap_stream.core.block_plan import (
    EVENTS,
    GOOD_BLOCKS,
    BlockReferences,
    References,
    event_ranks,
    plan_blocks,
    references_of,
)
from nap_stream.core.blocks import Blocks, added_up
from nap_stream.core.bounds import upper_flag_rate
from nap_stream.core.panes import NO_KEY
from nap_stream.core.tails import BIN_COUNT
from nap_stream.core.time_kinds import TimeKinds
from tests.support.blocks import block_statistics, key_blocks

BLOCK_MS = 60_000


def one_of(references: References, row: int) -> References:
    return References(
        references.center[[row]], references.prior[[row]], references.thresholds[[row]]
    )


def hits(references: References, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    statistics = block_statistics(
        counts[:, 0], counts[:, 1], counts[:, 2:], references.center, references.prior
    )
    return hits_of(statistics, references.thresholds)


def references(blocks: Blocks) -> BlockReferences:
    return references_of(blocks, TimeKinds())


def test_thresholds_are_the_largest_of_the_baseline() -> None:
    rows = [(100, share) for share in (3, 24, 1, 12, *range(13, 24), *range(2), *range(2, 9))]
    made = references(key_blocks({"a": rows}))
    assert (event_ranks(24), made.sizes.tolist()) == ((1, 3), [24, 24])
    center = sum(share for _, share in rows) / 2_400
    # Of 24 blocks the largest and the third: 24 and 22 of 100 flagged, b = 100.
    expected = [(0.24 - center) / 2, (0.22 - center) / 2]
    assert made.own.thresholds[0, :2].tolist() == pytest.approx(expected)
    assert made.ranks[0].tolist() == [1, 3] * 3
    assert event_ranks(10) == (1, 2)
    assert event_ranks(GOOD_BLOCKS) == (1, 5)


def test_no_threshold_is_below_the_mean() -> None:
    # One block in twenty has all the flags, so that the second largest is below the mean.
    made = references(key_blocks({"a": [(100, 40), *[(100, 0)] * 19]}))
    assert made.own.thresholds[0, 0] > 0
    assert made.own.thresholds[0, 1] == 0


def test_a_key_has_references_where_it_has_enough_blocks() -> None:
    made = references(key_blocks({"few": [(10, 1)] * 9, "many": [(10, 1), (10, 2)] * 10}))
    assert made.group_of.tolist() == [[1], [-1], [0]]
    assert [made.number(name) for name in (NO_KEY, "few", "many", "more")] == [0, -1, 2, -1]
    assert (made.known, made.without, made.knows_keys) == (("many",), ("few",), True)
    assert made.blocks_by_kind("many") == (20,)
    assert made.blocks_by_kind("few") == (0,)
    assert made.blind_kinds == ()
    with pytest.raises(ValueError, match="no key 'more'"):
        made.blocks_by_kind("more")
    assert made.own.prior[0] == 10
    assert made.own.center[0, 0] == pytest.approx(0.15)
    # The largest share is 0.2, and so is the second: (2 - 1.5) / (10 + 10).
    assert made.own.thresholds[0, :2].tolist() == pytest.approx([0.025, 0.025])
    assert made.shares[:, 0].tolist() == pytest.approx([39 / 290, 0.1, 0.15])


def test_cut_off_blocks_do_not_count() -> None:
    made = references(key_blocks({"a": [(4, 4), *[(10, 1)] * 10, (5, 0)]}))
    assert made.sizes.tolist() == [11, 11]
    assert made.own.center[0, 0] == pytest.approx(10 / 105)


def test_kinds_of_time_have_references_of_their_own() -> None:
    hours = [(10, 5) if 6 <= hour % 24 < 18 else (10, 1) for hour in range(72)]
    blocks = key_blocks({"a": hours}, block_ms=3_600_000)
    made = references_of(blocks, TimeKinds((6, 18)))
    assert made.blocks_by_kind("a") == (36, 36)
    by_day, by_night = made.group_of[1]
    assert made.own.center[[by_day, by_night], 0].tolist() == pytest.approx([0.5, 0.1])


def test_kinds_at_which_the_stream_cannot_be_judged_are_named() -> None:
    # Of 24 hours, six are in the first kind.
    blocks = key_blocks({"a": [(10, 1)] * 24}, block_ms=3_600_000)
    made = references_of(blocks, TimeKinds((0, 6)))
    assert made.blocks_by_kind(NO_KEY) == (0, 18)
    assert made.blind_kinds == ("00:00-06:00",)


def test_the_stream_does_not_feel_which_keys_it_has() -> None:
    # One camera has three times the share of the other, and half the records at times.
    loud = [(20 - 10 * (i % 2), (20 - 10 * (i % 2)) * 3 // 10) for i in range(20)]
    made = references(key_blocks({"loud": loud, "low": [(20, 2)] * 20}))
    stream = made.group_of[0, 0]
    np.testing.assert_allclose(made.own.thresholds[stream, :2], 0, atol=1e-12)


def test_without_keys_the_stream_is_all_records() -> None:
    counts = np.zeros((20, 2 + BIN_COUNT), dtype=np.int64)
    counts[:, 0], counts[:, 2 + 9] = 10, 10
    made = references(
        added_up(np.zeros(20, int), np.arange(20) * BLOCK_MS, counts, (NO_KEY,), BLOCK_MS)
    )
    assert (made.known, made.knows_keys, made.blocks_by_kind(NO_KEY)) == ((), False, (20,))
    # So it is where no key has enough blocks.
    few = references(key_blocks({f"k{i}": [(0, 0)] * i + [(10, 2)] for i in range(12)}))
    assert (few.known, few.blocks_by_kind(NO_KEY)) == ((), (12,))
    assert few.own.center[0, 0] == pytest.approx(0.2)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_what_exceeds_the_pooled_reference_exceeds_each(seed: int, keys: int) -> None:
    rng = np.random.default_rng(seed)

    def shares() -> list[tuple[int, int]]:
        records = rng.integers(1, 30, 24)
        flagged = rng.binomial(records, rng.beta(1, 3))
        return list(zip(records.tolist(), flagged.tolist(), strict=True))

    made = references(key_blocks({f"key-{i}": shares() for i in range(keys)}))
    later = key_blocks({"new": [*shares(), *((30, share) for share in range(31))]})
    counts = np.column_stack((later.records, later.flagged, later.bins))[later.key == 1]
    groups = made.group_of[1:, 0][made.group_of[1:, 0] >= 0].tolist()
    assert made.has_pooled[0] == bool(groups)
    pooled = hits(made.pooled, counts)
    for group in groups:
        assert (pooled <= hits(one_of(made.own, group), counts)).all()


def test_the_promise_is_shared_out() -> None:
    made = references(key_blocks({f"key-{i}": [(10, 1), (10, 2)] * 20 for i in range(30)}))
    plan = plan_blocks(made, run_time_ms=1_000 * BLOCK_MS, confidence=0.94)
    assert (plan.run_blocks, plan.new_keys, plan.fewest_blocks) == (1_000, 30, 40)
    chances = [(plan.stream_log_threshold, 1), (plan.key_log_threshold, 30)]
    chances.append((plan.new_log_threshold, plan.new_keys))
    assert sum(n * math.exp(-log) for log, n in chances) == pytest.approx(1 / 1_000)
    # A third of 0.06 for each part, in a part for each group and event.
    own = [upper_flag_rate(k, 40, 1 - 0.02 / (30 * EVENTS)) for k in (1, 5)]
    of_stream = [upper_flag_rate(k, 40, 1 - 0.02 / EVENTS) for k in (1, 5)]
    assert plan.rates[made.group_of[1, 0]].tolist() == pytest.approx(own * 3)
    assert plan.rates[made.group_of[0, 0]].tolist() == pytest.approx(of_stream * 3)
    assert plan.rates[len(made.sizes)].tolist() == pytest.approx(own * 3)
    assert plan.learned_rates.tolist() == pytest.approx(own * 3)
    assert plan.rates_at(40, 1).tolist() == pytest.approx(own * 3)
    assert plan.late_risk == pytest.approx(0.02 / 30)


def test_without_known_keys_all_of_it_is_the_streams() -> None:
    made = references(key_blocks({"a": [(10, 1)] * 9, "b": [(0, 0)] * 9 + [(10, 1)] * 9}))
    plan = plan_blocks(made, run_time_ms=1_000 * BLOCK_MS, confidence=0.94)
    assert plan.new_keys == 0
    assert plan.stream_log_threshold == pytest.approx(math.log(1_000))
    assert plan.rates[0, 0] == pytest.approx(upper_flag_rate(1, 18, 1 - 0.06 / EVENTS))


@pytest.mark.parametrize(("run_time_ms", "confidence"), [(BLOCK_MS - 1, 0.9), (BLOCK_MS, 1.0)])
def test_a_promise_out_of_range_is_refused(run_time_ms: int, confidence: float) -> None:
    made = references(key_blocks({"a": [(10, 1)] * 20}))
    with pytest.raises(ValueError, match="expected a run time of at least 60000 ms"):
        plan_blocks(made, run_time_ms=run_time_ms, confidence=confidence)
