"""argv → settings → call → exit code. One module a command."""

from nap_stream.cli.app import main

__all__ = ["main"]
