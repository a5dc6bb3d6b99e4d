"""The scored log of a stream of two sets, beside what plain PyTorch makes of the same files."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from benchmarks.plain_pytorch import auroc, fpr95, plain_scores, plain_sum, read_plain
from nap_stream.calibration.artifact import load_calibration
from nap_stream.scored_log.files import SCAN_SCHEMA
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.verify.run import verify
from nap_stream.settings.schema import Settings

Scores = NDArray[np.float64]
_COLUMNS = {"msp": "confidence"}
"""Of the log, where a score's name is another."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One score as the log has it and as plain PyTorch reads it, with the largest differences."""

    score: str
    auroc_log: float
    auroc_plain: float
    fpr95_log: float
    fpr95_plain: float
    difference_cifar: float
    difference_textures: float


@dataclass(frozen=True, slots=True)
class SeenAlert:
    """An alert; times are event times in milliseconds after the first texture's."""

    state: str
    window_start_ms: float
    window_end_ms: float
    textures_in_window: int
    flagged: int
    records: int
    firing_limit: int | None


def compare(
    settings: Settings,
    cifar: pa.Table,
    textures: pa.Table,
    events: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Join the log to the streamed files by key, and score those again.

    Args:
        settings: Of the run that made the log.
        cifar: The in-distribution files in the order produced, with unique names.
        textures: The out-of-distribution files, likewise.
        events: The alerts.

    Returns:
        What the benchmark reports, as a JSON tree.

    Raises:
        SystemExit: The log is not one scored row an offset and a file, so nothing can be joined,
            or its fused score is not that of the default method.
    """
    log = pa.Table.from_batches(scan(store_at(settings.log.root), Query()), SCAN_SCHEMA)
    files = pa.concat_tables([cifar, textures]).combine_chunks()
    report = verify(store_at(settings.log.root), deep=True)
    if not _one_row_an_offset(log, files):
        raise SystemExit(f"the log is not one scored row an offset and a file: {report}")
    joined = log.take(pc.index_in(files["name"].cast(pa.binary()), log["key"]))
    calibration = load_calibration(settings.calibration)
    weights = calibration.document.weights
    if weights is None:
        raise SystemExit(f"expected the method auto, got {calibration.document.method}")
    checkpoint, model = settings.model.weights, settings.model.preprocessing
    assert checkpoint is not None
    plain = read_plain(files["image"].to_pylist(), checkpoint, model.mean, model.std)
    expected = plain_scores(plain, calibration.arrays)
    expected["fused"] = plain_sum(expected, weights, calibration.arrays)
    flags = joined["is_ood"].to_numpy()
    labels = cifar["label"].to_pylist()
    names = settings.model.class_names or ()
    scored = np.sort(log["scored_time"].cast(pa.int64()).to_numpy())
    return {
        "sizes": {
            "cifar": len(cifar),
            "textures": len(textures),
            "megabytes": sum(map(len, files["image"].to_pylist())) / 1e6,
        },
        "calibration_images": calibration.size,
        "alpha": calibration.alpha,
        "method": calibration.document.method,
        "weights": weights,
        "scores": [
            asdict(
                _compare_score(name, joined[_COLUMNS.get(name, name)].to_numpy(), read, len(cifar))
            )
            for name, read in expected.items()
        ],
        "alerts": [asdict(alert) for alert in _alerts(events, joined, len(cifar))],
        "accuracy_log": _share(joined["class_name"].to_pylist()[: len(cifar)], labels),
        "accuracy_plain": _share(
            [names[number] for number in plain.class_id][: len(cifar)], labels
        ),
        "flagged_cifar": float(flags[: len(cifar)].mean()),
        "flagged_textures": float(flags[len(cifar) :].mean()),
        "verify": {
            "rows": report.rows,
            "offsets": report.offsets,
            "segments": report.segments,
            "defects": [str(defect) for defect in report.defects],
        },
        "images_scored_per_s": 1000 * (len(scored) - 1) / float(scored[-1] - scored[0]),
    }


def _one_row_an_offset(log: pa.Table, files: pa.Table) -> bool:
    """Each partition's offsets run from 0 without a hole, and each file is one scored row."""
    for partition in log["partition"].unique():
        offsets = log.filter(pc.field("partition") == partition)["offset"].to_pylist()
        if offsets != list(range(len(offsets))):
            return False
    produced = [
        (name.encode(), hashlib.sha256(data).hexdigest())
        for name, data in zip(files["name"].to_pylist(), files["image"].to_pylist(), strict=True)
    ]
    logged = zip(log["key"].to_pylist(), log["sha256"].to_pylist(), strict=True)
    return sorted(logged) == sorted(produced) and set(log["status"].to_pylist()) == {"ok"}


def _compare_score(name: str, logged: Scores, plain: Scores, inside: int) -> Comparison:
    difference = np.abs(logged - plain)
    return Comparison(
        score=name,
        auroc_log=auroc(logged[:inside], logged[inside:]),
        auroc_plain=auroc(plain[:inside], plain[inside:]),
        fpr95_log=fpr95(logged[:inside], logged[inside:]),
        fpr95_plain=fpr95(plain[:inside], plain[inside:]),
        difference_cifar=float(difference[:inside].max()),
        difference_textures=float(difference[inside:].max()),
    )


def _alerts(events: Sequence[Mapping[str, Any]], joined: pa.Table, inside: int) -> list[SeenAlert]:
    times = joined["event_time"].cast(pa.int64()).to_numpy()[inside:]
    change = times.min()
    found = []
    for event in events:
        data = event["data"]
        start, end = (
            1000 * datetime.fromisoformat(data["window"][name]).timestamp()
            for name in ("start", "end")
        )
        found.append(
            SeenAlert(
                state=data["state"],
                window_start_ms=float(start - change),
                window_end_ms=float(end - change),
                textures_in_window=int(((start <= times) & (times < end)).sum()),
                flagged=data["window"]["flagged"],
                records=data["window"]["records"],
                firing_limit=data["window"]["firing_limit"],
            )
        )
    return found


def _share(predicted: Sequence[str], labels: Sequence[str]) -> float:
    return float(np.mean([left == right for left, right in zip(predicted, labels, strict=True)]))
