"""A baseline: a stretch of the scored log that somebody vouched for, as a calibration states it."""

from collections.abc import Mapping
from typing import Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from nap_stream.core.blocks import Blocks
from nap_stream.core.panes import NO_KEY
from nap_stream.core.time_kinds import TimeKinds

PARENT_SCORE = "parent.score"
PARENT_CLASS_ID = "parent.class_id"
BLOCK_KEY = "block.key"
BLOCK_START_MS = "block.start_ms"
BLOCK_RECORDS = "block.records"
BLOCK_FLAGGED = "block.flagged"
BLOCK_BINS = "block.bins"

ARRAYS: Mapping[str, tuple[type[np.generic], int]] = {
    PARENT_SCORE: (np.float64, 1),
    PARENT_CLASS_ID: (np.int32, 1),
    BLOCK_KEY: (np.int32, 1),
    BLOCK_START_MS: (np.int64, 1),
    BLOCK_RECORDS: (np.int32, 1),
    BLOCK_FLAGGED: (np.int32, 1),
    BLOCK_BINS: (np.int32, 2),
}
"""What a baseline adds to the arrays of a calibration: dtype and number of dimensions of each.

The scores and predicted classes of the calibration images (n,), and N blocks of the stretch, see
`nap_stream.core.blocks.Blocks`; their p-values are those by the baseline's own scores.
"""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChainPart(_Part):
    """The segments of a partition that reach into the stretch: offsets ``[start, end)``.

    ``head_sha256`` is the digest of the last of them, which vouches for all before it.
    """

    partition: int
    start: int
    end: int
    head_sha256: str


class Baseline(_Part):
    """Which stretch it is, who vouches for it and why, and how its blocks were counted.

    The stretch are the ``records`` scored records of ``topic`` in the log at ``log_root`` with
    event times in ``[since_ms, until_ms)``, in milliseconds since the epoch. ``chains`` say where
    they stand. ``parent`` is the fingerprint of the calibration whose images stand beside it, and
    ``judged_by`` are those of the calibrations that judged the stretch when it was logged.

    ``by`` says what names a key, see `nap_stream.settings.drift.KeySettings`; null where keys are
    not told apart. ``keys`` are sorted and begin with the whole stream. Blocks are ``block_ms``
    long, their records counted in panes of ``pane_ms``, of each key one at most where
    ``one_per_pane``. ``kinds`` are the kinds of time that are compared among themselves. Records
    depend on each other over about ``decorrelation_ms``; the scores are one a key in ``thinned_ms``
    at most. ``foreign_share`` of the records looked foreign.
    """

    log_root: str
    topic: str
    since_ms: int
    until_ms: int
    chains: tuple[ChainPart, ...]
    records: int
    made_by: str
    reason: str
    parent: str
    judged_by: tuple[str, ...]
    by: str | None
    keys: tuple[str, ...]
    one_per_pane: bool
    pane_ms: int
    block_ms: int
    kinds: TimeKinds
    decorrelation_ms: float
    thinned_ms: int
    foreign_share: float

    @field_validator("kinds")
    @classmethod
    def _known_timezone(cls, value: TimeKinds) -> TimeKinds:
        try:
            ZoneInfo(value.timezone)
        except ZoneInfoNotFoundError as error:
            raise ValueError(f"there is no time zone {value.timezone!r}") from error
        return value

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.since_ms >= self.until_ms or self.block_ms < 1 or self.pane_ms < 1:
            raise ValueError(
                f"a stretch of [{self.since_ms}, {self.until_ms}) ms, "
                f"{self.block_ms = }, {self.pane_ms = }"
            )
        if self.by is None and self.keys != (NO_KEY,):
            raise ValueError("there are keys, and nothing that names them")
        return self


def block_arrays(blocks: Blocks) -> dict[str, NDArray[Any]]:
    """Blocks as arrays of a calibration."""
    return {
        BLOCK_KEY: blocks.key.astype(np.int32),
        BLOCK_START_MS: blocks.start_ms,
        BLOCK_RECORDS: blocks.records.astype(np.int32),
        BLOCK_FLAGGED: blocks.flagged.astype(np.int32),
        BLOCK_BINS: blocks.bins.astype(np.int32),
    }


def blocks_in(baseline: Baseline, arrays: Mapping[str, NDArray[Any]]) -> Blocks:
    """The blocks of a baseline, from the arrays of its calibration.

    Raises:
        ValueError: They contradict each other or the baseline.
    """
    key, start_ms = arrays[BLOCK_KEY], arrays[BLOCK_START_MS]
    records, flagged = arrays[BLOCK_RECORDS], arrays[BLOCK_FLAGGED]
    bins = arrays[BLOCK_BINS].astype(np.int64)
    blocks = Blocks(
        key.astype(np.int64),
        start_ms,
        records.astype(np.int64),
        flagged.astype(np.int64),
        bins,
        baseline.keys,
        baseline.block_ms,
    )
    is_known = (key >= 0) & (key < len(baseline.keys)) & (start_ms % baseline.block_ms == 0)
    is_counted = (
        (records >= 1) & (flagged >= 0) & (flagged <= records) & (bins.sum(axis=1) == records)
    )
    if not (is_known & is_counted).all() or (bins < 0).any():
        raise ValueError("a block contradicts its counts, its key or the length of blocks")
    return blocks
