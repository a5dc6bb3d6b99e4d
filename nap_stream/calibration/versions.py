"""Which software made a result."""

import platform
from importlib import metadata

_DISTRIBUTIONS = ("nap-stream", "torch", "torchvision", "pillow", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Versions by distribution, and of Python; "unknown" where one is not installed as such."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
