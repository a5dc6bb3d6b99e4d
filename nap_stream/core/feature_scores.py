"""Base scores that ask where the penultimate features of an image lie.

Beside those of the in-distribution images (KNN, Mahalanobis), or in the cells of the model's last
linear layer (fDBD, NCI). All are float32, (N,), and higher for in-distribution images; a row of
features that is not finite scores NaN.
"""

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from nap_stream.core.score_specs import UnitGaussian

_SIMILARITIES_AT_ONCE = 2**24
"""Bounds memory: 64 MiB of float32, 335 images at a time against a bank of 50,000 rows."""

_MOST_CLASSES_KEPT = 4_096
"""Up to so many, the distances between the weights of all classes are kept: at most 64 MiB of
float32, and 600 MiB for a moment, measured, while they are made of 2,048 features. With more
classes those from the predicted ones are computed for each batch, in a few arrays of N x K float64:
10 MiB each for 64 images of 20,000 classes."""

_SAME = 1e-6
"""Rows that are nearer than this share of their norms are taken for the same."""

_SMALLEST = 1e-12
"""In place of 0, where it divides."""


def knn(features: torch.Tensor, bank: torch.Tensor, k: int) -> torch.Tensor:
    """Score images by the distance to their k-th neighbour (Sun et al., arXiv 2204.06507).

    The Euclidean distance between unit vectors is at most 2; ``2 - distance`` is positive, as
    fusion needs, where the paper uses the negative distance. Features of zeros have no
    direction: their distance to every row is 1. A row that is not finite scores NaN.

    Args:
        features: Any floating dtype, shape (N, D); they are divided by their norm here.
        bank: In-distribution features, float32, shape (B, D), every row of norm 1.
        k: Which neighbour, 1 <= k <= B. An image that is in the bank itself counts as its own
            first neighbour.

    Returns:
        float32 (N,) in [0, 2], higher = in-distribution.

    Raises:
        ValueError: ``k`` is out of range.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"expected 1 <= k <= {len(bank)} rows of the bank, got {k = }")
    rows = unit_rows(features)
    chunk = max(1, _SIMILARITIES_AT_ONCE // len(bank))
    with torch.autocast(rows.device.type, enabled=False):
        return torch.cat([_nearness(part, bank, k) for part in torch.split(rows, chunk)])


def _nearness(rows: torch.Tensor, bank: torch.Tensor, k: int) -> torch.Tensor:
    # Unit vectors are the nearer the greater their product is. The distance itself comes from
    # the difference: sqrt(2 - 2 product) has an error of 3e-4 near 0.
    neighbour = torch.topk(rows @ bank.T, k, dim=1).indices[:, -1]
    distance = torch.linalg.vector_norm(rows - bank[neighbour], dim=1)
    return torch.clamp(2 - distance, 0, 2)


def unit_rows(features: torch.Tensor) -> torch.Tensor:
    """Divide each row by its Euclidean norm; a row of zeros stays so.

    From any floating dtype, (N, D), to float32 (N, D); NaN in rows that are not finite.
    """
    wide = features.float()
    # The squares of large or small activations leave float32's range; of these they do not.
    peak = wide.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return functional.normalize(wide / peak, dim=1)


def unit_gaussian(features: NDArray[np.float32], rank: int) -> UnitGaussian:
    """Fit a normal law to features divided by their norm.

    The covariance is that of Ledoit and Wolf (2004), "A well-conditioned estimator for
    large-dimensional covariance matrices": the sample's, S, shrunk towards a multiple of the
    identity by the share that their lemma 3.3 gives. Only its ``rank`` greatest eigenvalues are
    kept, and the mean of the others.

    All of it is computed from the smaller of the two products of the n centred rows, so that few
    images of many features, or many of few, cost little.

    ``features`` are float32 (n, D), finite, n >= 2; ``rank`` >= 1.
    """
    unit = unit_rows(torch.from_numpy(features)).double().numpy()
    mean = unit.mean(axis=0)
    rows = unit - mean
    n, d = rows.shape
    product = rows @ rows.T if n < d else rows.T @ rows
    own, vectors = np.linalg.eigh(product / n)
    own, vectors = np.maximum(own[::-1], 0), vectors[:, ::-1]
    total, squares = own.sum(), (own**2).sum()
    level = total / d
    distance = squares - d * level**2  # of S from the multiple of the identity, squared
    error = ((rows**2).sum(axis=1) ** 2).mean() - squares  # of S, n times, squared
    shrinkage = min(1.0, max(0.0, error / n / distance)) if distance > 0 else 1.0
    kept = min(rank, int((own > own[0] * np.finfo(np.float64).eps * max(n, d)).sum())) or 1
    directions = vectors[:, :kept].T if n >= d else _unit(vectors[:, :kept].T @ rows)
    if not directions.any():
        directions = np.eye(1, d)  # without any variance one direction is as good as another
    variances = (1 - shrinkage) * own[:kept] + shrinkage * level
    all_of_it = (1 - shrinkage) * total + shrinkage * level * d
    rest = (all_of_it - variances.sum()) / (d - kept) if d > kept else 1.0
    return UnitGaussian(
        mean.astype(np.float32),
        np.ascontiguousarray(directions, dtype=np.float32),
        np.maximum(variances, _SMALLEST).astype(np.float32),
        float(np.float32(max(rest, _SMALLEST))),
    )


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = rows / np.maximum(norms, _SMALLEST)
    return unit


class Mahalanobis:
    """The negative squared Mahalanobis distance of unit features to their mean.

    Lee et al. (arXiv 1807.03888) measure to the nearest class's mean; here is one mean, so that few
    images do for many classes. Features are divided by their norm first, as Müller and Hein
    (arXiv 2505.18032) advise. ``gaussian`` is from `unit_gaussian`.
    """

    def __init__(self, gaussian: UnitGaussian, device: torch.device) -> None:
        self._mean = torch.tensor(gaussian.mean, device=device)
        self._directions = torch.tensor(gaussian.directions, device=device)
        self._variances = torch.tensor(gaussian.variances, device=device)
        self._rest = gaussian.rest

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Score features of any floating dtype, shape (N, D)."""
        with torch.autocast(features.device.type, enabled=False):
            rows = unit_rows(features) - self._mean
            along = (rows @ self._directions.T).square()
            # Rounding can bring what is left just below 0.
            beside = (rows.square().sum(dim=1) - along.sum(dim=1)).clamp_min(0)
            return -((along / self._variances).sum(dim=1) + beside / self._rest)


class Fdbd:
    """fDBD: how far the features are from the decision boundaries (Liu and Qin, arXiv 2312.11536).

    The mean over the other classes of the distance of the features to the boundary to that class
    (equation 4), over their distance to the mean of in-distribution features (equation 6). Classes
    with the same weights have no boundary between them, and count as 0.

    ``weight`` is the head's, float32 (K, D), ``bias`` float32 (K,), ``mean`` float32 (D,). With one
    class there is no boundary, and every score is 0. ``between`` is the table of distances between
    the weights of all classes, (K, K), where it was made before.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        mean: torch.Tensor,
        between: torch.Tensor | None = None,
    ) -> None:
        self._weight, self._bias, self._mean, self._between = weight, bias, mean, between
        if between is None and len(weight) <= _MOST_CLASSES_KEPT:
            self._between = _distances(weight, weight)

    def refitted(self, mean: NDArray[np.float32]) -> Self:
        """The same head with another mean of in-distribution features, (D,)."""
        on_device = torch.tensor(mean, device=self._weight.device)
        return type(self)(self._weight, self._bias, on_device, self._between)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Score features of any floating dtype, shape (N, D)."""
        wide = features.float()
        with torch.autocast(wide.device.type, enabled=False):
            logits = functional.linear(wide, self._weight, self._bias)
            largest, predicted = logits.max(dim=1, keepdim=True)
            between = self._from(predicted[:, 0])
            # Classes with the same weights have no boundary between them.
            distances = torch.where(between > 0, (largest - logits) / between, 0)
            from_mean = torch.linalg.vector_norm(wide - self._mean, dim=1)
            others = max(1, len(self._weight) - 1)
            score: torch.Tensor = distances.sum(dim=1) / others / from_mean.clamp_min(_SMALLEST)
        return score.where(wide.isfinite().all(dim=1), torch.nan)

    def _from(self, classes: torch.Tensor) -> torch.Tensor:
        """The distances from the weights of some classes to those of all."""
        if self._between is not None:
            return self._between[classes]
        return _distances(self._weight[classes], self._weight)


def _distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Between all rows of both; 0 between rows that are the same but for rounding."""
    wide, other_wide = one.double(), other.double()
    norms = wide.norm(dim=1)[:, None] + other_wide.norm(dim=1)
    distances = torch.cdist(wide, other_wide)
    return distances.where(distances > _SAME * norms, 0).float()


def nci(
    features: torch.Tensor, mean: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """NCI: how near the features are to their class's weights (Liu and Qin, arXiv 2311.01479).

    The product of the predicted class's weights with the direction of the centred features. The
    paper adds a multiple of the features' L1 norm, which it chooses for each network; here is none.

    Features are of any floating dtype, (N, D), the rest float32: ``mean`` (D,) of in-distribution
    features, the head's ``weight`` (K, D) and ``bias`` (K,).
    """
    wide = features.float()
    with torch.autocast(wide.device.type, enabled=False):
        predicted = functional.linear(wide, weight, bias).argmax(dim=1)
        centred = wide - mean
        norm = torch.linalg.vector_norm(centred, dim=1).clamp_min(_SMALLEST)
        score: torch.Tensor = (centred * weight[predicted]).sum(dim=1) / norm
    return score.where(wide.isfinite().all(dim=1), torch.nan)
