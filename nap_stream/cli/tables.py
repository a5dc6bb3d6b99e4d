"""Short tables for people."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from nap_stream.calibration.artifact import Calibration


def show_calibration(calibration: "Calibration", folder: Path, console: Console) -> None:
    """What a calibration came to: sizes, threshold, flag rate, fingerprints."""
    low, high = calibration.flag_rate_interval
    rows = {
        "images": f"{calibration.size:,} scored, {calibration.undecodable:,} undecodable",
        "mean confidence": f"{calibration.mean_confidence:.3f}",
        "feature map": str(calibration.feature_site),
        "fused score": f"{calibration.base} {calibration.weight:g}, NAP {1 - calibration.weight:g}",
        "alpha": f"{calibration.alpha:g}",
        "threshold": f"{calibration.threshold:.6g}",
        "true flag rate": f"{low:.4f} to {high:.4f} ({calibration.flag_rate_confidence:.0%})",
        "model": calibration.model_fingerprint[:16],
        "calibration": calibration.fingerprint[:16],
        "written to": str(folder),
    }
    table = Table(show_header=False, show_edge=False, pad_edge=False, box=None)
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    console.print(table)
