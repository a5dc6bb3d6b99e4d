"""The base scores by name, what each needs, and what they are computed with.

Apart from the arithmetic, because nothing here needs torch, which takes seconds to import.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Self

import numpy as np
from numpy.typing import NDArray

_MATRIX_DIMENSIONS = 2


class BaseScore(StrEnum):
    """Scores of logits and penultimate features, all higher for in-distribution images."""

    MSP = "msp"
    MAX_LOGIT = "max_logit"
    ENERGY = "energy"
    REACT = "react"
    ASH = "ash"
    SCALE = "scale"
    DICE = "dice"
    KNN = "knn"
    FDBD = "fdbd"
    MAHALANOBIS = "mahalanobis"
    GEN = "gen"
    NCI = "nci"


_OF_LOGITS = frozenset({BaseScore.MSP, BaseScore.MAX_LOGIT, BaseScore.ENERGY, BaseScore.GEN})
_OF_HEAD = frozenset(set(BaseScore) - _OF_LOGITS - {BaseScore.KNN, BaseScore.MAHALANOBIS})
FIT_OF: Mapping[BaseScore, str] = MappingProxyType(
    {
        BaseScore.REACT: "react_clip",
        BaseScore.DICE: "feature_mean",
        BaseScore.KNN: "knn_bank",
        BaseScore.FDBD: "feature_mean",
        BaseScore.MAHALANOBIS: "gaussian",
        BaseScore.NCI: "feature_mean",
    }
)
"""Which of `Fits` a score takes; the others take nothing from in-distribution images."""


class TooFewImagesError(ValueError):
    """A score cannot be fitted on so few images."""


def needs_head(name: BaseScore) -> bool:
    """Whether the score needs the model's last linear layer."""
    return name in _OF_HEAD


def needs_features(name: BaseScore) -> bool:
    """Whether the score needs penultimate features, not only logits."""
    return name not in _OF_LOGITS


def needs_fit(name: BaseScore) -> bool:
    """Whether the score needs something from in-distribution images, see `fit_scores`."""
    return name in FIT_OF


def fits_of(names: Iterable[BaseScore]) -> set[str]:
    """Which of `Fits` scores take, by name."""
    return {FIT_OF[name] for name in names if name in FIT_OF}


@dataclass(frozen=True, slots=True)
class ScoreParameters:
    """Parameters of the base scores. Percentiles and sparsity are fractions in (0, 1).

    The defaults are those of OpenOOD's configuration. ReAct's 0.9 is its paper's, DICE's 0.9
    its paper's for CIFAR, pytorch-ood has 0.65 for ASH and SCALE. KNN's paper takes
    k = 50 for CIFAR-10 with a bank of 50,000; here 10 of 1,000 separated best of 1, 5, 10, 20 and
    50 on two CIFAR-10 networks together. 1,000 rows of 512 take 2 MB and half a million
    multiply-adds an image, where a ResNet-18's forward pass takes 1.8 billion. GEN's are
    those of its paper for ImageNet. Mahalanobis keeps ``mahalanobis_rank`` directions.

    Raises:
        ValueError: A parameter is out of range.
    """

    react_percentile: float = 0.9
    ash_percentile: float = 0.9
    scale_percentile: float = 0.85
    dice_sparsity: float = 0.9
    knn_k: int = 10
    knn_bank_size: int = 1_000
    gen_gamma: float = 0.1
    gen_classes: int = 100
    mahalanobis_rank: int = 128

    def __post_init__(self) -> None:
        for name in ("react_percentile", "ash_percentile", "scale_percentile", "dice_sparsity"):
            fraction = getattr(self, name)
            if not 0 < fraction < 1:
                raise ValueError(f"expected {name} as a fraction in (0, 1), got {fraction}")
        if not self.gen_gamma > 0 or min(self.gen_classes, self.mahalanobis_rank) < 1:
            raise ValueError(
                "expected gen_gamma above 0, gen_classes and mahalanobis_rank of at least 1, "
                f"got {self.gen_gamma}, {self.gen_classes}, {self.mahalanobis_rank}"
            )
        if not 1 <= self.knn_k <= self.knn_bank_size:
            raise ValueError(
                f"expected 1 <= knn_k <= knn_bank_size, "
                f"got {self.knn_k = }, {self.knn_bank_size = }"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The model's last linear layer: ``logits = features @ weight.T + bias``.

    ``weight`` is float32 (K, D), ``bias`` float32 (K,); zeros for a layer without one.

    Raises:
        ValueError: A dtype or shape is another.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __post_init__(self) -> None:
        check_float32("weight", self.weight, _MATRIX_DIMENSIONS)
        check_float32("bias", self.bias, 1)
        if len(self.weight) != len(self.bias):
            raise ValueError(
                f"expected a weight of shape (K, D) and a bias of shape (K,), "
                f"got {self.weight.shape = }, {self.bias.shape = }"
            )


@dataclass(frozen=True, slots=True, eq=False)
class UnitGaussian:
    """A normal law of features divided by their norm, by its main directions.

    ``mean`` is float32 (D,). ``directions`` are r eigenvectors of the covariance, float32 (r, D),
    of norm 1, with the greatest ``variances``, float32 (r,), positive, descending. ``rest`` is the
    variance of all other directions.

    Raises:
        ValueError: A dtype or shape is another, or a variance is not positive.
    """

    mean: NDArray[np.float32]
    directions: NDArray[np.float32]
    variances: NDArray[np.float32]
    rest: float

    def __post_init__(self) -> None:
        check_float32("mean", self.mean, 1)
        check_float32("directions", self.directions, _MATRIX_DIMENSIONS)
        check_float32("variances", self.variances, 1)
        if self.directions.shape != (len(self.variances), len(self.mean)):
            raise ValueError(
                f"expected directions of shape {(len(self.variances), len(self.mean))}, "
                f"got {self.directions.shape}"
            )
        if not (self.variances > 0).all() or not 0 < self.rest < np.inf:
            raise ValueError(f"expected variances above 0, got {self.variances} and {self.rest}")


@dataclass(frozen=True, slots=True, eq=False)
class Fits:
    """What scores took from in-distribution images; None where no score needed it.

    ``react_clip`` is an activation, ``feature_mean`` float32 (D,), ``knn_bank`` float32 (B, D) with
    rows of norm 1, ``gaussian`` what Mahalanobis needs. See `FIT_OF` for which score takes which.

    Raises:
        ValueError: A dtype or shape is another, or a value is not finite.
    """

    react_clip: float | None = None
    feature_mean: NDArray[np.float32] | None = None
    knn_bank: NDArray[np.float32] | None = None
    gaussian: UnitGaussian | None = None

    def __post_init__(self) -> None:
        if self.react_clip is not None and not np.isfinite(self.react_clip):
            raise ValueError(f"expected a finite react_clip, got {self.react_clip}")
        if self.feature_mean is not None:
            check_float32("feature_mean", self.feature_mean, 1)
        if self.knn_bank is not None:
            check_float32("knn_bank", self.knn_bank, _MATRIX_DIMENSIONS)

    def only(self, names: Iterable[BaseScore]) -> Self:
        """Those that the named scores take."""
        others = {field.name for field in fields(self)} - fits_of(names)
        return replace(self, **dict.fromkeys(others, None))


def check_float32(what: str, array: NDArray[np.float32], dimensions: int) -> None:
    """Refuse an array of another dtype or number of dimensions, or with NaN or infinity."""
    if array.dtype != np.float32 or array.ndim != dimensions or not array.size:
        raise ValueError(
            f"expected {what} as float32 of {dimensions} dimensions, not empty, "
            f"got {array.dtype} of {array.shape}"
        )
    finite = np.isfinite(array)
    if not finite.all():
        raise ValueError(f"expected a finite {what}, got {array.size - finite.sum()} other values")
