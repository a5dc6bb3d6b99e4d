"""What a few messages of a topic hold, and what the model makes of them: no score, no log."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from nap_stream.decode.message import decode_message
from nap_stream.model.load import LoadedModel
from nap_stream.model.preprocessing import decoded_size, preprocess
from nap_stream.pipeline.rows import ReadMessage
from nap_stream.records import DecodedRows, Message, ModelOutput, Origin, Status
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings

MAX_IMAGES = 20
"""A batch may hold a thousand; the first few tell what they are."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted class, and its softmax probability in [0, 1]."""

    class_name: str
    confidence: float


@dataclass(frozen=True, slots=True)
class ImageSeen:
    """An image of the topic, or a message that is none.

    ``width``, ``height`` (pixels) and ``format`` are null where the bytes did not say. ``error``
    says why the status is not ok. ``prediction`` is null then, and where there is no model.
    """

    origin: Origin
    status: Status
    error: str | None
    width: int | None
    height: int | None
    format: str | None
    prediction: Prediction | None = None


def look_at(
    messages: Iterable[Message],
    limits: LimitSettings,
    preprocessing: PreprocessingSettings,
    loaded: LoadedModel | None,
    read: ReadMessage | None = None,
) -> list[ImageSeen]:
    """Decode messages as a worker does, and predict; at most `MAX_IMAGES` images in all.

    ``preprocessing`` is that of a configuration; a model that is loaded has its own, written out.
    ``read`` finds the images of messages that are none themselves, as in a worker.

    Raises:
        ModelError: See `run_forward`.
        FeatureMapError: See `run_forward`.
    """
    seen: list[ImageSeen] = []
    if loaded is not None:
        preprocessing = loaded.preprocessing
    for message in messages:
        if len(seen) >= MAX_IMAGES:
            break
        seen.extend(_of_message(message, limits, preprocessing, loaded, read))
    return seen[:MAX_IMAGES]


def _of_message(
    message: Message,
    limits: LimitSettings,
    preprocessing: PreprocessingSettings,
    loaded: LoadedModel | None,
    read: ReadMessage | None,
) -> Iterator[ImageSeen]:
    rows = decode_message(
        message,
        limits,
        kept_headers=(),
        ingest_time_ms=message.timestamp_ms,
        at_least=decoded_size(preprocessing),
        preprocessing=preprocessing,
        read=read,
        prepare=lambda pixels: preprocess(pixels, preprocessing),
    )
    pixels = [one for one in rows.pixels[:MAX_IMAGES] if isinstance(one, torch.Tensor)]
    yield from _seen(
        message, rows, () if loaded is None or not pixels else _predicted(pixels, loaded)
    )


def look_at_outputs(
    messages: Iterable[Message],
    decode: Callable[[Message], DecodedRows],
    class_names: Sequence[str] | None,
) -> list[ImageSeen]:
    """Read messages of a model's outputs, `MAX_IMAGES` images in all; without names by number."""
    seen: list[ImageSeen] = []
    for message in messages:
        rows = decode(message)
        outputs = [one for one in rows.pixels if isinstance(one, ModelOutput)]
        logits = [torch.from_numpy(one.logits)[None] for one in outputs]
        found = (_likeliest(one, class_names) for one in logits)
        seen.extend(_seen(message, rows, [each for one in found for each in one]))
        if len(seen) >= MAX_IMAGES:
            break
    return seen[:MAX_IMAGES]


def _seen(
    message: Message, rows: DecodedRows, predicted: Iterable[Prediction]
) -> Iterator[ImageSeen]:
    predictions, columns = iter(predicted), rows.columns
    for row in range(len(rows)):
        status = columns["status"][row]
        origin = Origin(
            message.partition,
            message.offset,
            columns["index"][row],
            columns["key"][row],
            columns["event_time"][row],
            columns["ingest_time"][row],
        )
        yield ImageSeen(
            origin=origin,
            status=status,
            error=columns["error"][row],
            width=columns["width"][row],
            height=columns["height"][row],
            format=columns["format"][row],
            prediction=next(predictions, None) if status is Status.OK else None,
        )


def _predicted(pixels: list[torch.Tensor], loaded: LoadedModel) -> list[Prediction]:
    return _likeliest(loaded.forward(torch.stack(pixels)).logits, loaded.class_names)


def _likeliest(logits: torch.Tensor, class_names: Sequence[str] | None) -> list[Prediction]:
    confidence, class_id = logits.to(torch.float32).softmax(dim=1).max(dim=1)
    return [
        Prediction(str(number) if class_names is None else class_names[number], share)
        for number, share in zip(class_id.tolist(), confidence.tolist(), strict=True)
    ]
