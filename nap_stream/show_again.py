"""What torch is needed for, of a row that is shown: its message, its picture, its scores again.

Nothing that is shown is trusted: images are decoded by the decoder and within the limits of
workers.
"""

import hashlib
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from nap_stream.calibration.calibration import Calibration, base_scores_of
from nap_stream.clock import SystemClock
from nap_stream.core.prior import nap_by_position
from nap_stream.decode.image import decode_image
from nap_stream.decode.message import decode_message
from nap_stream.decode.picture import Refusal
from nap_stream.errors import FeatureMapError, InputDataError
from nap_stream.feed import on_cpu
from nap_stream.messages.reader import open_reader
from nap_stream.model.execution import computing
from nap_stream.model.forward import capture
from nap_stream.model.lane import open_lane
from nap_stream.model.load import LoadedModel
from nap_stream.pipeline.rows import MessageDecoder, RowScorer
from nap_stream.records import Message, TopicPartition
from nap_stream.scored_log.format import SCORE_COLUMNS
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings, Settings
from nap_stream.source.peek import fetch_one

_SMALLEST_SIDE = 256
"""Pixels of a map's picture: a smaller one is enlarged."""
_STRENGTH = 0.7
"""Of the colour where the map is strongest."""


def from_kafka(row: dict[str, Any], settings: Settings) -> bytes:
    """The bytes of a row's image, from its message. They have the row's SHA-256.

    Raises:
        NapStreamError: The message is gone, is another one, or cannot be had.
    """
    kafka = settings.kafka.model_copy(update={"topic": row["topic"]})
    fetched = fetch_one(kafka, row["partition"], row["offset"])
    # Whoever looks does not wait for a store or a registry that is away.
    reader = open_reader(settings.messages.model_copy(update={"wait_s": 0.0}), settings.limits)
    with closing(reader) if reader is not None else nullcontext():
        decoded = decode_message(
            fetched,
            settings.limits,
            kept_headers=(),
            ingest_time_ms=fetched.timestamp_ms,
            preprocessing=settings.model.preprocessing,
            prepare=lambda _: torch.empty(0),
            keeps_files=True,
            read=reader,
        )
    index = row["index"]
    data: bytes | None = decoded.files[index] if index < len(decoded) else None
    if data is None:
        error = decoded.columns["error"][index] if index < len(decoded) else "it has fewer images"
        raise InputDataError(f"the image is not in the message any more: {error}", str(fetched))
    if (found := hashlib.sha256(data).hexdigest()) != row["sha256"]:
        raise InputDataError(
            f"the message holds another image, of the SHA-256 {found}",
            str(fetched),
            "Was the topic deleted and made anew, or what the message refers to replaced?",
        )
    return data


def pixels_of(data: bytes, settings: Settings | None) -> NDArray[np.uint8]:
    """The picture in its own size and colours, (H, W, 3).

    Raises:
        InputDataError: It cannot be decoded within the limits.
    """
    limits = LimitSettings() if settings is None else settings.limits
    own = PreprocessingSettings() if settings is None else settings.model.preprocessing
    found = decode_image(data, limits, None, own.model_copy(update={"channel_order": "rgb"}))
    if isinstance(found, Refusal):
        raise _undecodable(found)
    return found.pixels.permute(1, 2, 0).numpy()


def _undecodable(refusal: Refusal) -> InputDataError:
    action = "Give --config, if the monitor has limits or preprocessing of its own"
    return InputDataError(f"the image cannot be decoded: {refusal.error}", "", action)


def rescore(
    row: dict[str, Any],
    data: bytes,
    limits: LimitSettings,
    loaded: LoadedModel,
    calibration: Calibration,
) -> list[dict[str, Any]]:
    """Score an image again as a worker does, alone in its batch; first come the fingerprints.

    Each has a ``name``, what is ``logged`` and what it is ``now``, and of numbers ``grown_by``.
    """
    clock = SystemClock()
    decode = MessageDecoder(
        preprocessing=loaded.preprocessing, limits=limits, kept_headers=(), clock=clock
    )
    score = RowScorer(
        score_images=open_lane(loaded, base_scores_of(calibration, loaded), batch_size=1),
        class_names=loaded.class_names,
        calibration=calibration,
        clock=clock,
        decode_on_cpu=partial(on_cpu, limits=limits, preprocessing=loaded.preprocessing),
    )
    partition = TopicPartition(row["topic"], row["partition"])
    message = Message(
        partition, row["offset"], round(row["event_time"].timestamp() * 1000), None, data
    )
    now: dict[str, Any] = {
        "model_fingerprint": loaded.fingerprint,
        "calibration_fingerprint": calibration.fingerprint,
        **score([decode(message)]).select(["status", *SCORE_COLUMNS]).to_pylist()[0],
    }
    compared = []
    for name, value in now.items():
        logged = row[name]
        is_number = isinstance(value, float) and isinstance(logged, float)
        grown_by = value - logged if is_number else None
        if value is not None or logged is not None:
            compared.append({"name": name, "logged": logged, "now": value, "grown_by": grown_by})
    return compared


def nap_picture(data: bytes, loaded: LoadedModel, limits: LimitSettings) -> NDArray[np.uint8]:
    """Where NAP comes from, in red to yellow over what the model sees: (H, W, 3).

    Raises:
        FeatureMapError: The model's prior is not read from a map of rows and columns.
        InputDataError: The image cannot be decoded.
    """
    seen = on_cpu(data, limits, loaded.preprocessing)
    if isinstance(seen, Refusal):
        raise _undecodable(seen)
    parts = loaded.feature_site.parts
    if any(
        part.kind == "cls_attention" or min(part.shape[1:]) == 1 or part.layout.tiles > 1
        for part in parts
    ):
        raise FeatureMapError(
            "its positions are no rows and columns: there is no picture of it",
            str(loaded.feature_site),
            "Leave out --map: it is for convolutional networks",
        )
    layout = torch.channels_last if loaded.execution.channels_last else torch.contiguous_format
    images = loaded.normalise(seen[None].to(loaded.device), layout).to(loaded.input_dtype)
    # Not `LoadedModel.forward`, which reads the map too: each would see what the other does.
    with (
        computing(loaded.execution, loaded.device),
        torch.inference_mode(),
        capture(loaded.module, loaded.feature_site, nap_by_position) as captured,
    ):
        loaded.module(images)
    if len(captured.parts) < len(parts):
        raise FeatureMapError("the forward pass did not reach it", str(loaded.feature_site))
    size = [int(side) for side in seen.shape[1:]]
    heat = torch.zeros(size)
    for number, part in enumerate(parts):
        found = captured.parts[number].float().cpu().reshape(1, 1, *part.shape[1:])
        heat += part.shape[0] * functional.interpolate(found, size, mode="bilinear")[0, 0]
    strength = (heat / heat.max().clamp_min(1e-12))[..., None]
    colour = torch.cat((torch.ones_like(strength), strength, torch.zeros_like(strength)), dim=2)
    grey = seen.float().mean(dim=0)[..., None]
    mixed = grey + _STRENGTH * strength * (255 * colour - grey)
    times = -(-_SMALLEST_SIDE // min(size))
    enlarged = mixed.round().to(torch.uint8).repeat_interleave(times, 0)
    return enlarged.repeat_interleave(times, 1).numpy()
