from pathlib import Path

from nap_stream.demo.folder import DemoFolder, write_configuration
from nap_stream.settings.load import load_settings
from nap_stream.settings.schema import DriftSettings, KeySettings


def test_gives_a_whole_configuration(tmp_path: Path) -> None:
    folder = DemoFolder(tmp_path)
    folder.weights.touch()
    folder.calibration.mkdir()

    write_configuration(folder, broker="127.0.0.1:9999", metrics_port=1234, workers=2)

    settings = load_settings(folder.config, environ={})
    assert settings.kafka.bootstrap_servers == ("127.0.0.1:9999",)
    assert settings.model.weights == folder.weights
    assert settings.calibration == folder.calibration
    assert settings.log.root == folder.log
    assert settings.metrics.port == 1234
    assert settings.worker.count == 2
    assert settings.drift == DriftSettings(
        false_alarms="one per hour at 50 images/s",
        window_records=150,
        pane_ms=100,
        keys=KeySettings(by="header:camera"),
    )
