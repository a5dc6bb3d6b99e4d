"""A calibration: what it states, its arrays, and how a stream's scores are judged by it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.calibration import baseline as of_baseline
from nap_stream.calibration.document import CalibrationDocument, fingerprint_of
from nap_stream.core.blocks import Blocks
from nap_stream.core.conformal import ConformalTest
from nap_stream.core.methods import NAP, MethodScorer
from nap_stream.core.score_specs import (
    Fits,
    UnitGaussian,
    fits_of,
)
from nap_stream.core.tails import FlagRateLaw
from nap_stream.drift.records import BaselineFacts, CalibrationFacts
from nap_stream.errors import CalibrationError, FingerprintMismatchError
from nap_stream.settings.schema import ScoringSettings

if TYPE_CHECKING:
    from nap_stream.core.base_scores import BaseScores
    from nap_stream.model.load import KnownModel


SCORE = "score"
CLASS_ID = "class_id"
FEATURE_MEAN = "fit.feature_mean"
KNN_BANK = "fit.knn_bank"
GAUSSIAN_MEAN = "fit.gaussian_mean"
GAUSSIAN_DIRECTIONS = "fit.gaussian_directions"
GAUSSIAN_VARIANCES = "fit.gaussian_variances"
VALUE = "value."
REFERENCE = "reference."
_ARRAYS_OF_FIT = {
    "feature_mean": {FEATURE_MEAN: 1},
    "knn_bank": {KNN_BANK: 2},
    "gaussian": {GAUSSIAN_MEAN: 1, GAUSSIAN_DIRECTIONS: 2, GAUSSIAN_VARIANCES: 1},
}
"""Of each of `Fits` that is kept as arrays, all float32: their names and numbers of dimensions."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a calibration says of N images, in their order, all of shape (N,).

    ``fused`` is float64, the score of the calibration's method, higher = in-distribution.
    ``ood_p_value`` is float64 in (0, 1], small = out-of-distribution. ``is_ood`` is
    ``ood_p_value <= alpha``. A row whose values hold NaN has NaN in both and is not flagged.
    ``calibration_p_value`` is what the p-value would be by the calibration images, where
    ``ood_p_value`` is by a baseline; None without one.
    """

    fused: NDArray[np.float64]
    ood_p_value: NDArray[np.float64]
    is_ood: NDArray[np.bool_]
    calibration_p_value: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The scores of m held-out in-distribution images, and what follows from them.

    ``arrays`` by name: ``score`` float64 (m,), the method's scores in order of the images;
    ``class_id`` int32 (m,), the predicted classes; ``value.<name>`` float32 (m,), NAP and each
    base score; ``reference.<name>`` float64 (r,), ascending, where the method takes p-values;
    ``fit.feature_mean`` float32 (D,) for DICE, fDBD and NCI, ``fit.knn_bank`` float32 (B, D) for
    KNN, ``fit.gaussian_mean`` float32 (D,), ``fit.gaussian_directions`` (r, D) and
    ``fit.gaussian_variances`` (r + 1,), the last for the rest, for Mahalanobis, where those were
    fitted. ``fingerprint`` is the SHA-256 of all the rest, but the speeds.

    With a baseline the scores and classes are those of m records of a stretch of the log, there
    are no values, and `nap_stream.calibration.baseline.ARRAYS` are there besides.

    Raises:
        ValueError: The document and the arrays contradict each other.
    """

    document: CalibrationDocument
    arrays: Mapping[str, NDArray[Any]]
    fingerprint: str = field(init=False)
    _test: ConformalTest = field(init=False, repr=False)
    _fuse: MethodScorer = field(init=False, repr=False)
    _parent_test: ConformalTest | None = field(init=False, repr=False)
    _blocks: Blocks | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        arrays = {name: _frozen(array) for name, array in self.arrays.items()}
        object.__setattr__(self, "arrays", MappingProxyType(arrays))
        _check_arrays(self.document, arrays)
        hashes = array_sha256(arrays)
        if hashes != self.document.array_sha256:
            wrong = sorted(set(hashes.items()) ^ set(self.document.array_sha256.items()))
            raise ValueError(f"the arrays are not those that are named: {wrong[0][0]} differs")
        test = self._test_by(SCORE, CLASS_ID)
        if test.groups != self.document.groups:
            raise ValueError("the thresholds do not follow from the scores")
        fuse = MethodScorer(
            self.document.parsed_method,
            weight=self.document.weight,
            location=self.document.location,
            reference=self.references,
            weights=self.document.weights,
        )
        object.__setattr__(self, "_test", test)
        object.__setattr__(self, "_fuse", fuse)
        parent_test = blocks = None
        if self.document.baseline is not None:
            parent_test = self._test_by(of_baseline.PARENT_SCORE, of_baseline.PARENT_CLASS_ID)
            blocks = of_baseline.blocks_in(self.document.baseline, arrays)
        object.__setattr__(self, "_parent_test", parent_test)
        object.__setattr__(self, "_blocks", blocks)
        object.__setattr__(self, "fingerprint", fingerprint_of(self.document))

    def __reduce__(self) -> tuple[Any, ...]:
        return Calibration, (self.document, dict(self.arrays))

    def _test_by(self, score: str, class_id: str) -> ConformalTest:
        document, arrays = self.document, self.arrays
        classes = len(document.model.class_names)
        own = arrays[class_id].astype(np.int64)
        return ConformalTest(document.rule, arrays[score], own, classes)

    @property
    def alpha(self) -> float:
        """The p-value at and below which an image is flagged."""
        return self.document.rule.alpha

    @property
    def size(self) -> int:
        """How many images its scores come from, m; of a baseline, how many records."""
        return len(self.arrays[SCORE])

    @property
    def facts(self) -> CalibrationFacts:
        """What the drift monitor and its alerts need to know."""
        groups = self.document.groups
        return CalibrationFacts(
            alpha=self.alpha,
            size=self.size,
            per_class=self.document.rule.per_class,
            flag_rate_laws=tuple(sorted({FlagRateLaw(g.flag_rank, g.size) for g in groups})),
            groups=len(groups),
            tail_laws=self._test.tail_laws(),
            fingerprint=self.fingerprint,
            model_fingerprint=self.document.model.fingerprint,
            baseline=self._baseline_facts(),
        )

    def _baseline_facts(self) -> BaselineFacts | None:
        baseline = self.document.baseline
        if baseline is None or self._blocks is None:
            return None
        return BaselineFacts(
            name=baseline.log_root,
            by=baseline.by,
            since_ms=baseline.since_ms,
            until_ms=baseline.until_ms,
            made_ms=self.document.created_ms,
            made_by=baseline.made_by,
            reason=baseline.reason,
            blocks=self._blocks,
            kinds=baseline.kinds,
            one_per_pane_ms=baseline.pane_ms if baseline.one_per_pane else None,
        )

    @property
    def flag_rate_interval(self) -> tuple[float, float]:
        """Where the true flag rate of the group lies whose rate may be the highest.

        At the document's confidence. Not what bounds a window: see `facts`.
        """
        return self._test.weakest.flag_rate_interval(self.document.flag_rate_confidence)

    @property
    def fits(self) -> Fits:
        """What base scores took from in-distribution images."""
        return Fits(
            react_clip=self.document.react_clip,
            feature_mean=self.arrays.get(FEATURE_MEAN),
            knn_bank=self.arrays.get(KNN_BANK),
            gaussian=_gaussian(self.arrays),
        )

    @property
    def references(self) -> dict[str, NDArray[np.float64]]:
        """In-distribution values by name, ascending, for methods that take p-values."""
        return _with_prefix(self.arrays, REFERENCE)

    @property
    def values(self) -> dict[str, NDArray[np.float32]]:
        """NAP and base scores of the calibration images, by name, each (m,)."""
        return _with_prefix(self.arrays, VALUE)

    def judge(
        self, values: Mapping[str, NDArray[np.floating]], class_id: NDArray[np.int64]
    ) -> Judgement:
        """Judge N images.

        ``values`` are those that the method needs, by name, each (N,) of any float dtype;
        ``class_id`` are the predicted classes, int64 (N,).

        Raises:
            KeyError: A value that the method needs is missing.
        """
        return self.judge_fused(self._fuse(values), class_id)

    def terms(
        self, values: Mapping[str, NDArray[np.floating]]
    ) -> dict[str, tuple[float, NDArray[np.float64]]]:
        """What the method sums, by score: its weight, and its log p-values of N images, (N,)."""
        return self._fuse.terms(values)

    def judge_fused(self, fused: NDArray[np.float64], class_id: NDArray[np.int64]) -> Judgement:
        """Judge N images by their scores of the method, float64 (N,), such as the log has them."""
        p = self._test.p_values(fused, class_id)
        parent = self._parent_test
        by_parent = None if parent is None else parent.p_values(fused, class_id)
        return Judgement(fused, p, p <= self.alpha, by_parent)


def array_sha256(arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """The SHA-256 of each array's bytes, in hexadecimal digits."""
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}


def base_scores_of(calibration: Calibration, loaded: "KnownModel") -> "BaseScores":
    """The base scores that a calibration was made with, ready to compute on the model's device."""
    from nap_stream.core.base_scores import BaseScores  # noqa: PLC0415  it loads torch

    document = calibration.document
    head = loaded.linear_head()
    return BaseScores(document.scores, document.parameters, head, calibration.fits, loaded.device)


def require_fingerprint(calibration: Calibration, loaded: "KnownModel") -> None:
    """Refuse a calibration that was made with another model.

    Raises:
        FingerprintMismatchError: Weights, factory or preprocessing differ, or the feature map
            is read elsewhere.
    """
    model = calibration.document.model
    if model.elsewhere is not None:
        raise FingerprintMismatchError(
            "the calibration was made with outputs of a model that runs elsewhere, and this one "
            "is loaded here",
            f"calibration {calibration.fingerprint} of {model.factory}",
            "Calibrate this model on images, or set model.elsewhere",
        )
    if model.fingerprint != loaded.fingerprint:
        raise FingerprintMismatchError(
            f"the calibration was made with model {model.fingerprint}, and this is "
            f"model {loaded.fingerprint}: factory, arguments, weights or preprocessing differ",
            f"calibration {calibration.fingerprint} of {model.factory}",
            "Calibrate this model, or configure the calibrated one. A factory that initialises "
            "weights at random gives another model each time: set model.weights",
        )
    require_sites(calibration, loaded)


def require_sites(calibration: Calibration, loaded: "KnownModel") -> None:
    """Refuse a model whose feature map or head is read elsewhere than at calibration.

    Raises:
        FingerprintMismatchError: They differ.
    """
    model = calibration.document.model
    if model.feature_site != loaded.feature_site or model.head != loaded.head:
        raise FingerprintMismatchError(
            f"the calibration was made with the feature map at the {model.feature_site} and the "
            f"head {model.head}; they are now at the {loaded.feature_site} and {loaded.head}",
            f"calibration {calibration.fingerprint} of model {loaded.fingerprint}",
            "Set model.feature_layer as it was, or calibrate anew",
        )


def require_scoring(calibration: Calibration, scoring: ScoringSettings) -> None:
    """Refuse settings that ask for other scores than the calibration was made with.

    Raises:
        CalibrationError: Method, parameters or further scores differ.
    """
    document = calibration.document
    differing = []
    if scoring.method not in {None, document.method}:
        differing.append(f"the method is {document.method}, not {scoring.method}")
    missing = [name for name in scoring.scores if name not in document.scores]
    if missing:
        differing.append(f"{', '.join(missing)} were not computed")
    if scoring.parameters() != document.parameters:
        differing.append(f"the parameters are {document.parameters}")
    if differing:
        raise CalibrationError(
            f"the calibration was made with another scoring section: {'; '.join(differing)}",
            "scoring",
            "Calibrate anew with this configuration, or set the section as it was",
        )


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    frozen = array.copy()
    frozen.setflags(write=False)
    return frozen


def _with_prefix(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _gaussian(arrays: Mapping[str, NDArray[Any]]) -> UnitGaussian | None:
    if GAUSSIAN_MEAN not in arrays:
        return None
    variances = arrays[GAUSSIAN_VARIANCES]
    return UnitGaussian(
        arrays[GAUSSIAN_MEAN], arrays[GAUSSIAN_DIRECTIONS], variances[:-1], float(variances[-1])
    )


def fit_arrays(fits: Fits) -> dict[str, NDArray[Any]]:
    """What base scores took from in-distribution images, as arrays of a calibration."""
    arrays: dict[str, NDArray[Any]] = {}
    if fits.feature_mean is not None:
        arrays[FEATURE_MEAN] = fits.feature_mean
    if fits.knn_bank is not None:
        arrays[KNN_BANK] = fits.knn_bank
    if fits.gaussian is not None:
        arrays[GAUSSIAN_MEAN] = fits.gaussian.mean
        arrays[GAUSSIAN_DIRECTIONS] = fits.gaussian.directions
        arrays[GAUSSIAN_VARIANCES] = np.append(
            fits.gaussian.variances, np.float32(fits.gaussian.rest)
        )
    return arrays


def _expected(document: CalibrationDocument) -> dict[str, tuple[type[np.generic], int]]:
    """Name, dtype and number of dimensions of each array."""
    expected: dict[str, tuple[type[np.generic], int]] = {
        SCORE: (np.float64, 1),
        CLASS_ID: (np.int32, 1),
    }
    if document.baseline is None:
        expected |= {f"{VALUE}{name}": (np.float32, 1) for name in (NAP, *document.scores)}
    else:
        expected |= of_baseline.ARRAYS
    if document.parsed_method.needs_reference:
        expected |= {f"{REFERENCE}{name}": (np.float64, 1) for name in document.terms}
    for fit in fits_of(document.scores) & _ARRAYS_OF_FIT.keys():
        expected |= {name: (np.float32, size) for name, size in _ARRAYS_OF_FIT[fit].items()}
    return expected


def _check_arrays(document: CalibrationDocument, arrays: Mapping[str, NDArray[Any]]) -> None:
    expected = _expected(document)
    if arrays.keys() != expected.keys():
        raise ValueError(f"expected the arrays {sorted(expected)}, got {sorted(arrays)}")
    m = len(arrays[SCORE])
    for name, (dtype, dimensions) in expected.items():
        array = arrays[name]
        if array.dtype != dtype or array.ndim != dimensions:
            raise ValueError(f"{name} is {array.dtype} of {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite")
        if (name == CLASS_ID or name.startswith(VALUE)) and len(array) != m:
            raise ValueError(f"{name} has {len(array)} values, there are {m} scores")
