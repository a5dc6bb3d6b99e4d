"""A worker's rows: messages are decoded to images of the model's input size, and scored.

From decoding on, images are columns: what is known of them is laid out as Arrow rows once a batch.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from nap_stream.calibration.calibration import Calibration
from nap_stream.clock import Clock
from nap_stream.core.score_specs import BaseScore
from nap_stream.decode import decode_message
from nap_stream.model.forward import BatchScores
from nap_stream.model.preprocessing import decoded_size, preprocess
from nap_stream.records import IMAGE_COLUMNS, DecodedRows, Message, Status
from nap_stream.scored_log.format import rows_of, storable_text
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings

ScoreImages = Callable[[Sequence[torch.Tensor]], BatchScores]
"""At least one image of the model's input size, uint8 (3, H, W) → their scores, in order."""

_NOT_FINITE = "the model's activations or logits are not finite for this image"


class MessageDecoder:
    """Decodes messages to images of the model's input size, in any number of threads.

    ``kept_headers`` are the message headers that rows keep.
    """

    def __init__(
        self,
        *,
        preprocessing: PreprocessingSettings,
        limits: LimitSettings,
        kept_headers: tuple[str, ...],
        clock: Clock,
    ) -> None:
        self._preprocessing, self._limits = preprocessing, limits
        self._kept_headers, self._clock = kept_headers, clock

    def __call__(self, message: Message) -> DecodedRows:
        """A message's images, one a row."""
        return decode_message(
            message,
            self._limits,
            kept_headers=self._kept_headers,
            ingest_time_ms=self._clock.now_ms(),
            at_least=decoded_size(self._preprocessing),
            prepare=self._prepare,
        )

    def _prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        return preprocess(pixels, self._preprocessing)


class RowScorer:
    """Scores and judges decoded images, and lays them out as rows. For one thread at a time.

    ``class_names`` are in order of the logits.
    """

    def __init__(
        self,
        *,
        score_images: ScoreImages,
        class_names: Sequence[str],
        calibration: Calibration,
        clock: Clock,
    ) -> None:
        self._score_images, self._calibration = score_images, calibration
        self._class_names = pa.array([storable_text(name) for name in class_names], pa.string())
        self._clock = clock

    def __call__(self, decoded: Sequence[DecodedRows]) -> pa.RecordBatch:
        """The rows of decoded messages, in order, with the columns of `ROWS`.

        Scores that are not finite make a row without scores.
        """
        columns: dict[str, Any] = {
            name: list(chain.from_iterable(part.columns[name] for part in decoded))
            for name in IMAGE_COLUMNS
        }
        pixels = [image for part in decoded for image in part.pixels]
        count = len(columns["offset"])
        scores: dict[str, pa.Array] = {}
        if pixels:
            is_ok = np.array([status is Status.OK for status in columns["status"]])
            values, is_finite = self._score(pixels)
            rows = np.flatnonzero(is_ok)
            for row in rows[~is_finite].tolist():
                columns["status"][row], columns["error"][row] = Status.NOT_FINITE, _NOT_FINITE
            scores = _spread(values, is_finite, rows, count)
            scores["class_name"] = self._class_names.take(scores["class_id"])
        columns["scored_time"] = [self._clock.now_ms()] * count
        return rows_of(columns | scores, count)

    def _score(
        self, pixels: Sequence[torch.Tensor]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
        """Columns of scores by name, each (M,), and which of the M images have finite ones."""
        found = self._score_images(pixels)
        values, class_id = found.values, found.class_id
        judged = self._calibration.judge(values, class_id)
        is_finite = found.is_finite() & np.isfinite(judged.fused)
        columns: dict[str, NDArray[Any]] = {
            name: column.astype(np.float64) for name, column in values.items()
        }
        columns["confidence"] = columns.pop(BaseScore.MSP)
        columns |= {"class_id": class_id, "fused": judged.fused, "is_ood": judged.is_ood}
        return columns | {"ood_p_value": judged.ood_p_value}, is_finite


def _spread(
    values: dict[str, NDArray[Any]],
    is_finite: NDArray[np.bool_],
    rows: NDArray[np.int64],
    count: int,
) -> dict[str, pa.Array]:
    """Columns of ``count`` rows: value i stands in row ``rows[i]`` if it is finite, else null."""
    if len(rows) == count and is_finite.all():
        return {name: pa.array(column) for name, column in values.items()}
    present = rows[is_finite]
    absent = np.ones(count, np.bool_)
    absent[present] = False
    spread = {}
    for name, column in values.items():
        whole = np.zeros(count, column.dtype)
        whole[present] = column[is_finite]
        spread[name] = pa.array(whole, mask=absent)
    return spread
