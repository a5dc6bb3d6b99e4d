"""KNN: how near an image's features lie to those of in-distribution images."""

import torch
from torch.nn import functional

_SIMILARITIES_AT_ONCE = 2**24
"""Bounds memory: 64 MiB of float32, 335 images at a time against a bank of 50,000 rows."""


def unit_rows(features: torch.Tensor) -> torch.Tensor:
    """Divide each row by its Euclidean norm; a row of zeros stays so.

    Args:
        features: Any floating dtype, shape (N, D).

    Returns:
        float32 (N, D); NaN in rows that are not finite.
    """
    wide = features.float()
    # The squares of large or small activations leave float32's range; of these they do not.
    peak = wide.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return functional.normalize(wide / peak, dim=1)


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
        return torch.cat([_score(part, bank, k) for part in torch.split(rows, chunk)])


def _score(rows: torch.Tensor, bank: torch.Tensor, k: int) -> torch.Tensor:
    # Unit vectors are the nearer the greater their product is. The distance itself comes from
    # the difference: sqrt(2 - 2 product) has an error of 3e-4 near 0.
    neighbour = torch.topk(rows @ bank.T, k, dim=1).indices[:, -1]
    distance = torch.linalg.vector_norm(rows - bank[neighbour], dim=1)
    return torch.clamp(2 - distance, 0, 2)
