"""From messages to the rows of the log: decode, preprocess, score, judge."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from nap_stream.calibration.calibration import Calibration
from nap_stream.clock import Clock
from nap_stream.core.score_specs import BaseScore
from nap_stream.decode import iter_decoded
from nap_stream.model.preprocessing import preprocess
from nap_stream.model.scorer import OnePassScorer
from nap_stream.records import (
    DecodedImage,
    FailedImage,
    Message,
    ScoredRecord,
    Scores,
    Status,
)
from nap_stream.settings import LimitSettings, PreprocessingSettings


class RowMaker:
    """Decodes messages, in any number of threads, and turns images into rows, in one.

    Args:
        scorer: The model's one pass.
        class_names: In order of the logits.
        calibration: What the scores are judged by.
        preprocessing: From pixels to the model's input.
        limits: What is refused before decoding.
        kept_headers: Names of the message headers that rows keep.
        clock: For ingest and scored times.
    """

    def __init__(
        self,
        *,
        scorer: OnePassScorer,
        class_names: Sequence[str],
        calibration: Calibration,
        preprocessing: PreprocessingSettings,
        limits: LimitSettings,
        kept_headers: tuple[str, ...],
        clock: Clock,
    ) -> None:
        self._scorer, self._class_names, self._calibration = scorer, class_names, calibration
        self._preprocessing, self._limits = preprocessing, limits
        self._kept_headers, self._clock = kept_headers, clock

    def decode(self, message: Message) -> list[DecodedImage | FailedImage]:
        """A message's images at the model's input size, one a row."""
        rows = iter_decoded(
            message,
            self._limits,
            kept_headers=self._kept_headers,
            ingest_time_ms=self._clock.now_ms(),
        )
        return [self._preprocessed(row) for row in rows]

    def score(self, images: Sequence[DecodedImage]) -> list[ScoredRecord]:
        """The rows of a batch, in order. Scores that are not finite make a row without scores."""
        found = self._scorer(torch.stack([image.pixels for image in images]))
        judged = self._calibration.judge(found.values, found.class_id)
        finite = found.is_finite() & np.isfinite(judged.fused)
        now_ms = self._clock.now_ms()
        records = []
        for row, image in enumerate(images):
            if not finite[row]:
                records.append(_not_finite(image, now_ms))
                continue
            class_id = int(found.class_id[row])
            values = {name: float(column[row]) for name, column in found.values.items()}
            scores = Scores(
                class_id=class_id,
                class_name=self._class_names[class_id],
                confidence=values.pop(BaseScore.MSP),
                fused=float(judged.fused[row]),
                ood_p_value=float(judged.ood_p_value[row]),
                is_ood=bool(judged.is_ood[row]),
                **values,
            )
            records.append(_row(image, Status.OK, None, now_ms, scores))
        return records

    def _preprocessed(self, row: DecodedImage | FailedImage) -> DecodedImage | FailedImage:
        if isinstance(row, FailedImage):
            return row
        return dataclasses.replace(row, pixels=preprocess(row.pixels, self._preprocessing))

    def fail(self, image: FailedImage) -> ScoredRecord:
        """The row of an image that has no scores."""
        return _row(image, image.status, image.error, self._clock.now_ms(), None)


def _not_finite(image: DecodedImage, now_ms: int) -> ScoredRecord:
    error = "the model's activations or logits are not finite for this image"
    return _row(image, Status.NOT_FINITE, error, now_ms, None)


def _row(
    image: DecodedImage | FailedImage,
    status: Status,
    error: str | None,
    scored_time_ms: int,
    scores: Scores | None,
) -> ScoredRecord:
    return ScoredRecord(
        origin=image.origin,
        status=status,
        error=error,
        scored_time_ms=scored_time_ms,
        scores=scores,
        width=image.width,
        height=image.height,
        format=image.format,
        sha256=image.sha256,
    )
