"""What a calibration says, apart from its arrays: the tree of ``calibration.json``."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from nap_stream.core.judging import Group, Rule
from nap_stream.core.methods import Method, parse_method
from nap_stream.core.score_specs import BaseScore, ScoreParameters
from nap_stream.core.weight_curve import WeightSearch
from nap_stream.model.feature_site import FeatureSite, HeadSite
from nap_stream.settings import PreprocessingSettings


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelFacts(_Part):
    """The model that the calibration is valid for.

    ``fingerprint`` covers factory, arguments, weights and preprocessing, ``weights_fingerprint``
    the state dict alone. ``head`` is the last linear layer, null where there is none.
    """

    factory: str
    fingerprint: str
    weights_fingerprint: str
    class_names: tuple[str, ...]
    preprocessing: PreprocessingSettings
    feature_site: FeatureSite
    head: HeadSite | None


class ImageFacts(_Part):
    """The images of a part: the name of their folder or file, and what became of them.

    ``source`` is null where the part is a share of the calibration images.
    """

    source: str | None
    scored: int
    undecodable: int


class CalibrationDocument(_Part):
    """Everything that a calibration states, but its arrays and its fingerprint.

    ``images`` are those whose scores calibrate the p-values, ``fit_images`` those from which
    base scores, references and weight were taken; null where the method needs none.
    ``weight`` is the base score's in the method, null where it has none; ``weight_search`` is
    null where it was given. ``location`` is what the geometric mean takes off its base score, 0
    elsewhere. ``scores`` are the base scores that were computed.
    ``mean_confidence`` is that of the calibration images, ``accuracy`` their share of right
    predictions, null where their labels are not the model's class names. ``warnings`` are
    sentences for people. ``array_sha256`` names the arrays by the hash of their bytes.
    """

    method: str
    weight: float | None
    location: float
    weight_search: WeightSearch | None
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
    warnings: tuple[str, ...]
    versions: dict[str, str]
    created_ms: int
    array_sha256: dict[str, str]

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        parse_method(value)
        return value

    @model_validator(mode="after")
    def _weight_belongs(self) -> Self:
        if self.parsed_method.has_weight != (self.weight is not None):
            raise ValueError(f"weight {self.weight} does not go with method {self.method}")
        base = self.parsed_method.base
        if base is not None and base not in self.scores:
            raise ValueError(f"method {self.method} needs the score {base}")
        return self

    @property
    def parsed_method(self) -> Method:
        """The method, parsed."""
        return parse_method(self.method)


class Envelope(CalibrationDocument):
    """``calibration.json``, version 2."""

    format: Literal["nap-stream calibration"]
    version: Literal[2]
    fingerprint: str
