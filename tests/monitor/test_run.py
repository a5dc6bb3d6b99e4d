"""What a run tells others of itself."""

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nap_stream.monitor.run import scrape_target
from nap_stream.settings.load import load_settings
from nap_stream.settings.schema import Settings


@pytest.fixture
def target_file(tmp_path: Path) -> Path:
    return tmp_path / "targets" / "nap.json"


@pytest.fixture
def settings(tmp_path: Path, target_file: Path) -> Settings:
    (tmp_path / "calibration").mkdir()
    (tmp_path / "monitor.yaml").write_text(
        f"""
kafka: {{topic: images}}
model: {{factory: torchvision:resnet18, weights: calibration}}
calibration: calibration
log: {{root: log}}
metrics: {{discovery_file: {target_file}}}
""",
        encoding="utf-8",
    )
    return load_settings(tmp_path / "monitor.yaml")


def test_prometheus_is_told_where_the_coordinator_is_and_when_there_is_none(
    settings: Settings, target_file: Path
) -> None:
    labels = {"nap_stream_monitor": settings.alerts.monitor, "nap_stream_topic": "images"}
    with scrape_target(settings) as note:
        note(None)
        assert not target_file.exists()
        for address in ("10.0.0.1:9464", "10.0.0.2:9464", "[::1]:9464"):
            note(f"http://{address}/metrics")
            assert json.loads(target_file.read_bytes()) == [
                {"targets": [address], "labels": labels}
            ]
    assert json.loads(target_file.read_bytes()) == []


def test_a_file_that_cannot_be_written_is_told_and_the_run_goes_on(
    settings: Settings, target_file: Path
) -> None:
    target_file.parent.write_text("in the way", encoding="utf-8")
    with capture_logs() as logs, scrape_target(settings) as note:
        note("http://10.0.0.1:9464/metrics")
    assert {each["event"] for each in logs} == {"discovery_file_not_written"}
