"""Calibrations with a baseline, made by hand."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.calibration.baseline import (
    PARENT_CLASS_ID,
    PARENT_SCORE,
    Baseline,
    block_arrays,
)
from nap_stream.calibration.calibration import CLASS_ID, SCORE, Calibration, array_sha256
from nap_stream.core.blocks import Blocks
from nap_stream.core.conformal import ConformalTest
from nap_stream.core.panes import NO_KEY
from nap_stream.core.tails import BIN_COUNT
from nap_stream.core.time_kinds import TimeKinds

MINUTE_MS = 60_000


def blocks_of_stream(
    flagged: list[int], records: int = 100, block_ms: int = MINUTE_MS, start_ms: int = 0
) -> Blocks:
    """Blocks of the whole stream, one after the other; p-values above alpha lie in the middle."""
    size = len(flagged)
    bins = np.zeros((size, BIN_COUNT), np.int64)
    bins[:, 0] = flagged
    bins[:, 5] = records - np.array(flagged)
    return Blocks(
        np.zeros(size, np.int64),
        start_ms + np.arange(size) * block_ms,
        np.full(size, records),
        np.array(flagged, np.int64),
        bins,
        (NO_KEY,),
        block_ms,
    )


def with_baseline(
    parent: Calibration, scores: NDArray[np.float64], blocks: Blocks | None = None, **changes: Any
) -> Calibration:
    """The calibration that judges by these scores, all of class 0, beside those of ``parent``.

    ``changes`` are fields of the baseline.
    """
    blocks = blocks_of_stream([3, 5, 4] * 4) if blocks is None else blocks
    class_id = np.zeros(len(scores), np.int32)
    kept = {
        name: array
        for name, array in parent.arrays.items()
        if name.startswith(("reference.", "fit."))
    }
    arrays = {
        **kept,
        SCORE: np.asarray(scores, np.float64),
        CLASS_ID: class_id,
        PARENT_SCORE: parent.arrays[SCORE],
        PARENT_CLASS_ID: parent.arrays[CLASS_ID],
        **block_arrays(blocks),
    }
    document = parent.document
    classes = len(document.model.class_names)
    test = ConformalTest(document.rule, arrays[SCORE], class_id.astype(np.int64), classes)
    fields: dict[str, Any] = {
        "log_root": "scored-log",
        "topic": "cars",
        "since_ms": int(blocks.start_ms.min()),
        "until_ms": int(blocks.start_ms.max()) + blocks.block_ms,
        "chains": (),
        "records": int(blocks.of(NO_KEY).records.sum()),
        "made_by": "Ada",
        "reason": "it ran as it should",
        "parent": parent.fingerprint,
        "judged_by": (parent.fingerprint,),
        "by": None if blocks.keys == (NO_KEY,) else "key",
        "keys": blocks.keys,
        "one_per_pane": False,
        "pane_ms": 1_000,
        "block_ms": blocks.block_ms,
        "kinds": TimeKinds(),
        "decorrelation_ms": 1_500.5,
        "thinned_ms": 1_500,
        "foreign_share": 0.001,
    }
    return Calibration(
        document.model_copy(
            update={
                "groups": test.groups,
                "array_sha256": array_sha256(arrays),
                "baseline": Baseline(**(fields | changes)),
            }
        ),
        arrays,
    )
