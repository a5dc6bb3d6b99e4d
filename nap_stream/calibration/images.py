"""From what people hold images in to one batch.

What a model made of images, kept on disk: two cores are slow, and a run can be cut off.

What a model makes of one batch of image files: computed, or taken from the cache.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from nap_stream.calibration.artifact import versions
from nap_stream.calibration.pseudo_ood import VERSION, transformed
from nap_stream.decode import Refusal, decode_image
from nap_stream.errors import CalibrationError
from nap_stream.image_files import ImageFile
from nap_stream.model.load import LoadedModel
from nap_stream.model.preprocessing import input_size, preprocess
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings

_CHANNELS = 3
_DIMENSIONS = 3


def one_batch(
    images: torch.Tensor | Sequence[torch.Tensor], preprocessing: PreprocessingSettings
) -> torch.Tensor:
    """Recognise images by dtype and shape, and bring pixels to the model's input size.

    Args:
        images: The model's own input, floating-point (N, 3, H, W); or RGB pixels, uint8
            (N, 3, h, w), or a sequence of uint8 tensors (3, h, w) of any sizes.
        preprocessing: What pixels go through.

    Returns:
        (N, 3, H, W): the floating-point tensor itself, or uint8 pixels, resized and cropped.

    Raises:
        ValueError: The images are something else, or the floating-point ones have another size.
    """
    size = input_size(preprocessing)
    if isinstance(images, torch.Tensor) and images.is_floating_point():
        if images.shape[1:] != (_CHANNELS, *size):
            raise _unexpected(images, size)
        return images
    is_batch = isinstance(images, torch.Tensor) and images.ndim == _DIMENSIONS + 1
    if not (is_batch or isinstance(images, Sequence)) or not all(map(_is_pixels, images)):
        raise _unexpected(images, size)
    pixels = [preprocess(image.contiguous(), preprocessing) for image in images]
    return torch.stack(pixels) if pixels else torch.zeros(0, _CHANNELS, *size, dtype=torch.uint8)


def rgb_tensor(image: Any) -> torch.Tensor:
    """Copy an array of RGB pixels, uint8 (h, w, 3), to a tensor (3, h, w).

    Raises:
        ValueError: It has another dtype or shape.
    """
    array = np.array(image, order="C")
    if array.dtype != np.uint8 or array.ndim != _DIMENSIONS or array.shape[2] != _CHANNELS:
        raise ValueError(
            f"expected RGB pixels, uint8 of shape (h, w, 3), got {array.dtype} of {array.shape}: "
            'read images with mode="RGB"'
        )
    return torch.from_numpy(array).permute(2, 0, 1)


def _is_pixels(image: Any) -> bool:
    return (
        isinstance(image, torch.Tensor)
        and image.dtype == torch.uint8
        and image.ndim == _DIMENSIONS
        and image.shape[0] == _CHANNELS
        and image.numel() > 0
    )


def _unexpected(images: Any, size: tuple[int, int]) -> ValueError:
    return ValueError(
        f"expected the model's input, one floating-point tensor (N, 3, {size[0]}, {size[1]}), or "
        "pixels, a uint8 tensor (N, 3, h, w) or a sequence of uint8 tensors (3, h, w), "
        f"got {_described(images)}"
    )


def _described(images: Any) -> str:
    if isinstance(images, torch.Tensor):
        return f"{images.dtype} of {tuple(images.shape)}"
    if isinstance(images, Sequence) and not isinstance(images, str):
        wrong = next(image for image in images if not _is_pixels(image))
        return f"a {type(images).__name__} with {_described(wrong)}"
    return type(images).__name__


_SCHEME = 1


def cache_key(parts: Mapping[str, Any]) -> str:
    """The SHA-256 of a JSON tree: everything that decides what the arrays are."""
    canonical = json.dumps({"scheme": _SCHEME, **parts}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """A folder of safetensors files, each under the hash of what it was computed from.

    Other weights, images, batches or versions of the libraries that decode and compute have
    other keys. The code of the model is in no key (its fingerprint covers the factory's name and
    the weights): delete the folder where that changes. It may be deleted at any time, and several
    processes may share it.
    """

    folder: Path

    def get(self, key: str) -> dict[str, NDArray[Any]] | None:
        """Arrays by name; None where they are not there. A damaged file counts as not there."""
        path = self._path(key)
        try:
            return load(path.read_bytes())
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError) as error:
            # safetensors answers a dtype that numpy does not have, such as BF16, with KeyError.
            structlog.get_logger().warning(
                "feature_cache_file_unreadable", path=str(path), error=str(error)
            )
            return None

    def put(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays, so that a half-written file never stands under the key.

        Raises:
            CalibrationError: The folder cannot be written.
        """
        path = self._path(key)
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(dict(arrays), unfinished)
            unfinished.replace(path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                unfinished.unlink()
            raise CalibrationError(
                f"the feature cache cannot be written ({error})",
                str(self.folder),
                "Choose another folder with --cache, or make room",
            ) from error

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


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
