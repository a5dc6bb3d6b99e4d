"""nap-stream: out-of-distribution monitoring for image classifiers on Kafka streams."""

from importlib.metadata import version

from nap_stream.errors import NapStreamError
from nap_stream.settings import Settings
from nap_stream.settings_loader import load_settings

__version__ = version("nap-stream")

__all__ = ["NapStreamError", "Settings", "__version__", "load_settings"]
