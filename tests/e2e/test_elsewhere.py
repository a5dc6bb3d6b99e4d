"""A model that runs elsewhere: its outputs on Apache Kafka, through a worker, to the log."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file

from nap_stream.calibration.artifact import write_calibration
from nap_stream.calibration.elsewhere import calibrate_outputs
from nap_stream.clock import SystemClock
from nap_stream.monitor import worker as worker_module
from nap_stream.scored_log.format import SCORE_COLUMNS
from nap_stream.settings.load import load_model_settings
from nap_stream.settings.schema import ScoringSettings
from tests.e2e.monitor import Monitor, new_monitor
from tests.e2e.test_messages import working
from tests.support.apache_kafka import ApacheKafka
from tests.support.image_bytes import encoded, jpeg
from tests.support.images import smooth_image
from tests.support.outputs import Arrays, batch_of, outputs_of, stream_of
from tests.support.small_calibration import calibration_request
from tests.support.tiny_net import CLASS_NAMES, build
from tests.support.topics import read_to_end, send
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

COUNT = 60
IMAGES = [encoded(smooth_image(500 + seed), "PNG") for seed in range(COUNT)]


def served(first_seed: int, count: int) -> Arrays:
    """What a server of the tiny net gives, with the preprocessing of its own."""
    pixels = np.stack([np.array(smooth_image(first_seed + seed)) for seed in range(count)])
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return outputs_of(build().eval(), (scaled - mean[:, None, None]) / std[:, None, None])


def part(arrays: Arrays, rows: slice) -> Arrays:
    return {name: array[rows] for name, array in arrays.items()}


def run(monitor: Monitor, rows: int) -> list[dict[str, Any]]:
    with working(monitor) as worker:
        wait_until(lambda: not worker.running or len(monitor.rows()) >= rows, f"{rows} rows")
    return monitor.rows("key", "status", "error", "sha256", "format", "width", *SCORE_COLUMNS)


def elsewhere_monitor(bootstrap: str, folder: Path, calibration: Path, **section: Any) -> Monitor:
    monitor = new_monitor(bootstrap, folder, calibration)
    tree = yaml.safe_load(monitor.config.read_text())
    layer = build().head
    save_file({"weight": layer.weight.data, "bias": layer.bias.data}, folder / "head.safetensors")
    tree["model"] = {
        "elsewhere": {"name": "tiny/1", "head": "head.safetensors"} | section,
        "class_names": list(CLASS_NAMES),
    }
    monitor.config.write_text(yaml.safe_dump(tree))
    return monitor


def hostile(good: Arrays) -> list[tuple[bytes | None, list[str]]]:
    """Messages, and the status of each of their rows."""
    two = part(good, slice(0, 2))
    narrow = {**two, "logits": two["logits"][:, :2]}
    nan = {**two, "feature_map": two["feature_map"] * np.array([1, np.nan])[:, None, None, None]}
    shares = torch.from_numpy(two["logits"]).softmax(dim=1).numpy()
    compressed = pa.BufferOutputStream()
    batch = batch_of(two)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(compressed, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    nulls = pa.array([None, *two["logits"][1:].tolist()], pa.list_(pa.float32()))
    many = {name: np.repeat(array[:1], 1_001, axis=0) for name, array in two.items()}
    mapless = {name: two[name] for name in ("logits", "features")}
    return [
        (None, ["tombstone"]),
        (b"", ["empty"]),
        (jpeg(), ["bad_batch"]),
        (stream_of(two)[:-100], ["bad_batch"]),
        (compressed.getvalue().to_pybytes(), ["bad_batch"]),
        (stream_of(narrow), ["bad_batch"] * 2),
        (stream_of(nan), ["ok", "not_finite"]),
        (stream_of(mapless, logits_too=nulls), ["bad_batch"]),
        (stream_of({n: two[n] for n in ("features", "feature_map")}, logits=nulls),
         ["bad_batch", "ok"]),
        (stream_of(many), ["too_large"]),
        (stream_of({**two, "logits": shares}), ["ok", "ok"]),
    ]  # fmt: skip


def test_outputs_are_judged_as_their_images_are(
    apache_kafka: ApacheKafka,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bootstrap, outputs = apache_kafka.bootstrap, served(500, COUNT)
    keys = [f"camera-{number}" for number in range(COUNT)]

    images = new_monitor(bootstrap, tmp_path / "images", calibration)
    batch = {"image": pa.array(IMAGES, pa.binary()), "key": keys}
    arrow = pa.RecordBatch.from_pydict(batch)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, arrow.schema) as writer:
        writer.write_batch(arrow)
    headers = [("content-type", b"application/vnd.apache.arrow.stream")]
    send(images.kafka, [sink.getvalue().to_pybytes()], headers=headers)
    expected = {row["key"]: row for row in run(images, COUNT)}

    monitor = elsewhere_monitor(
        bootstrap, tmp_path / "outputs", calibration, calibrated_on_images=True
    )
    values = [
        stream_of(part(outputs, slice(start, start + 20)), form, key=keys[start : start + 20])
        for start, form in ((0, "nested"), (20, "tensor"), (40, "channels"))
    ]
    # All in one partition: the first rows say that these are logits.
    send(monitor.kafka, values, partition=0)
    bad = hostile(outputs)
    places = send(monitor.kafka, [value for value, _ in bad], partition=0)
    monkeypatch.setattr(worker_module, "load_model", None)
    found = run(monitor, COUNT + sum(len(statuses) for _, statuses in bad))

    good = {row["key"]: row for row in found if row["key"]}
    assert good.keys() == expected.keys() == {key.encode() for key in keys}
    for key, row in good.items():
        for name in SCORE_COLUMNS:
            assert row[name] == pytest.approx(expected[key][name], rel=1e-5, abs=1e-5), name
        assert (row["status"], row["format"], row["width"]) == ("ok", "outputs", None)
    one = b"".join(outputs[name][7].tobytes() for name in ("logits", "features", "feature_map"))
    assert good[b"camera-7"]["sha256"] == hashlib.sha256(one).hexdigest()

    by_place: dict[tuple[int, int], list[str]] = {}
    for row in found:
        by_place.setdefault((row["partition"], row["offset"]), []).append(row["status"])
        assert (row["error"] is None) == (row["status"] == "ok")
    assert [by_place[place] for place in places] == [statuses for _, statuses in bad]
    letters = read_to_end(monitor.kafka, monitor.dead_letter_topic)
    refused = [
        (value or b"")
        for value, statuses in bad
        if any(status not in {"ok", "not_finite"} for status in statuses)
    ]
    assert sorted(letter.value for letter in letters if letter.value) == sorted(
        filter(None, refused)
    )
    assert sum(monitor.chain_ends().values()) == len(values) + len(bad)


def test_a_calibration_made_of_outputs(
    apache_kafka: ApacheKafka, calibration: Path, tmp_path: Path
) -> None:
    """It judges; probabilities in place of logits are refused from the first row on."""
    folder = tmp_path / "monitor"
    monitor = elsewhere_monitor(apache_kafka.bootstrap, folder, calibration)
    held_out = pa.Table.from_batches([batch_of(served(100_000, 300), "channels")])
    pq.write_table(held_out, folder / "outputs.parquet")
    request = calibration_request(
        folder / "outputs.parquet",
        model=load_model_settings(monitor.config),
        scoring=ScoringSettings(),
    )
    made = calibrate_outputs(request, clock=SystemClock())
    write_calibration(made, folder / "calibration")
    monitor.change(calibration="calibration")
    outputs = served(500, COUNT)
    shares = torch.from_numpy(outputs["logits"]).softmax(dim=1).numpy()
    send(monitor.kafka, [stream_of({**outputs, "logits": shares})], partition=0)
    send(monitor.kafka, [stream_of(outputs)], partition=0)
    found = run(monitor, 2 * COUNT)
    assert [row["status"] for row in found] == ["bad_batch"] * COUNT + ["ok"] * COUNT
    assert "probabilities in place of logits" in found[0]["error"]
    assert np.mean([row["is_ood"] for row in found[COUNT:]]) < 0.25
    monitor.chain_ends()
