from pathlib import Path

import pytest

from nap_stream.demo.setup import MARKER, DemoFolder, demo_folder, write_configuration
from nap_stream.errors import ConfigError
from nap_stream.settings.drift import DriftSettings, KeySettings
from nap_stream.settings.load import load_settings


def test_replaces_what_an_earlier_demo_made_and_nothing_else(tmp_path: Path) -> None:
    with demo_folder(tmp_path / "demo") as folder:
        folder.config.write_text("old")
        (folder.log / "topic=digits").mkdir(parents=True)
        (folder.root / "notes.txt").write_text("mine")

    with demo_folder(tmp_path / "demo") as folder:
        assert not any(path.exists() for path in folder.contents())
        assert (folder.root / "notes.txt").read_text() == "mine"


def test_stays_after_the_block(tmp_path: Path) -> None:
    with demo_folder(tmp_path / "demo") as folder:
        folder.report.write_bytes(b"page")

    assert folder.report.read_bytes() == b"page"


def test_takes_an_empty_folder(tmp_path: Path) -> None:
    with demo_folder(tmp_path) as folder:
        assert folder.root == tmp_path


def test_leaves_a_folder_alone_that_no_demo_made(tmp_path: Path) -> None:
    (tmp_path / "scored-log").mkdir()

    with (
        pytest.raises(ConfigError, match=r"the demo did not make.*--out"),
        demo_folder(tmp_path),
    ):
        pass

    assert (tmp_path / "scored-log").is_dir()
    assert not (tmp_path / MARKER).exists()


def test_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="not a folder"), demo_folder(tmp_path / "file"):
        pass


def test_refuses_a_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="cannot be used"), demo_folder(tmp_path / "file" / "in"):
        pass


def test_two_demos_do_not_share_a_folder(tmp_path: Path) -> None:
    with demo_folder(tmp_path / "demo") as folder:
        folder.config.write_text("in use")
        with (
            pytest.raises(ConfigError, match="another demo is using the folder"),
            demo_folder(tmp_path / "demo"),
        ):
            pass
        assert folder.config.read_text() == "in use"


def test_a_link_in_place_of_an_entry_is_removed_and_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "elsewhere"
    kept.mkdir()
    (kept / "file").write_text("mine")
    with demo_folder(tmp_path / "demo") as folder:
        folder.log.symlink_to(kept)

    with demo_folder(tmp_path / "demo"):
        assert not folder.log.is_symlink()

    assert (kept / "file").read_text() == "mine"


def test_errors_of_other_files_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), demo_folder(tmp_path / "demo"):
        (tmp_path / "not-there").read_text()


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
        idle_partition_s=60,
        keys=KeySettings(by="header:camera"),
    )
