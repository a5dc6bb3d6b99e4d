"""Results written so that a half-written one never stands under its name."""

import contextlib
import os
import secrets
from pathlib import Path

from nap_stream.errors import ConfigError


def publish(path: Path, content: bytes) -> None:
    """Write a file, in place of one that is there: temporary sibling, fsync, rename.

    Raises:
        ConfigError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(
            f"the file cannot be written ({error.strerror})",
            str(path),
            "Choose a folder that can be written",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
