"""Whether results can be written, asked before the work that leads to them."""

import os
from pathlib import Path

from nap_stream.errors import ConfigError


def require_can_make(folder: Path) -> None:
    """Refuse a folder that can neither be written nor made.

    Raises:
        ConfigError: It, or what stands in its place or above it, is a file, or not writable.
    """
    place = folder.resolve()
    while not (place.exists() or place == place.parent):
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"{place.name} is not a folder", str(folder), "Choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{place} cannot be written", str(folder), "Choose a folder that can be written"
        )
