"""nap-stream: out-of-distribution monitoring for image classifiers on Kafka streams."""

from importlib import import_module
from typing import TYPE_CHECKING

from nap_stream.errors import NapStreamError

__all__ = ["NapStreamError", "OODScorer", "Settings", "__version__", "load_settings"]


if TYPE_CHECKING:
    from nap_stream.ood_scorer import OODScorer
    from nap_stream.settings.load import load_settings
    from nap_stream.settings.schema import Settings

    __version__: str
else:
    _MODULES = {
        "OODScorer": "nap_stream.ood_scorer",
        "Settings": "nap_stream.settings.schema",
        "load_settings": "nap_stream.settings.load",
    }

    def __getattr__(name: str) -> object:
        """Import what takes long when it is asked for: torch seconds, settings half a second."""
        if name in _MODULES:
            return getattr(import_module(_MODULES[name]), name)
        if name == "__version__":
            return import_module("importlib.metadata").version("nap-stream")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
