"""One forward pass, all scores."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nap_stream.core.base_scores import BaseScores
from nap_stream.core.methods import NAP
from nap_stream.model.forward import Forward
from nap_stream.model.loading import LoadedModel
from nap_stream.model.preprocessing import input_size
from nap_stream.settings import PreprocessingSettings


@dataclass(frozen=True, slots=True)
class BatchScores:
    """The scores of a batch of N images, in its order.

    ``class_id`` is the predicted class, int64 (N,). ``values`` are NAP and the base scores by
    name, each float32 (N,), all higher for in-distribution images. Rows can hold NaN or infinity
    where the model yields them.
    """

    class_id: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        shapes = {self.class_id.shape} | {column.shape for column in self.values.values()}
        if len(shapes) != 1 or self.class_id.ndim != 1:
            raise ValueError(f"expected arrays of one shape (N,), got {shapes}")

    def is_finite(self) -> NDArray[np.bool_]:
        """Which rows hold finite values alone, shape (N,)."""
        finite = np.ones(self.class_id.shape, dtype=np.bool_)
        for column in self.values.values():
            finite &= np.isfinite(column)
        return finite


class OnePassScorer:
    """Score batches with one forward pass each. For one thread at a time.

    The model computes exactly what it would without the scorer, and keeps no hook between
    calls.

    Args:
        loaded: The model, from `load_model`.
        base_scores: What is computed beside NAP, for the model's device.
    """

    def __init__(self, loaded: LoadedModel, base_scores: BaseScores) -> None:
        self._loaded = loaded
        self._base_scores = base_scores
        self._size = input_size(loaded.preprocessing)

    @property
    def preprocessing(self) -> PreprocessingSettings:
        """What images must go through before they are scored."""
        return self._loaded.preprocessing

    def __call__(self, batch: torch.Tensor) -> BatchScores:
        """Score preprocessed images.

        Args:
            batch: uint8, shape (N, 3, H, W), as `preprocess` gives each; on any device.

        Raises:
            ValueError: The batch has another dtype or shape.
            ModelError: The model is in training mode, or returned something other than logits
                (N, classes).
            FeatureMapError: The forward pass did not reach the feature map.
        """
        if batch.dtype != torch.uint8 or batch.shape[1:] != (3, *self._size):
            raise ValueError(
                f"expected a uint8 batch of shape (N, 3, {self._size[0]}, {self._size[1]}), "
                f"got {batch.dtype} of {tuple(batch.shape)}"
            )
        return score_forward(self._loaded.forward(batch), self._base_scores)


def score_forward(seen: Forward, base_scores: BaseScores) -> BatchScores:
    """Compute the scores of a forward pass, and bring them to the CPU in one piece."""
    with torch.inference_mode():
        found = {NAP: seen.nap} | {
            str(name): score for name, score in base_scores(seen.logits, seen.features).items()
        }
        columns = torch.stack(tuple(found.values())).cpu().numpy()
        class_id = seen.logits.argmax(dim=1).cpu().numpy()
    return BatchScores(class_id, dict(zip(found, columns, strict=True)))
