"""One forward pass, all scores."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nap_stream.core.nap import nap
from nap_stream.core.scores import energy, msp
from nap_stream.errors import FeatureMapError, ModelError
from nap_stream.model.feature_map import capture
from nap_stream.model.loading import LoadedModel
from nap_stream.model.preprocessing import input_size
from nap_stream.settings import PreprocessingSettings


@dataclass(frozen=True, slots=True)
class BatchScores:
    """The scores of a batch of N images, in its order.

    ``class_id`` is int64, the others are float32, all of shape (N,). ``confidence`` is MSP,
    ``energy`` logsumexp of the logits, ``nap`` the Neural Activation Prior: all are higher for
    in-distribution images. Rows can hold NaN or infinity where the model yields them.
    """

    class_id: NDArray[np.int64]
    confidence: NDArray[np.float32]
    energy: NDArray[np.float32]
    nap: NDArray[np.float32]

    def __post_init__(self) -> None:
        shapes = {a.shape for a in (self.class_id, self.confidence, self.energy, self.nap)}
        if len(shapes) != 1 or self.class_id.ndim != 1:
            raise ValueError(f"expected four arrays of one shape (N,), got {shapes}")

    def is_finite(self) -> NDArray[np.bool_]:
        """Which rows hold finite values alone, shape (N,)."""
        return np.isfinite(self.confidence) & np.isfinite(self.energy) & np.isfinite(self.nap)


class OnePassScorer:
    """Score batches with one forward pass each. For one thread at a time.

    The model computes exactly what it would without the scorer, and keeps no hook between
    calls.

    Args:
        loaded: The model, from `load_model`.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
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
            ModelError: The model returned something other than logits (N, classes).
            FeatureMapError: The forward pass did not reach the feature map.
        """
        if batch.dtype != torch.uint8 or batch.shape[1:] != (3, *self._size):
            raise ValueError(
                f"expected a uint8 batch of shape (N, 3, {self._size[0]}, {self._size[1]}), "
                f"got {batch.dtype} of {tuple(batch.shape)}"
            )
        site = self._loaded.feature_site
        with torch.inference_mode():
            pixels = self._loaded.normalise(batch)
            with capture(self._loaded.module, site, nap) as captured:
                logits = self._loaded.module(pixels)
            if captured.value is None:
                raise FeatureMapError(
                    "the forward pass did not reach the feature map",
                    str(site),
                    "The model must take the same way for every image",
                )
            self._check(logits, len(batch))
            columns = torch.stack((msp(logits), energy(logits), captured.value)).cpu().numpy()
            class_id = logits.argmax(dim=1).cpu().numpy()
        return BatchScores(class_id, columns[0], columns[1], columns[2])

    def _check(self, logits: object, images: int) -> None:
        expected = (images, len(self._loaded.class_names))
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else None
        if shape != expected:
            raise ModelError(
                f"the model returned {type(logits).__name__} of shape {shape}, "
                f"expected logits of shape {expected}",
                "the forward pass",
                "The model must return one row of logits an image, whatever the batch's size",
            )
