"""nap-stream: out-of-distribution monitoring for image classifiers on Kafka streams."""

from importlib.metadata import version
from typing import TYPE_CHECKING

from nap_stream.errors import NapStreamError
from nap_stream.settings.load import load_settings
from nap_stream.settings.schema import Settings

__version__ = version("nap-stream")

__all__ = ["NapStreamError", "OODScorer", "Settings", "__version__", "load_settings"]


if TYPE_CHECKING:
    from nap_stream.ood_scorer import OODScorer
else:

    def __getattr__(name: str) -> object:
        """Import what needs torch, which takes seconds, when it is asked for."""
        if name == "OODScorer":
            from nap_stream.ood_scorer import OODScorer  # noqa: PLC0415  as said above

            return OODScorer
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
