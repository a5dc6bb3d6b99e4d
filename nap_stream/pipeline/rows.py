"""A worker's rows: messages are decoded to images of the model's input size, and scored.

From decoding on, images are columns: what is known of them is laid out as Arrow rows once a batch.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from nap_stream.calibration.calibration import Calibration
from nap_stream.clock import Clock
from nap_stream.core.hidden_keys import CLEAR, HiddenKeys
from nap_stream.core.score_specs import BaseScore
from nap_stream.decode.message import decode_message
from nap_stream.decode.picture import Refusal
from nap_stream.model.forward import BatchScores
from nap_stream.model.preprocessing import decoded_size, preprocess
from nap_stream.records import (
    IMAGE_COLUMNS,
    DecodedRows,
    EncodedJpeg,
    FailedImage,
    Message,
    ModelOutput,
    SourceImage,
    Status,
)
from nap_stream.scored_log.format import rows_of, storable_text
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings

Image = torch.Tensor | EncodedJpeg | ModelOutput
ScoreImages = Callable[[Sequence[Any], Callable[[EncodedJpeg], torch.Tensor | None]], BatchScores]
"""At least one image → their scores, in order. See `nap_stream.model.lane.Lane`, and for the
outputs of a model elsewhere `nap_stream.pipeline.outputs.score_sent`."""
DecodeOnCpu = Callable[[bytes], torch.Tensor | Refusal]
ReadMessage = Callable[[Message], tuple[SourceImage, ...]]
"""A message → its images' bytes. See `nap_stream.messages.reader.MessageReader`."""

_NOT_FINITE = "the model's activations or logits are not finite for this image"


class MessageDecoder:
    """Decodes messages to images of the model's input size, in any number of threads.

    ``kept_headers`` are the message headers that rows keep; ``keeps_files`` has them keep the
    images' bytes until they are scored. ``read`` finds the images of messages
    that are not images themselves. It may wait, in more threads than ``decode_threads``: so many
    decode at once.
    """

    def __init__(
        self,
        *,
        preprocessing: PreprocessingSettings,
        limits: LimitSettings,
        kept_headers: tuple[str, ...],
        clock: Clock,
        read: ReadMessage | None = None,
        decode_threads: int = 1,
        keeps_files: bool = False,
    ) -> None:
        self._preprocessing, self._limits = preprocessing, limits
        self._kept_headers, self._clock, self._read = kept_headers, clock, read
        self._keeps_files = keeps_files
        self._turns = threading.Semaphore(decode_threads)

    def __call__(self, message: Message) -> DecodedRows:
        """A message's images, one a row."""
        if self._read is None:
            return self._decoded(message, None)
        with self._turns:
            return self._decoded(message, partial(self._read_meanwhile, self._read))

    def _read_meanwhile(self, read: ReadMessage, message: Message) -> tuple[SourceImage, ...]:
        """Read, and leave the turn to decode to others for so long."""
        self._turns.release()
        try:
            return read(message)
        finally:
            self._turns.acquire()

    def _decoded(self, message: Message, read: ReadMessage | None) -> DecodedRows:
        return decode_message(
            message,
            self._limits,
            kept_headers=self._kept_headers,
            ingest_time_ms=self._clock.now_ms(),
            at_least=decoded_size(self._preprocessing),
            preprocessing=self._preprocessing,
            prepare=self._prepare,
            leaves_jpegs=self._preprocessing.jpeg_decoder == "nvjpeg",
            keeps_files=self._keeps_files,
            read=read,
        )

    def _prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        return preprocess(pixels, self._preprocessing)


class RowScorer:
    """Scores and judges decoded images, and lays them out as rows. For one thread at a time.

    ``class_names`` are in order of the logits. ``decode_on_cpu`` is asked for the JPEGs that were
    left to a device which cannot decode them; it is needed where any are left. ``hidden`` says how
    keys and headers stand in rows: nothing behind this knows them otherwise.
    """

    def __init__(
        self,
        *,
        score_images: ScoreImages,
        class_names: Sequence[str],
        calibration: Calibration,
        clock: Clock,
        decode_on_cpu: DecodeOnCpu | None = None,
        hidden: HiddenKeys = CLEAR,
    ) -> None:
        self._hidden = hidden
        self._score_images, self._calibration = score_images, calibration
        self._class_names = pa.array([storable_text(name) for name in class_names], pa.string())
        self._decode_on_cpu, self._clock = decode_on_cpu, clock

    def __call__(self, decoded: Sequence[DecodedRows]) -> pa.RecordBatch:
        """The rows of decoded messages, in order, with the columns of `ROWS`.

        Scores that are not finite make a row without scores, and so does a JPEG that was left
        undecoded and that nothing decodes: it joins the failed images.
        """
        columns: dict[str, Any] = {
            name: list(chain.from_iterable(part.columns[name] for part in decoded))
            for name in IMAGE_COLUMNS
        }
        images = [image for part in decoded for image in part.pixels]
        count = len(columns["offset"])
        scores: dict[str, pa.Array] = {}
        if images:
            is_ok = np.array([status is Status.OK for status in columns["status"]])
            values, is_finite, refused = self._score(images)
            rows = np.flatnonzero(is_ok)
            for row in rows[~is_finite].tolist():
                columns["status"][row], columns["error"][row] = Status.NOT_FINITE, _NOT_FINITE
            for part in decoded if refused else ():
                part.failed.extend(_failed(part, refused))
            for number, image in enumerate(images) if refused else ():
                if isinstance(image, EncodedJpeg) and image in refused:
                    is_finite[number] = False
                    row, refusal = rows[number], refused[image]
                    columns["status"][row], columns["error"][row] = refusal.status, refusal.error
            scores = _spread(values, is_finite, rows, count)
            scores["class_name"] = self._class_names.take(scores["class_id"])
        if self._hidden.hides:
            columns["key"] = [self._hidden.of_key(key) for key in columns["key"]]
            columns["headers"] = [self._hidden.of_headers(each) for each in columns["headers"]]
        columns["scored_time"] = [self._clock.now_ms()] * count
        return rows_of(columns | scores, count)

    def _score(
        self, images: Sequence[Image]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_], dict[EncodedJpeg, Refusal]]:
        """Columns of scores by name, each (M,), which of the M images have finite ones.

        Last come the images that could not be decoded: what their scores are says nothing.
        """
        refused: dict[EncodedJpeg, Refusal] = {}

        def on_cpu(jpeg: EncodedJpeg) -> torch.Tensor | None:
            assert self._decode_on_cpu is not None, "a JPEG was left undecoded"
            pixels = self._decode_on_cpu(jpeg.data)
            if isinstance(pixels, torch.Tensor):
                return pixels
            refused[jpeg] = pixels
            return None

        found = self._score_images(images, on_cpu)
        values, class_id = found.values, found.class_id
        judged = self._calibration.judge(values, class_id)
        is_finite = found.is_finite() & np.isfinite(judged.fused)
        columns: dict[str, NDArray[Any]] = {
            name: column.astype(np.float64) for name, column in values.items()
        }
        columns["confidence"] = columns.pop(BaseScore.MSP)
        columns |= {"class_id": class_id, "fused": judged.fused, "is_ood": judged.is_ood}
        columns["ood_p_value"] = judged.ood_p_value
        if judged.calibration_p_value is not None:
            columns["calibration_p_value"] = judged.calibration_p_value
        return columns, is_finite, refused


def _failed(part: DecodedRows, refused: Mapping[EncodedJpeg, Refusal]) -> Iterator[FailedImage]:
    for image in part.pixels:
        if isinstance(image, EncodedJpeg) and (refusal := refused.get(image)) is not None:
            size = image.width, image.height
            payload = image.payload or image.data
            yield FailedImage(
                image.origin, refusal.status, refusal.error, payload, image.sha256, *size, "jpeg"
            )


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
