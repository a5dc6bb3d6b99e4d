import math

import numpy as np
import pytest

from nap_stream.core.block_monitors import BlockMonitors
from nap_stream.core.block_plan import BlockPlan, plan_blocks, references_of
from nap_stream.core.blocks import Blocks
from nap_stream.core.detection import p_value_shares
from nap_stream.core.panes import ClosedPane
from nap_stream.core.time_kinds import TimeKinds
from nap_stream.planning.block_delays import (
    MOST_KEYS,
    BlockDelay,
    Spread,
    block_delays,
    spreads_of,
)
from tests.planning.baselines import BLOCK_MS, RECORDS, blocks_of_cameras

ALPHA = 0.05
DAY_MS = 86_400_000


def planned(blocks: Blocks, days: float = 30) -> BlockPlan:
    references = references_of(blocks, TimeKinds())
    return plan_blocks(references, run_time_ms=round(days * DAY_MS), confidence=0.95)


def delays(blocks: Blocks, *strengths: float, streams: int = 100) -> tuple[BlockDelay, ...]:
    return block_delays(
        planned(blocks),
        blocks,
        decorrelation_ms=BLOCK_MS / RECORDS,
        alpha=ALPHA,
        strengths=strengths,
        streams=streams,
        seed=0,
        advance=lambda _done, _total: None,
    )


def delays_of_the_monitors(blocks: Blocks, strength: float, streams: int) -> list[float]:
    """Delays of the monitors themselves, in blocks, where one camera's records turn flagged."""
    rng = np.random.default_rng(5)
    plan, count = planned(blocks), len(blocks.of(blocks.keys[1]))
    by_key = np.stack([blocks.of(name).bins for name in blocks.keys[1:]])
    turned = p_value_shares(ALPHA, 1.0)
    found = []
    for _ in range(streams):
        monitors = BlockMonitors(plan, 100, DAY_MS)
        first, begins = int(rng.integers(count)), rng.random()
        for step in range(-20, 300):
            bins = by_key[:, (first + step) % count].copy()
            faulty = 0.0 if step < 0 else 1 - begins if not step else 1.0
            some = rng.binomial(RECORDS, strength * faulty)
            bins[0] = rng.multinomial(RECORDS - some, bins[0] / RECORDS)
            bins[0] += rng.multinomial(some, turned)
            flagged = bins[:, :2].sum(axis=1)
            start_ms = (1_000 + step) * BLOCK_MS
            monitors.update(
                ClosedPane(
                    start_ms,
                    int(bins.sum()),
                    int(flagged.sum()),
                    bins.sum(axis=0),
                    blocks.keys[1:],
                    np.full(len(bins), RECORDS),
                    flagged,
                    bins,
                )
            )
            (readings,) = monitors.advance(start_ms + BLOCK_MS)
            # The stream's and the faulty camera's come first.
            if readings.active[:2].any():
                found.append(step + 1 - begins)
                break
    return found


@pytest.mark.parametrize("strength", [pytest.param(0.15, marks=pytest.mark.slow), 1.0])
def test_simulated_delays_are_those_of_the_monitors(strength: float) -> None:
    blocks = blocks_of_cameras(4, 100)

    one = delays(blocks, strength, streams=200)[0]
    real = delays_of_the_monitors(blocks, strength, 25)

    assert (one.spread, one.strength, one.detected) == (Spread("one key", 1), strength, 200)
    assert len(real) == 25
    assert one.mean_ms is not None
    assert one.standard_error_ms is not None
    error = math.hypot(one.standard_error_ms / BLOCK_MS, float(np.std(real)) / math.sqrt(25))
    assert abs(one.mean_ms / BLOCK_MS - np.mean(real)) < 4 * error + 0.1


def test_a_fault_is_seen_sooner_where_more_is_faulty() -> None:
    found = delays(blocks_of_cameras(20, 100), 0.1, 0.3, 1.0, streams=30)

    assert [(each.spread.keys, each.strength) for each in found] == [
        (keys, strength) for keys in (1, 2, 20) for strength in (0.1, 0.3, 1.0)
    ]
    typical = np.array([each.typical_ms or math.inf for each in found]).reshape(3, 3)
    assert (np.diff(typical, axis=1) <= 0).all()
    assert (np.diff(typical, axis=0) <= 0).all()
    for each in found:
        assert each.late_ms is None or each.median_ms is not None
        assert each.median_ms is None or each.median_ms <= (each.late_ms or math.inf)


def test_the_whole_stream_is_faulty_where_there_are_no_keys() -> None:
    (only,) = delays(blocks_of_cameras(0, 100), 1.0)

    assert only.spread == Spread("the stream", 0)
    assert only.mean_ms is not None
    assert 0 < only.mean_ms < 6 * BLOCK_MS


def test_what_cannot_be_seen_is_not_said_to_be() -> None:
    weak = delays(blocks_of_cameras(2, 12), 0.001, streams=20)[0]

    assert weak.mean_ms is None
    assert weak.standard_error_ms is None
    assert weak.late_ms is None
    assert weak.detected < 20


def test_dependence_makes_the_delay_of_a_weak_fault_vary() -> None:
    blocks = blocks_of_cameras(3, 100)
    plan = planned(blocks)

    def late(decorrelation_ms: float) -> float:
        first, *_ = block_delays(
            plan,
            blocks,
            decorrelation_ms=decorrelation_ms,
            alpha=ALPHA,
            strengths=(0.2,),
            streams=150,
            seed=0,
            advance=lambda _done, _total: None,
        )
        assert first.late_ms is not None
        return first.late_ms

    assert late(BLOCK_MS / RECORDS) < late(BLOCK_MS / 4)


def test_spreads() -> None:
    def of(cameras: int) -> list[int]:
        references = references_of(blocks_of_cameras(cameras, 10), TimeKinds())
        return [spread.keys for spread in spreads_of(references)]

    assert of(0) == [0]
    assert of(1) == [1]
    assert of(2) == [1, 2]
    assert of(11) == [1, 2, 11]
    assert of(MOST_KEYS + 20) == [1, 12, 120]


def test_strengths_are_shares() -> None:
    with pytest.raises(ValueError, match="strengths"):
        delays(blocks_of_cameras(1, 20), 0.0)
    with pytest.raises(ValueError, match="references"):
        delays(blocks_of_cameras(1, 5), 0.5)


def test_times_without_a_reference_are_passed_over() -> None:
    blocks = blocks_of_cameras(2, 60)
    # Six blocks are in the last hour.
    references = references_of(blocks, TimeKinds((0, 9)))
    plan = plan_blocks(references, run_time_ms=30 * DAY_MS, confidence=0.95)
    assert len(references.blind_kinds) == 1
    found = block_delays(
        plan,
        blocks,
        decorrelation_ms=BLOCK_MS / RECORDS,
        alpha=ALPHA,
        strengths=(1.0,),
        streams=10,
        seed=0,
        advance=lambda _done, _total: None,
    )
    assert all(each.detected == 10 for each in found)
