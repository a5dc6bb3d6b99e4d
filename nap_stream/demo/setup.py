"""What the demo makes before the stream: a folder, images, a model, a calibration, the settings.

What was chosen, and why. Alpha and the method are the defaults. 500 calibration digits are what
1,797 allow, so that none is used twice; the bounds take in what so few leave uncertain. A window of
150 records forgets within seconds, and one false alarm an hour suits a stream of as many. Scored
offline with 150 other seeds (`python -m benchmarks.demo_seeds --seeds 150`), each with a split, a
training and a stream of its own, all streams gave one firing of the stream (25 records after the
change on average, 45 at most), one of each broken camera (32 on average, 65 at most), none before
the change or of another camera, and one resolved (140 records after the return on average, 255 at
most).
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from nap_stream.calibration.artifact import write_calibration
from nap_stream.calibration.calibration import Calibration
from nap_stream.calibration.run import CalibrationRequest, calibrate
from nap_stream.clock import Clock
from nap_stream.core.conformal import Rule
from nap_stream.demo.digits import (
    CAMERA_HEADER,
    CLASS_NAMES,
    FACTORY,
    MEAN,
    SIDE,
    STD,
    Phase,
    accuracy,
    load_splits,
    plan_stream,
    train,
    write_digits,
    write_stream,
)
from nap_stream.demo.display import Display
from nap_stream.errors import ConfigError
from nap_stream.settings.load import load_model_settings, load_scoring_settings
from nap_stream.settings.schema import LimitSettings

MARKER = ".nap-stream-demo"
PARTITIONS = 4
_ALPHA = 0.05
_CALIBRATION_BATCH = 50
_CHOOSE = "Choose another folder with --out"


class DemoFolder:
    """Where everything of one demo lies. The demo may only replace a folder that it made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "monitor.yaml"
        self.weights = root / "model.safetensors"
        self.images = root / "images"
        self.stream = root / "stream.parquet"
        self.calibration = root / "calibration"
        self.evidence = root / "evidence"
        self.log = root / "scored-log"
        self.alerts = root / "alerts.jsonl"
        self.report = root / "report.html"
        self.monitor_output = root / "monitor.log"

    def contents(self) -> dict[Path, str]:
        """Everything that a demo makes here, but the marker, and what it is."""
        return {
            self.config: "the monitor's configuration",
            self.weights: "the trained network",
            self.images: "all images, as PNG files",
            self.stream: "the stream's images, in sending order",
            self.calibration: "the calibration",
            self.log: "the scored log, in Parquet",
            self.evidence: "images that were flagged, or extreme",
            self.alerts: "the alerts, as CloudEvents",
            self.report: "the report of this run",
            self.monitor_output: "what the monitor printed",
        }


@contextmanager
def demo_folder(root: Path) -> Iterator[DemoFolder]:
    """An empty folder for one demo, for as long as the block runs; it stays afterwards.

    What an earlier demo made there goes; whatever else lies in its folder stays.

    Raises:
        ConfigError: The folder holds something and no demo made it, another demo is using it,
            or it cannot be written.
    """
    try:
        _refuse_foreign(root)
        root.mkdir(parents=True, exist_ok=True)
        with (root / MARKER).open("a", encoding="utf-8") as lock:
            _lock(lock.fileno(), root)
            folder = DemoFolder(root)
            for path in folder.contents():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
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


def make_model_and_images(folder: DemoFolder, seed: int, display: Display) -> tuple[Phase, ...]:
    """Deal out the digits, write them as files, train the network and save it.

    Returns:
        The stream that will be sent.
    """
    splits = load_splits(seed)
    phases = plan_stream(splits.stream, seed)
    write_digits(splits.training, folder.images / "training")
    write_digits(splits.calibration, folder.images / "calibration")
    write_stream(phases, folder.images / "stream", folder.stream)
    counts = " / ".join(f"{len(s):,}" for s in (splits.training, splits.calibration, splits.stream))
    display.step(f"handwritten digits dealt out: {counts} to train, calibrate, stream")
    network = train(splits.training.pixels, splits.training.label, seed)
    held_out = accuracy(network, splits.calibration.pixels, splits.calibration.label)
    save_file(network.state_dict(), folder.weights)
    display.step(f"small CNN trained: {held_out:.1%} of the calibration digits told right")
    return phases


def make_calibration(folder: DemoFolder, display: Display, clock: Clock) -> Calibration:
    """Calibrate the configured model on its held-out digits, as `nap-stream calibrate` does."""
    request = CalibrationRequest(
        model=load_model_settings(folder.config, environ={}),
        scoring=load_scoring_settings(folder.config, environ={}),
        images=folder.images / "calibration",
        fit_images=folder.images / "training",
        rule=Rule(_ALPHA),
        weight=None,
        batch_size=_CALIBRATION_BATCH,
        limits=LimitSettings(),
    )
    calibration = calibrate(request, device=torch.device("cpu"), clock=clock)
    write_calibration(calibration, folder.calibration)
    low, high = calibration.flag_rate_interval
    display.step(
        f"calibrated on {calibration.size} held-out digits: flags at p <= {calibration.alpha:g}, "
        f"true flag rate {low:.1%} to {high:.1%} ({calibration.document.flag_rate_confidence:.0%})"
    )
    return calibration


def write_configuration(
    folder: DemoFolder, *, broker: str, metrics_port: int, workers: int
) -> None:
    """Write the monitor's configuration, as a user would write it."""
    # The embedded broker lets a new group wait for about half of the session time-out, however
    # many have joined: hence the short one.
    text = f"""\
# Written by `nap-stream demo`. Paths are taken from this file's folder. The broker was the demo's
# own and is gone; `nap-stream query` and `nap-stream verify` need none.
kafka:
  bootstrap_servers: ["{broker}"]
  topic: digits
  group_id: nap-stream-demo
  session_timeout_s: 6.0
model:
  factory: {FACTORY}
  weights: {folder.weights.name}
  class_names: [{", ".join(CLASS_NAMES)}]
  preprocessing:
    resize: null
    crop: {SIDE}
    mean: {list(MEAN)}
    std: {list(STD)}
calibration: {folder.calibration.name}
log:
  root: {folder.log.name}
  segment_max_age_s: 1.0
  headers: [{CAMERA_HEADER}]
evidence:
  root: {folder.evidence.name}
worker:
  count: {workers}
  num_gpus: 0
  batch_size: 16
  revoke_deadline_s: 3.0
drift:
  false_alarms: one per hour at 50 images/s
  window_records: 150
  pane_ms: 100
  idle_partition_s: 60
  keys:
    by: header:{CAMERA_HEADER}
alerts:
  topic: digits-alerts
  runbook_url: https://example.com/runbooks/cameras
  labels:
    site: demo
dead_letters:
  topic: digits-dead-letters
metrics:
  port: {metrics_port}
"""
    folder.config.write_text(text, encoding="utf-8")
