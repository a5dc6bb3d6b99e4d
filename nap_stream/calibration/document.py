"""What a calibration states: ``calibration.json``, and the fingerprint of it."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from nap_stream.calibration.baseline import Baseline
from nap_stream.core.conformal import Group, Rule
from nap_stream.core.labels import ClassSeen
from nap_stream.core.methods import NAP, Method, parse_method
from nap_stream.core.score_specs import (
    BaseScore,
    ScoreParameters,
)
from nap_stream.core.selection import Selection, WeightSearch
from nap_stream.model.facts import (
    AS_IT_IS,
    Execution,
    FeatureSite,
    HeadSite,
    LogitsHook,
    MapLayout,
    Speeds,
    TokenRows,
)
from nap_stream.settings.schema import PreprocessingSettings


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ElsewhereFacts(_Part):
    """What the outputs of a model that runs elsewhere were like, beside their map and classes.

    ``features`` is D, null where none came with them. ``are_means`` says that they were the means
    of the map: it was sent without a column of features.
    """

    features: int | None
    are_means: bool


class ModelFacts(_Part):
    """The model that the calibration is valid for.

    ``fingerprint`` covers factory, arguments, weights and preprocessing, ``weights_fingerprint``
    the state dict alone. ``head`` is the last linear layer, null where there is none. ``output``
    says where the logits stand in what the model returns, where that is not logits alone.

    ``elsewhere`` is there where the model ran elsewhere, and its outputs alone were given. Then
    ``fingerprint`` covers its name, the kind of its outputs and the head; ``weights_fingerprint``
    is "unknown", and ``preprocessing`` null.
    """

    factory: str
    fingerprint: str
    weights_fingerprint: str
    class_names: tuple[str, ...]
    preprocessing: PreprocessingSettings | None
    feature_site: FeatureSite
    head: HeadSite | None
    output: LogitsHook = AS_IT_IS
    elsewhere: ElsewhereFacts | None = None

    @model_serializer(mode="wrap")
    def _later_keys_where_they_are_odd(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Fingerprints of before there was another output, or a model elsewhere, stay valid.
        plain = {"output": AS_IT_IS, "elsewhere": None}
        return {
            name: value
            for name, value in dump(self).items()
            if name not in plain or getattr(self, name) != plain[name]
        }

    @field_serializer("feature_site", mode="wrap")
    def _later_fields_where_set(
        self, site: FeatureSite, dump: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        # The fingerprint covers what is dumped: that of sites without the later fields stays valid.
        plain = {"layout": MapLayout(), "tokens": TokenRows(), "also": ()}
        return {
            name: value
            for name, value in dump(site).items()
            if name not in plain or getattr(site, name) != plain[name]
        }


class ImageFacts(_Part):
    """The images of a part: the name of their folder or file, and what became of them.

    ``source`` is null where the part is a share of the calibration images. Of ``warned`` of those
    that were scored the decoder warned.
    """

    source: str | None
    scored: int
    undecodable: int
    warned: int = 0

    @model_serializer(mode="wrap")
    def _warned_where_some_are(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Fingerprints of before they were counted stay valid.
        left_out = () if self.warned else ("warned",)
        return {key: value for key, value in dump(self).items() if key not in left_out}


class FaultSeen(_Part):
    """What the calibrated detector sees of a fault of the camera.

    ``flagged`` is the share of ``images`` faulty images with a p-value of at most alpha.
    ``records`` is how many records typically pass until the configured alarm fires on a stream
    that turns faulty; null where it does not, or where `drift` allows no detector.
    """

    fault: str
    images: int
    flagged: float
    records: float | None

    @property
    def alarm(self) -> str:
        """When the alarm fires, for people."""
        return "no alarm" if self.records is None else f"{self.records:,.0f} images"


def most_visible_first(faults: Iterable[FaultSeen]) -> list[FaultSeen]:
    """As people are shown them."""
    return sorted(faults, key=lambda seen: (-seen.flagged, seen.fault))


class CalibrationDocument(_Part):
    """Everything that a calibration states, but its arrays and its fingerprint.

    ``images`` are those whose scores calibrate the p-values, ``fit_images`` those from which
    base scores, references and weight were taken; null where the method needs none.
    ``weight`` is the base score's in the method, null where it has none; ``weight_search`` is
    null where it was given. ``selection`` holds the scores and weights of the method ``auto``,
    null for others. ``location`` is what the geometric mean takes off its base score, 0
    elsewhere. ``scores`` are the base scores that were computed.
    ``mean_confidence`` is that of the calibration images, ``accuracy`` their share of right
    predictions, null where their labels are not the model's class names. ``worst_classes`` are
    those of them that are predicted worst, the worst first; before version 5 there are none.
    ``faults`` say what
    the detector sees of faulty cameras. ``warnings`` are sentences for people. ``array_sha256``
    names the arrays by the hash of their bytes.

    ``execution`` is how the model computed, and must compute on the stream; ``speeds`` is what was
    measured to choose it, null where nothing was. Version 3 has neither.

    ``baseline`` is the stretch of a log whose scores calibrate the p-values in place of those of
    ``images``; null where there is none, and before version 6.
    """

    method: str
    weight: float | None
    location: float
    weight_search: WeightSearch | None
    selection: Selection | None
    rule: Rule
    groups: tuple[Group, ...]
    flag_rate_confidence: float
    scores: tuple[BaseScore, ...]
    parameters: ScoreParameters
    react_clip: float | None
    model: ModelFacts
    images: ImageFacts
    fit_images: ImageFacts | None
    mean_confidence: float
    accuracy: float | None
    faults: tuple[FaultSeen, ...]
    warnings: tuple[str, ...]
    versions: dict[str, str]
    created_ms: int
    array_sha256: dict[str, str]
    execution: Execution = Execution()
    speeds: Speeds | None = None
    worst_classes: tuple[ClassSeen, ...] = ()
    baseline: Baseline | None = None

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        parse_method(value)
        return value

    @model_validator(mode="after")
    def _weight_belongs(self) -> Self:
        if self.parsed_method.has_weight != (self.weight is not None):
            raise ValueError(f"weight {self.weight} does not go with method {self.method}")
        if self.parsed_method.selects != (self.selection is not None):
            raise ValueError(f"a selection goes with the method auto alone, not {self.method}")
        missing = [name for name in self.terms if name not in (NAP, *self.scores)]
        if missing:
            raise ValueError(f"method {self.method} needs the score {missing[0]}")
        return self

    @property
    def weights(self) -> dict[str, float] | None:
        """Of the scores that the method ``auto`` takes; null for other methods."""
        return None if self.selection is None else self.selection.weights

    @property
    def terms(self) -> tuple[str, ...]:
        """NAP and base scores, by name, that the method takes."""
        if self.selection is not None:
            return tuple(self.selection.weights)
        base = self.parsed_method.base
        takes_nap = base is None or self.parsed_method.has_weight
        return (*((NAP,) if takes_nap else ()), *(() if base is None else (str(base),)))

    @property
    def parsed_method(self) -> Method:
        """The method, parsed."""
        return parse_method(self.method)


class Envelope(CalibrationDocument):
    """``calibration.json``, of version 3 to 6."""

    format: Literal["nap-stream calibration"]
    version: Literal[3, 4, 5, 6]
    fingerprint: str


def fingerprint_of(document: CalibrationDocument) -> str:
    """SHA-256 of what the document states, in hexadecimal digits."""
    # What earlier versions did not have is left out where it says what was so then.
    left_out = {
        "speeds",
        *({"execution"} if document.execution == Execution() else ()),
        *(() if document.worst_classes else {"worst_classes"}),
        *(() if document.baseline is not None else {"baseline"}),
    }
    included = set(CalibrationDocument.model_fields) - left_out
    tree = document.model_dump(mode="json", include=included)
    canonical = json.dumps(tree, sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
