"""The folder that the demo fills, and that it may only replace if it made it.

The monitor's configuration, as a user would write it.

What was chosen, and why. Alpha and the fusion weight are the defaults. 500 calibration digits are
what 1,797 allow, so that none is used twice; the bounds take in what so few leave uncertain. A
window of 150 records forgets within seconds, and one false alarm an hour suits a stream of as many.
Scored offline with 33 other seeds, each with a split, a training and a stream of its own, all
streams gave one firing of the stream (30 records after the change on average, 50 at most), one of
each broken camera (39 on average, 75 at most), none before the change or of another camera, and one
resolved (137 records after the return on average).
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nap_stream.demo import digits
from nap_stream.demo.digits import CAMERA_HEADER, SIDE
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


ALPHA = 0.05
WINDOW_RECORDS = 150
PANE_MS = 100
FALSE_ALARMS = "one per hour at 50 images/s"
RUNBOOK = "https://example.com/runbooks/cameras"
PARTITIONS = 4
SESSION_TIMEOUT_S = 6.0
"""The embedded broker lets a new group wait for about half of it, however many have joined."""
REVOKE_DEADLINE_S = 3.0
TOPIC = "digits"
ALERT_TOPIC = "digits-alerts"
DEAD_LETTER_TOPIC = "digits-dead-letters"
CLASS_NAMES = (
    *("zero", "one", "two", "three", "four"),
    *("five", "six", "seven", "eight", "nine"),
)
_COMMENT = """\
# Written by `nap-stream demo`. Paths are taken from this file's folder. The broker was the demo's
# own and is gone; `nap-stream query` and `nap-stream verify` need none.
"""


def write_configuration(
    folder: DemoFolder, *, broker: str, metrics_port: int, workers: int
) -> None:
    """Write the YAML file.

    Args:
        folder: Where; all other paths are in it.
        broker: Its address, as host:port.
        metrics_port: Where the monitor serves its metrics.
        workers: How many worker actors.
    """
    tree: dict[str, Any] = {
        "kafka": {
            "bootstrap_servers": [broker],
            "topic": TOPIC,
            "group_id": "nap-stream-demo",
            "session_timeout_s": SESSION_TIMEOUT_S,
        },
        "model": {
            "factory": digits.FACTORY,
            "weights": folder.weights.name,
            "class_names": list(CLASS_NAMES),
            "preprocessing": {
                "resize": None,
                "crop": SIDE,
                "mean": list(digits.MEAN),
                "std": list(digits.STD),
            },
        },
        "calibration": folder.calibration.name,
        "log": {
            "root": folder.log.name,
            "segment_max_age_s": 1.0,
            "headers": [CAMERA_HEADER],
        },
        "worker": {
            "count": workers,
            "num_gpus": 0,
            "batch_size": 16,
            "revoke_deadline_s": REVOKE_DEADLINE_S,
        },
        "drift": {
            "false_alarms": FALSE_ALARMS,
            "window_records": WINDOW_RECORDS,
            "pane_ms": PANE_MS,
            "keys": {"by": f"header:{CAMERA_HEADER}"},
        },
        "alerts": {
            "topic": ALERT_TOPIC,
            "runbook_url": RUNBOOK,
            "labels": {"site": "demo"},
        },
        "dead_letters": {"topic": DEAD_LETTER_TOPIC},
        "metrics": {"port": metrics_port},
    }
    text = _COMMENT + yaml.safe_dump(tree, sort_keys=False)
    folder.config.write_text(text, encoding="utf-8")
