"""A folder that keeps what a model made of images: two cores are slow, and a run can be cut off."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from nap_stream.errors import CalibrationError
from nap_stream.files import replacing

Arrays = dict[str, NDArray[Any]]

_KEY_SCHEME = 1


def cache_key(parts: Mapping[str, Any]) -> str:
    """The SHA-256 of a JSON tree: everything that decides what the arrays are."""
    canonical = json.dumps({"scheme": _KEY_SCHEME, **parts}, sort_keys=True)
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

    def get(self, key: str) -> Arrays | None:
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
        try:
            with replacing(self._path(key)) as unfinished:
                save_file(dict(arrays), unfinished)
        except (OSError, SafetensorError) as error:
            raise CalibrationError(
                f"the feature cache cannot be written ({error})",
                str(self.folder),
                "Choose another folder with --cache, or make room",
            ) from error

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"
