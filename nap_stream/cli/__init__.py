"""argv → settings → call → exit code."""

from nap_stream.cli.app import main

__all__ = ["main"]
