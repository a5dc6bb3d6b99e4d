"""What a stream's scores are judged by."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.conformal import flag_rank, p_values, threshold
from nap_stream.core.fusion import fuse
from nap_stream.errors import FingerprintMismatchError
from nap_stream.model.feature_site import FeatureSite
from nap_stream.settings import PreprocessingSettings

if TYPE_CHECKING:
    # At run time a calibration needs no torch, which takes seconds to import.
    from nap_stream.model.loading import LoadedModel

ARRAY_DTYPES = {"energy": np.float32, "nap": np.float32, "sorted_scores": np.float64}


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a calibration says of N images, in their order, all of shape (N,).

    ``fused`` is float64, higher = in-distribution, as is ``ood_p_value``, in [1 / (m + 1), 1],
    small = out-of-distribution. ``is_ood`` is ``ood_p_value <= alpha``. A row whose scores hold
    NaN has NaN in both and is not flagged.
    """

    fused: NDArray[np.float64]
    ood_p_value: NDArray[np.float64]
    is_ood: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The scores of m held-out in-distribution images, and what follows from them.

    ``energy`` and ``nap`` are float32 (m,), in order of the images; ``sorted_scores`` are their
    fused scores, float64 (m,), ascending. An image is flagged where its p-value is at most
    ``alpha``: exactly where its fused score is below ``threshold``, the ``flag_rank``-th
    smallest of them. ``flag_rate_interval`` is where the true flag rate of in-distribution
    images lies with probability ``flag_rate_confidence`` over the draw of the images.

    ``weight`` is that of the base score ``base`` in the fused score, ``weight_choice`` how it
    was chosen. ``image_source`` is the name of the folder or file, ``undecodable`` how many
    images of it could not be used. ``fingerprint`` is the SHA-256 of all the rest.
    """

    alpha: float
    threshold: float
    flag_rank: int
    flag_rate_interval: tuple[float, float]
    flag_rate_confidence: float
    base: str
    weight: float
    weight_choice: str
    model_factory: str
    model_fingerprint: str
    feature_site: FeatureSite
    preprocessing: PreprocessingSettings
    image_source: str
    undecodable: int
    mean_confidence: float
    versions: Mapping[str, str]
    created_ms: int
    energy: NDArray[np.float32]
    nap: NDArray[np.float32]
    sorted_scores: NDArray[np.float64]
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        for name, array in self.arrays().items():
            if array.dtype != ARRAY_DTYPES[name] or array.shape != (self.size,):
                raise ValueError(f"{name} is {array.dtype} of {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds values that are not finite")
            frozen = array.copy()
            frozen.setflags(write=False)
            object.__setattr__(self, name, frozen)
        expected = flag_rank(self.alpha, self.size), threshold(self.sorted_scores, self.alpha)
        if (self.flag_rank, self.threshold) != expected or self.flag_rank < 1:
            raise ValueError(
                f"the rank and threshold do not follow from the scores: expected {expected}, "
                f"got {(self.flag_rank, self.threshold)}"
            )
        canonical = json.dumps(self.content(), sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        object.__setattr__(self, "fingerprint", digest)

    @property
    def size(self) -> int:
        """How many images it was made with, m."""
        return len(self.sorted_scores)

    def judge(self, energy: NDArray[np.floating], nap: NDArray[np.floating]) -> Judgement:
        """Judge images by their scores, each of shape (N,) and any float dtype."""
        fused = fuse(energy, nap, self.weight)
        p = p_values(self.sorted_scores, fused)
        return Judgement(fused, p, p <= self.alpha)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in ARRAY_DTYPES}

    def content(self) -> dict[str, Any]:
        """Everything as a JSON tree, the arrays by their SHA-256; without the fingerprint."""
        tree = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ARRAY_DTYPES and name != "fingerprint"
        }
        return tree | {
            "flag_rate_interval": list(self.flag_rate_interval),
            "feature_site": asdict(self.feature_site) | {"shape": list(self.feature_site.shape)},
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "versions": dict(self.versions),
            "size": self.size,
            "arrays": {name: _sha256(array) for name, array in self.arrays().items()},
        }


def require_fingerprint(calibration: Calibration, loaded: "LoadedModel") -> None:
    """Refuse a calibration that was made with another model.

    Raises:
        FingerprintMismatchError: Weights, factory or preprocessing differ, or the feature map
            is read elsewhere.
    """
    if calibration.model_fingerprint != loaded.fingerprint:
        raise FingerprintMismatchError(
            f"the calibration was made with model {calibration.model_fingerprint}, and this is "
            f"model {loaded.fingerprint}: factory, arguments, weights or preprocessing differ",
            f"calibration {calibration.fingerprint} of {calibration.model_factory}",
            "Calibrate this model, or configure the calibrated one. A factory that initialises "
            "weights at random gives another model each time: set model.weights",
        )
    if calibration.feature_site != loaded.feature_site:
        raise FingerprintMismatchError(
            f"the calibration was made with the feature map at the {calibration.feature_site}, "
            f"and it is now read at the {loaded.feature_site}",
            f"calibration {calibration.fingerprint} of model {loaded.fingerprint}",
            "Set model.feature_layer as it was, or calibrate anew",
        )


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()
