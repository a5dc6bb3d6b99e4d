"""What a worker needs where the model runs elsewhere: outputs are read, scored and judged.

Nothing is loaded but the calibration and, where scores take it, the last linear layer.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from nap_stream.calibration.calibration import Calibration, base_scores_of
from nap_stream.calibration.document import ModelFacts
from nap_stream.clock import Clock
from nap_stream.core.base_scores import BaseScores
from nap_stream.core.score_specs import BaseScore, Head, needs_features, needs_head
from nap_stream.decode.message import decode_message
from nap_stream.decode.outputs import Check, OutputShapes, read_outputs
from nap_stream.errors import CalibrationError, FingerprintMismatchError, ModelError
from nap_stream.model.elsewhere import (
    ElsewhereModel,
    elsewhere_fingerprint,
    elsewhere_of,
    load_head,
)
from nap_stream.model.factory import class_names_of
from nap_stream.model.facts import LogitsHook
from nap_stream.model.forward import BatchScores, Forward, score_forward
from nap_stream.model.kind_check import HeadCheck, KindCheck
from nap_stream.model.output import as_logits
from nap_stream.records import DecodedRows, Message, ModelOutput
from nap_stream.settings.schema import LimitSettings, ModelSettings, OutputKind


@dataclass(frozen=True, slots=True, eq=False)
class KnownOutputs:
    """A model that runs elsewhere with its calibration: what rows must be like, and the scores."""

    model: ElsewhereModel
    shapes: OutputShapes
    base_scores: BaseScores


def known_outputs(calibration: Calibration, settings: ModelSettings) -> KnownOutputs:
    """Put together what a calibration and the settings say of a model that runs elsewhere.

    Raises:
        FingerprintMismatchError: The calibration is of another model.
        CalibrationError: It was made from images, and the settings do not allow that; or it has
            scores that take the last linear layer, and that is not given.
        ModelError: The last linear layer, or the class names, cannot be read or do not fit.
    """
    document, elsewhere = calibration.document, elsewhere_of(settings)
    facts, head = document.model, load_head(elsewhere)
    fingerprint = elsewhere_fingerprint(settings, head)
    where = f"calibration {calibration.fingerprint} of {facts.factory}"
    if facts.elsewhere is not None and facts.fingerprint != fingerprint:
        raise FingerprintMismatchError(
            f"the calibration was made with the outputs of {facts.factory}, {facts.fingerprint}, "
            f"and this is {elsewhere.name}, {fingerprint}: its name, model.output_kind or the last "
            "linear layer differ",
            where,
            "Calibrate with the outputs of this model, or configure the calibrated one",
        )
    if facts.elsewhere is None and not elsewhere.calibrated_on_images:
        raise CalibrationError(
            f"the calibration was made from images, with {facts.factory} loaded here. Whether "
            f"{elsewhere.name} computes the same cannot be checked",
            where,
            "If it is the same model with the same preprocessing, set "
            "model.elsewhere.calibrated_on_images: true; else calibrate with its outputs",
        )
    kind = settings.output_kind or facts.output.kind
    shapes = _shapes(facts, kind, needs_features=any(map(needs_features, document.scores)))
    _require_head(document.scores, facts, head, settings, shapes.features)
    model = ElsewhereModel(
        class_names=class_names_of(settings, facts.class_names, len(facts.class_names)),
        fingerprint=fingerprint,
        feature_site=facts.feature_site,
        parameters=head,
        features=shapes.features,
        output=LogitsHook((), kind),
    )
    return KnownOutputs(model, shapes, base_scores_of(calibration, model))


def _require_head(
    scores: Sequence[BaseScore],
    facts: ModelFacts,
    head: Head | None,
    settings: ModelSettings,
    features: int | None,
) -> None:
    taking = [name for name in scores if needs_head(name)]
    if taking and head is None:
        raise CalibrationError(
            f"the calibration's {taking[0]} takes the last linear layer, and none is given",
            settings.where,
            "Name its file in model.elsewhere.head, or calibrate with a method that takes none",
        )
    classes = len(facts.class_names)
    expected = (classes, features) if facts.head is None else facts.head.shape
    if head is not None and head.weight.shape != expected:
        known = (
            f"and the calibration has {classes} logits and {features or 'no'} features"
            if facts.head is None
            else f"at calibration it was of {facts.head.shape}"
        )
        raise ModelError(
            f"the last linear layer is of shape {head.weight.shape}, {known}",
            f"model.elsewhere.head = {elsewhere_of(settings).head}",
            "Give the layer whose input the features are, or leave it out",
        )


def _shapes(facts: ModelFacts, kind: OutputKind | None, *, needs_features: bool) -> OutputShapes:
    """What rows must be like, by what the calibration's were."""
    site, classes = facts.feature_site, len(facts.class_names)
    channels = sum(part.shape[0] for part in site.parts)
    is_several = len(site.parts) > 1 or site.layout.tiles > 1
    map_shape: tuple[int, ...] = (channels, 0, 0) if is_several else site.shape
    is_attention = site.kind == "cls_attention"
    if is_attention:
        map_shape = site.shape[2:]
    if facts.elsewhere is not None:
        features, are_means = facts.elsewhere.features, facts.elsewhere.are_means
    else:
        are_means = facts.head is None and not is_attention
        features = channels if are_means else None if facts.head is None else facts.head.shape[1]
    # A single output is that of the second of two classes.
    is_single = kind is not None and classes == 2  # noqa: PLR2004
    return OutputShapes(
        (classes, 1) if is_single else (classes,),
        features,
        map_shape,
        is_several=is_several,
        are_means=are_means,
        needs_features=needs_features,
    )


def _check_of(known: KnownOutputs | None) -> Check:
    """What says which rows are no logits, or not those of their features, in any threads."""
    lock = threading.Lock()
    kind = None if known is None else known.model.output.kind
    are_logits = KindCheck(kind)
    # A layer makes logits, and no probabilities of them.
    head = known.model.parameters if known is not None and kind in {None, "logits"} else None
    are_of_head = None if head is None else HeadCheck(head)
    classes = 0 if head is None else len(head.weight)

    def checked(
        outputs: NDArray[np.float32], features: NDArray[np.float32] | None
    ) -> Sequence[str | None]:
        with lock:
            problems = are_logits(outputs)
            # A single output is not made by a layer of two.
            if are_of_head is None or features is None or outputs.shape[1] != classes:
                return problems
            others = are_of_head(features, outputs)
            return [one or other for one, other in zip(problems, others, strict=True)]

    return checked


def output_decoder(
    known: KnownOutputs | None, limits: LimitSettings, kept_headers: tuple[str, ...], clock: Clock
) -> Callable[[Message], DecodedRows]:
    """What makes rows of messages, in any number of threads.

    Without a calibration it shows what messages hold: their first row says what is expected.
    """
    kind = None if known is None else known.model.output.kind

    def to_logits(found: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = as_logits(torch.from_numpy(found), kind).numpy()
        return logits

    read = partial(
        read_outputs,
        limits=limits,
        shapes=None if known is None else known.shapes,
        check_rows=_check_of(known),
        to_logits=to_logits,
    )

    def decode(message: Message) -> DecodedRows:
        return decode_message(
            message,
            limits,
            kept_headers=kept_headers,
            ingest_time_ms=clock.now_ms(),
            read_outputs=read,
        )

    return decode


def score_sent(
    outputs: Sequence[ModelOutput], _on_cpu: object, *, base_scores: BaseScores
) -> BatchScores:
    """The scores of at least one image's outputs, in order."""
    given = [one.features for one in outputs]
    # Where one has none, no score takes them.
    features = [one for one in given if one is not None]
    seen = Forward(
        torch.from_numpy(np.stack([one.logits for one in outputs])),
        torch.from_numpy(np.stack(features)) if len(features) == len(given) else None,
        torch.tensor([one.nap for one in outputs], dtype=torch.float32),
    )
    return score_forward(seen, base_scores)
