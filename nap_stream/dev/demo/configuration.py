"""The monitor's configuration, as a user would write it.

What was chosen, and why. Alpha and the fusion weight are the defaults. 500 calibration digits are
what 1,797 allow, so that none is used twice; the bounds take in what so few leave uncertain. A
window of 150 records forgets within seconds, and one false alarm an hour suits a stream of as many.
Scored offline with 33 other seeds, each with a split, a training and a stream of its own, all
streams gave one firing of the stream (30 records after the change on average, 50 at most), one of
each broken camera (39 on average, 75 at most), none before the change or of another camera, and one
resolved (137 records after the return on average).
"""

from typing import Any

import yaml

from nap_stream.dev.demo import network
from nap_stream.dev.demo.digits import SIDE
from nap_stream.dev.demo.folder import DemoFolder
from nap_stream.dev.demo.stream import CAMERA_HEADER

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
            "factory": network.FACTORY,
            "weights": folder.weights.name,
            "class_names": list(CLASS_NAMES),
            "preprocessing": {
                "resize": None,
                "crop": SIDE,
                "mean": list(network.MEAN),
                "std": list(network.STD),
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
