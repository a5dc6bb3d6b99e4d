"""A calibration whose scores are those of a stretch of the log that somebody vouches for."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nap_stream.baselines.counting import (
    MAX_CELLS,
    chosen_keys,
    count_blocks,
    fine_ms,
    first_judge,
    thinned,
)
from nap_stream.baselines.stretch import SHOWN, Stretch, StretchQuery
from nap_stream.calibration.artifact import versions
from nap_stream.calibration.baseline import (
    PARENT_CLASS_ID,
    PARENT_SCORE,
    Baseline,
    block_arrays,
)
from nap_stream.calibration.calibration import (
    CLASS_ID,
    SCORE,
    VALUE,
    Calibration,
    array_sha256,
)
from nap_stream.clock import Progress
from nap_stream.core.block_plan import MIN_BLOCKS, references_of
from nap_stream.core.blocks import Blocks, block_means, coarser
from nap_stream.core.conformal import ConformalTest
from nap_stream.core.decorrelation import (
    BLOCK_GRID_MS,
    BlockChoice,
    blocks_needed,
    neighbour_correlation,
    settle_blocks,
)
from nap_stream.core.foreign import Foreign, check_ms, foreign_in, odd_parts, without
from nap_stream.core.time_kinds import HOUR_MS, KindEvidence, TimeKinds, find_kinds
from nap_stream.errors import CalibrationError, ConfigError
from nap_stream.text import bounded, duration, listed, percent, rfc3339

_PASSES = 4


@dataclass(frozen=True, slots=True)
class BaselineRequest:
    """Who vouches for a stretch, why, and what is not to be found out from it.

    ``block_ms`` and ``kinds`` are null where the stretch decides; then days begin in ``timezone``.
    More than ``max_foreign`` of the records that look foreign, of all or of a key, are refused.
    """

    log_root: str
    made_by: str
    reason: str
    block_ms: int | None
    kinds: TimeKinds | None
    timezone: str
    max_foreign: float


@dataclass(frozen=True, slots=True)
class ForeignShare:
    """How many of the records of a key look foreign; `NO_KEY` stands for the stream.

    ``spans_ms`` are the stretches of time, in milliseconds since the epoch, in which they are.
    """

    key: str
    share: float
    spans_ms: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        times = [f"{rfc3339(start)} to {rfc3339(end)}" for start, end in self.spans_ms]
        name = f"{bounded(self.key)} " if self.key else ""
        return f"{name}{percent(self.share)} ({listed(times, SHOWN)})"


@dataclass(frozen=True, slots=True)
class ForeignFound:
    """The share of foreign records, and the keys that have some, the most first.

    They were looked for in blocks of ``block_ms``, in ``keys`` of the keys; 0 where that was not
    possible.
    """

    share: float
    by_key: tuple[ForeignShare, ...]
    block_ms: int
    keys: int

    def __str__(self) -> str:
        return listed([str(each) for each in self.by_key], SHOWN, "; ")


@dataclass(frozen=True, slots=True, eq=False)
class MadeBaseline:
    """A new calibration, and what its blocks rest on.

    ``correlation`` is that of neighbouring blocks which is furthest above its limit, see
    `nap_stream.core.decorrelation.neighbour_correlation`.
    """

    calibration: Calibration
    blocks: Blocks
    choice: BlockChoice
    evidence: KindEvidence
    foreign: ForeignFound
    correlation: float
    correlation_limit: float

    @property
    def baseline(self) -> Baseline:
        """What the calibration states of it."""
        found = self.calibration.document.baseline
        assert found is not None
        return found


def make_baseline(
    stretch: Stretch,
    query: StretchQuery,
    parent: Calibration,
    request: BaselineRequest,
    *,
    created_ms: int,
    advance: Progress,
) -> MadeBaseline:
    """Make a calibration of a stretch that ``parent``, or a baseline of its images, has judged.

    ``advance`` is told of the passes over the records.

    Raises:
        CalibrationError: Too many records look foreign, the stretch has too few blocks, or too few
            records for the rule.
        ConfigError: Blocks would be shorter than panes.
        ScoredLogError: The temporary file cannot be read.
    """
    advance(0, _PASSES)
    first = first_judge(stretch, parent.alpha)
    fine_length = fine_ms(stretch, query.pane_ms)
    advance(1, _PASSES)
    keys = chosen_keys(stretch, fine_length)
    fine = count_blocks(stretch, first, fine_length, query.pane_ms, keys)
    advance(2, _PASSES)
    foreign, is_odd = _foreign(fine, request)
    _require_own(foreign, request.max_foreign)
    # What is foreign says nothing of how records depend on each other. The blocks keep it.
    own = without(fine, is_odd)
    kinds, evidence = request.kinds, None
    if kinds is None and request.block_ms is not None:
        kinds, evidence = _kinds_of(own, request.block_ms, request.timezone)
    settled = settle_blocks(own, kinds=kinds, timezone=request.timezone)
    choice = _with_length(settled.choice, request.block_ms, query.pane_ms, stretch)
    scores, class_id, thinned_ms = thinned(stretch, choice.decorrelation_ms)
    advance(3, _PASSES)
    test = _test(parent, scores, class_id)

    def judge(
        fused: NDArray[np.float64], classes: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        p = test.p_values(fused, classes)
        return p, p <= parent.alpha

    blocks = count_blocks(stretch, judge, choice.block_ms, query.pane_ms)
    advance(4, _PASSES)
    _require_blocks(blocks, settled.kinds, choice, foreign)
    arrays = _arrays(parent, scores, class_id) | block_arrays(blocks)
    baseline = Baseline(
        log_root=request.log_root,
        topic=query.topic,
        since_ms=max(query.since_ms, int(stretch.first_ms.min())),
        until_ms=min(query.until_ms, int(stretch.last_ms.max()) + 1),
        chains=stretch.chains,
        records=stretch.records,
        made_by=request.made_by,
        reason=request.reason,
        parent=_images_of(parent),
        judged_by=stretch.judged_by,
        by=None if query.keys is None else query.keys.by,
        keys=blocks.keys,
        one_per_pane=query.keys is not None and query.keys.one_per_pane,
        pane_ms=query.pane_ms,
        block_ms=choice.block_ms,
        kinds=settled.kinds,
        decorrelation_ms=choice.decorrelation_ms,
        thinned_ms=thinned_ms,
        foreign_share=foreign.share,
    )
    document = parent.document.model_copy(
        update={
            "groups": test.groups,
            # What was seen and warned of was so by the scores of the calibration images.
            "faults": (),
            "warnings": (),
            "versions": dict(versions()),
            "created_ms": created_ms,
            "array_sha256": array_sha256(arrays),
            "baseline": baseline,
        }
    )
    calibration = Calibration(document, arrays)
    alike = neighbour_correlation(blocks, settled.kinds)
    return MadeBaseline(calibration, blocks, choice, evidence or settled.evidence, foreign, *alike)


def _test(
    parent: Calibration, scores: NDArray[np.float64], class_id: NDArray[np.int32]
) -> ConformalTest:
    document = parent.document
    try:
        return ConformalTest(
            document.rule, scores, class_id.astype(np.int64), len(document.model.class_names)
        )
    except ValueError as error:
        text = str(error).replace("calibration images", "records, thinned out,")
        raise CalibrationError(
            f"the stretch cannot calibrate: {text}", "", "Choose a longer stretch"
        ) from error


def _arrays(
    parent: Calibration, scores: NDArray[np.float64], class_id: NDArray[np.int32]
) -> dict[str, NDArray[np.generic]]:
    """The scores, those of the calibration images, and what goes with the method."""
    has_parent = parent.document.baseline is not None
    kept = {
        name: array
        for name, array in parent.arrays.items()
        if name.partition(".")[0] in {"reference", "fit"}
    }
    assert not any(name.startswith(VALUE) for name in kept)
    return kept | {
        SCORE: scores,
        CLASS_ID: class_id,
        PARENT_SCORE: parent.arrays[PARENT_SCORE if has_parent else SCORE],
        PARENT_CLASS_ID: parent.arrays[PARENT_CLASS_ID if has_parent else CLASS_ID],
    }


def _images_of(parent: Calibration) -> str:
    """The fingerprint of the calibration that has the images."""
    baseline = parent.document.baseline
    return parent.fingerprint if baseline is None else baseline.parent


def _foreign(fine: Blocks, request: BaselineRequest) -> tuple[ForeignFound, NDArray[np.bool_]]:
    """What looks foreign, and which of the short blocks lie in blocks that do."""
    kinds = request.kinds
    if kinds is None:
        kinds, _ = _kinds_of(fine, fine.block_ms, request.timezone)
    length = check_ms(fine, kinds)
    blocks = coarser(fine, length)
    found = foreign_in(blocks, kinds)
    return _shares(blocks, found), odd_parts(fine, blocks, found.is_odd)


def _kinds_of(fine: Blocks, block_ms: int, timezone: str) -> tuple[TimeKinds, KindEvidence]:
    """The kinds of time that blocks speak for, of this length but of an hour at least."""
    length = max(HOUR_MS, block_ms, fine.block_ms)
    blocks = fine if length % fine.block_ms else coarser(fine, length)
    return find_kinds(
        blocks.key,
        blocks.middle_ms,
        block_means(blocks),
        timezone=timezone,
        least=blocks_needed(block_ms, blocks.block_ms),
    )


def _shares(blocks: Blocks, found: Foreign) -> ForeignFound:
    judged = found.judged
    records = np.bincount(blocks.key[judged], blocks.records[judged], len(blocks.keys))
    foreign = np.bincount(blocks.key[judged], found.records[judged], len(blocks.keys))
    by_key = []
    for number in np.flatnonzero(foreign > 0).tolist():
        rows = np.flatnonzero(found.is_odd & (blocks.key == number))
        spans = _joined(blocks.start_ms[rows], blocks.block_ms)
        share = float(foreign[number] / records[number])
        by_key.append(ForeignShare(blocks.keys[number], share, spans))
    by_key.sort(key=lambda each: -each.share)
    total = float(foreign.sum() / max(1.0, records.sum()))
    return ForeignFound(total, tuple(by_key), blocks.block_ms, int((records > 0).sum()))


def _joined(start_ms: NDArray[np.int64], block_ms: int) -> tuple[tuple[int, int], ...]:
    """Stretches of time of blocks that follow each other."""
    cuts = np.flatnonzero(np.diff(start_ms) != block_ms) + 1
    runs = [run for run in np.split(start_ms, cuts) if len(run)]
    return tuple((int(run[0]), int(run[-1]) + block_ms) for run in runs)


def _require_own(foreign: ForeignFound, most: float) -> None:
    worst = [each for each in foreign.by_key if each.share > most]
    if foreign.share <= most and not worst:
        return
    named = listed([str(each) for each in worst or foreign.by_key], SHOWN, "; ")
    raise CalibrationError(
        f"{percent(foreign.share)} of the records look foreign to the rest of their key, and at "
        f"most {percent(most)} of all and of each key may: {named}",
        "--max-foreign",
        "Choose a stretch without them. If they are as they should be, raise --max-foreign; if "
        "they are the nights, three days or more tell, or --times",
    )


def _with_length(
    choice: BlockChoice, block_ms: int | None, pane_ms: int, stretch: Stretch
) -> BlockChoice:
    """The length that is asked for, or the chosen one, longer where blocks would be too many."""
    if block_ms is None:
        span = int(stretch.last_ms.max() - stretch.first_ms.min()) + 1
        least = max(choice.block_ms, len(stretch.keys) * span // MAX_CELLS)
        block_ms = next((each for each in BLOCK_GRID_MS if each >= least), BLOCK_GRID_MS[-1])
    elif block_ms < pane_ms:
        raise ConfigError(
            f"blocks of {duration(block_ms)} are shorter than the panes of drift.pane_ms, "
            f"{pane_ms:,} ms",
            "--block",
        )
    if block_ms == choice.block_ms:
        return choice
    return replace(choice, block_ms=block_ms, reason="asked")


def _require_blocks(
    blocks: Blocks, kinds: TimeKinds, choice: BlockChoice, foreign: ForeignFound
) -> None:
    numbers = np.bincount(blocks.key, minlength=len(blocks.keys))
    references = references_of(blocks, kinds)
    if not references.blind_kinds:
        return
    if numbers[0] >= MIN_BLOCKS and kinds.count > 1:
        raise CalibrationError(
            f"the stretch has fewer than {MIN_BLOCKS} whole blocks of "
            f"{duration(choice.block_ms)} at these times: "
            f"{', '.join(references.blind_kinds)}",
            "--times",
            "Tell fewer times apart with --times, or choose a longer stretch",
        )
    odd = f". Odd is: {foreign}" if foreign.by_key else ""
    raise CalibrationError(
        f"the stretch has {numbers[0]} blocks of {duration(choice.block_ms)}, and at least "
        f"{MIN_BLOCKS} are needed that are not cut off: records depend on each other over about "
        f"{duration(round(choice.decorrelation_ms))}{odd}",
        "",
        f"Choose a stretch of {duration(2 * MIN_BLOCKS * choice.block_ms)} or more in which "
        "nothing changed, or shorter blocks with --block",
    )
