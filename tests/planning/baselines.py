"""Baselines of simulated cameras, for the tests of plans."""

import numpy as np

from nap_stream.calibration.baseline import (
    PARENT_CLASS_ID,
    PARENT_SCORE,
    Baseline,
    ChainPart,
    block_arrays,
)
from nap_stream.calibration.calibration import (
    CLASS_ID,
    SCORE,
    VALUE,
    Calibration,
    array_sha256,
)
from nap_stream.core.blocks import Blocks, added_up
from nap_stream.core.panes import NO_KEY
from nap_stream.core.tails import BIN_COUNT, EDGES
from nap_stream.core.time_kinds import TimeKinds
from tests.planning.streams import calibration

BLOCK_MS = 600_000
RECORDS = 120
_SHARES = np.diff([0.0, *EDGES, 1.0])


def blocks_of_cameras(cameras: int, count: int, seed: int = 0) -> Blocks:
    """So many blocks of each camera, of `RECORDS` independent records, and of the stream."""
    rng = np.random.default_rng(seed)
    bins = rng.multinomial(RECORDS, _SHARES, (cameras, count)).reshape(-1, BIN_COUNT)
    records = np.full((cameras * count, 1), RECORDS)
    counts = np.concatenate((records, bins[:, :2].sum(axis=1, keepdims=True), bins), axis=1)
    key = np.repeat(np.arange(1, cameras + 1), count)
    start_ms = np.tile(np.arange(count) * BLOCK_MS, cameras)
    keys = (NO_KEY, *(f"camera-{number:03}" for number in range(cameras)))
    if not cameras:
        stream = rng.multinomial(RECORDS, _SHARES, count)
        rows = np.column_stack((np.full(count, RECORDS), stream[:, :2].sum(axis=1), stream))
        zeros = np.zeros(count, dtype=np.int64)
        return added_up(zeros, np.arange(count) * BLOCK_MS, rows, keys, BLOCK_MS)
    return added_up(
        np.concatenate((np.zeros_like(key), key)),
        np.concatenate((start_ms, start_ms)),
        np.concatenate((counts, counts)),
        keys,
        BLOCK_MS,
    )


def calibration_with(blocks: Blocks, *, by: str | None = "key") -> Calibration:
    """A calibration that holds a baseline of these blocks."""
    plain = calibration(images=500)
    document, arrays = plain.document, plain.arrays
    made = {
        **{name: array for name, array in arrays.items() if not name.startswith(VALUE)},
        PARENT_SCORE: arrays[SCORE],
        PARENT_CLASS_ID: arrays[CLASS_ID],
        **block_arrays(blocks),
    }
    baseline = Baseline(
        log_root="scored-log",
        topic="cars",
        since_ms=0,
        until_ms=int(blocks.start_ms.max()) + BLOCK_MS,
        chains=(ChainPart(partition=0, start=0, end=9, head_sha256="0" * 64),),
        records=int(blocks.of(NO_KEY).records.sum()),
        made_by="Ada",
        reason="after the retooling",
        parent=plain.fingerprint,
        judged_by=(plain.fingerprint,),
        by=by,
        keys=blocks.keys,
        one_per_pane=False,
        pane_ms=1_000,
        block_ms=BLOCK_MS,
        kinds=TimeKinds(),
        decorrelation_ms=60_000.0,
        thinned_ms=60_000,
        foreign_share=0.0,
    )
    changed = document.model_copy(update={"baseline": baseline, "array_sha256": array_sha256(made)})
    return Calibration(changed, made)
