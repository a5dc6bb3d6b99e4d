"""What a worker needs where the model runs elsewhere: outputs are read, scored and judged.

Nothing is loaded but the calibration and, where scores take it, the last linear layer.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from nap_stream.decode.outputs import OutputShapes, read_outputs
from nap_stream.errors import CalibrationError, FingerprintMismatchError, ModelError
from nap_stream.model.elsewhere import (
    ElsewhereModel,
    elsewhere_fingerprint,
    elsewhere_of,
    load_head,
)
from nap_stream.model.factory import class_names_of
from nap_stream.model.forward import BatchScores, Forward, score_forward
from nap_stream.model.output import ENOUGH_IMAGES, LogitsHook, OutputFacts, as_logits, wrong_kind
from nap_stream.records import DecodedRows, Message, ModelOutput
from nap_stream.settings.schema import LimitSettings, ModelSettings, OutputKind

_SUM_TOLERANCE = 2e-3
"""Largest difference of a row's sum from one: 16-bit probabilities are rounded so."""
_SLACK = 1e-2
"""How far probabilities may lie outside [0, 1], and log-probabilities above 0."""


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
    _require_head(document.scores, facts, head, settings)
    kind = settings.output_kind or facts.output.kind
    shapes = _shapes(facts, kind, needs_features=any(map(needs_features, document.scores)))
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
    scores: Sequence[BaseScore], facts: ModelFacts, head: Head | None, settings: ModelSettings
) -> None:
    taking = [name for name in scores if needs_head(name)]
    if taking and head is None:
        raise CalibrationError(
            f"the calibration's {taking[0]} takes the last linear layer, and none is given",
            settings.where,
            "Name its file in model.elsewhere.head, or calibrate with a method that takes none",
        )
    if head is not None and facts.head is not None and head.weight.shape != facts.head.shape:
        raise ModelError(
            f"the last linear layer is of shape {head.weight.shape}, at calibration it was of "
            f"{facts.head.shape}",
            f"model.elsewhere.head = {elsewhere_of(settings).head}",
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


@dataclass(slots=True, eq=False)
class KindCheck:
    """Says which rows of logits are none: probabilities, votes and the like. For many threads.

    Without a kind, the first rows are looked at, as calibration looks at images, until they can be
    told: 20 of them, or less where all are probabilities. While they are wrong, all later ones are
    refused, and looked at again. With a kind, each row must be of it.
    """

    kind: OutputKind | None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _facts: OutputFacts | None = None
    _problem: str | None = None
    _is_settled: bool = False

    def __call__(self, logits: NDArray[np.float32]) -> Sequence[str | None]:
        """What is wrong with each of at least one finite row, (n, K)."""
        if self.kind is not None:
            return self._of_kind(logits, self.kind)
        if self._is_settled:
            return [None] * len(logits)
        with self._lock:
            return [self._seen(OutputFacts.of(logits))] * len(logits)

    def _seen(self, new: OutputFacts) -> str | None:
        facts = OutputFacts.join([new] if self._facts is None else [self._facts, new])
        assert facts is not None
        if facts.images < ENOUGH_IMAGES:
            self._facts = facts
            are_probabilities = facts.lowest >= 0 and facts.sum_error <= _SUM_TOLERANCE
            early = "all rows so far are probabilities and no logits: each sums to one"
            return self._problem or (f"{early}. {_ADVICE}" if are_probabilities else None)
        wrong = wrong_kind(facts, None)
        self._problem = None if wrong is None else f"{wrong.problem}. {wrong.action}"
        self._facts, self._is_settled = None, wrong is None
        return self._problem

    @staticmethod
    def _of_kind(logits: NDArray[np.float32], kind: OutputKind) -> Sequence[str | None]:
        low, high = logits.min(axis=1), logits.max(axis=1)
        is_wrong = np.zeros(len(logits), np.bool_)
        if kind in {"probabilities", "sigmoid"}:
            is_wrong = (low < -_SLACK) | (high > 1 + _SLACK)
        elif kind == "log_probabilities":
            is_wrong = high > _SLACK
        return [
            f"model.output_kind is {kind}, and values lie in [{low[row]:.3g}, {high[row]:.3g}]"
            if is_wrong[row]
            else None
            for row in range(len(logits))
        ]


_ADVICE = (
    "Send what enters the last softmax, or set model.output_kind: probabilities; if they are "
    "logits all the same, model.output_kind: logits"
)


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
        kinds=KindCheck(kind),
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


def score_outputs(
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
