"""The folder that the demo fills, and that it may only replace if it made it."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nap_stream.errors import ConfigError

MARKER = ".nap-stream-demo"
_CHOOSE = "Choose another folder with --out"


@dataclass(frozen=True, slots=True)
class DemoFolder:
    """Where everything of one demo lies."""

    root: Path

    @property
    def config(self) -> Path:
        """The monitor's YAML file."""
        return self.root / "monitor.yaml"

    @property
    def weights(self) -> Path:
        """The trained network."""
        return self.root / "model.safetensors"

    @property
    def calibration(self) -> Path:
        """The calibration artifact."""
        return self.root / "calibration"

    @property
    def images(self) -> Path:
        """All images, as PNG files in a folder for each split."""
        return self.root / "images"

    @property
    def stream(self) -> Path:
        """The stream's images in sending order."""
        return self.root / "stream.parquet"

    @property
    def log(self) -> Path:
        """The root of the scored log."""
        return self.root / "scored-log"

    @property
    def alerts(self) -> Path:
        """The alerts that came, one JSON event a line."""
        return self.root / "alerts.jsonl"

    @property
    def monitor_output(self) -> Path:
        """What the monitor's process printed."""
        return self.root / "monitor.log"

    @property
    def picture(self) -> Path:
        """The OOD fraction against its bound."""
        return self.root / "ood-fraction.png"

    def entries(self) -> tuple[Path, ...]:
        """Everything that a demo makes here, but the marker."""
        return (
            *(self.config, self.weights, self.calibration, self.images, self.stream),
            *(self.log, self.alerts, self.monitor_output, self.picture),
        )


@contextmanager
def demo_folder(root: Path) -> Iterator[DemoFolder]:
    """An empty folder for one demo, for as long as the block runs; it stays afterwards.

    What an earlier demo made there goes; whatever else lies in its folder stays.

    Raises:
        ConfigError: The folder holds something and no demo made it, another demo is using it,
            or it cannot be written.
    """
    marker = root / MARKER
    try:
        _refuse_foreign(root)
        root.mkdir(parents=True, exist_ok=True)
        with marker.open("a", encoding="utf-8") as lock:
            _lock(lock.fileno(), root)
            folder = DemoFolder(root)
            _clear(folder)
            yield folder
    except OSError as error:
        if error.filename is None or not Path(error.filename).is_relative_to(root):
            raise
        raise ConfigError(f"cannot be used: {error.strerror}", str(root), _CHOOSE) from error


def _refuse_foreign(root: Path) -> None:
    if not root.exists():
        return
    if not root.is_dir():
        raise ConfigError("this is not a folder", str(root), _CHOOSE)
    if any(root.iterdir()) and not (root / MARKER).is_file():
        raise ConfigError(
            "the folder holds something that the demo did not make", str(root), _CHOOSE
        )


def _lock(descriptor: int, root: Path) -> None:
    """Hold the marker until it is closed, which the end of the process does too."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError("another demo is using the folder", str(root), _CHOOSE) from error


def _clear(folder: DemoFolder) -> None:
    for path in folder.entries():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
