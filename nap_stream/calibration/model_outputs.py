"""What a model makes of one batch of image files: computed, or taken from the cache."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nap_stream.calibration.feature_cache import FeatureCache, cache_key
from nap_stream.calibration.pseudo_ood import VERSION, transformed
from nap_stream.calibration.versions import versions
from nap_stream.decode import Refusal, decode_image
from nap_stream.image_files import ImageFile
from nap_stream.model.loading import LoadedModel
from nap_stream.model.preprocessing import preprocess
from nap_stream.settings import LimitSettings

Arrays = dict[str, NDArray[Any]]

_ROUNDING = ("torch", "torchvision", "pillow", "numpy")
"""What decodes, resizes and computes: another version rounds otherwise."""


@dataclass(frozen=True, slots=True)
class PseudoBatch:
    """Which pseudo-OOD images to make; see `nap_stream.calibration.pseudo_ood.transformed`."""

    transform: str
    seed: int
    first_index: int


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    """Gives the outputs of a model, batch by batch.

    Args:
        loaded: The model.
        limits: What is refused before it is decoded.
        cache: Where outputs are kept; None keeps none.
        identity: All of a cache key that is the same for every batch.
    """

    loaded: LoadedModel
    limits: LimitSettings
    cache: FeatureCache | None
    identity: dict[str, Any]

    @classmethod
    def of(
        cls, loaded: LoadedModel, limits: LimitSettings, cache: FeatureCache | None
    ) -> "ModelOutputs":
        """Take note of everything but the images that decides what the outputs are."""
        found = versions()
        identity = {
            "model": loaded.fingerprint,
            "versions": {name: found[name] for name in _ROUNDING},
            "device": loaded.device.type,
            "site": str(loaded.feature_site),
            "head": str(loaded.head),
            "limits": limits.model_dump(mode="json"),
        }
        return cls(loaded, limits, cache, identity)

    def batch(self, files: list[ImageFile], pseudo: PseudoBatch | None) -> Arrays:
        """The outputs for n files, of which k can be decoded.

        Returns:
            ``decoded`` bool (n,); where k is not 0, ``logits`` float32 (k, K), ``nap``
            float32 (k,), and ``features`` float32 (k, D) where the model has a linear head.

        Raises:
            CalibrationError: The cache cannot be written.
        """
        if self.cache is None:
            return self._compute(files, pseudo)
        key = self._key(files, pseudo)
        kept = self.cache.get(key)
        if kept is None or not self._is_whole(kept, len(files)):
            kept = self._compute(files, pseudo)
            self.cache.put(key, kept)
        return kept

    def _is_whole(self, arrays: Arrays, files: int) -> bool:
        """Whether a file of the cache holds what `batch` returns."""
        if "decoded" not in arrays or arrays["decoded"].shape != (files,):
            return False
        decoded = int(arrays["decoded"].sum())
        expected = {"decoded"}
        if decoded:
            expected |= {"logits", "nap"} | ({"features"} if self.loaded.head else set())
        rows = {len(arrays[name]) for name in arrays if name != "decoded"}
        return arrays.keys() == expected and rows <= {decoded}

    def _key(self, files: list[ImageFile], pseudo: PseudoBatch | None) -> str:
        return cache_key(
            {
                **self.identity,
                "transform": (
                    [pseudo.transform, VERSION, pseudo.seed, pseudo.first_index] if pseudo else None
                ),
                "images": [hashlib.sha256(file.data).hexdigest() for file in files],
            }
        )

    def _compute(self, files: list[ImageFile], pseudo: PseudoBatch | None) -> Arrays:
        decoded = [decode_image(file.data, self.limits) for file in files]
        pixels = [
            preprocess(result.pixels, self.loaded.preprocessing)
            for result in decoded
            if not isinstance(result, Refusal)
        ]
        arrays: Arrays = {
            "decoded": np.array([not isinstance(result, Refusal) for result in decoded])
        }
        if not pixels:
            return arrays
        batch = torch.stack(pixels)
        if pseudo is not None:
            batch = transformed(pseudo.transform, batch, pseudo.seed, pseudo.first_index)
        found = self.loaded.forward(batch)
        arrays |= {"logits": found.logits.cpu().numpy(), "nap": found.nap.cpu().numpy()}
        if found.features is not None:
            arrays["features"] = found.features.cpu().numpy()
        return arrays
