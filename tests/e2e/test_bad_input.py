"""Users' mistakes: one sentence that names the thing, an exit code, and no traceback."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import structlog
import torch
import yaml

from nap_stream.cli import main
from nap_stream.clock import StopRequest, SystemClock
from nap_stream.errors import FingerprintMismatchError, GpuUnavailableError
from nap_stream.monitor.worker import run_worker
from nap_stream.settings.load import load_settings
from nap_stream.settings.schema import Settings
from tests.e2e.monitor import model_section, new_monitor
from tests.e2e.on_ray import RayHead, start_run
from tests.support.images import write_images
from tests.support.ports import free_port

FAILED, USAGE = 1, 2

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The program in this process: (exit code, stderr)."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def call(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["nap-stream", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert isinstance(code, int)
        return code, capsys.readouterr().err

    yield call
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


def _config(folder: Path, calibration: Path, **sections: Any) -> Path:
    """A configuration without a fault, but for ``sections``."""
    tree = {
        "kafka": {"bootstrap_servers": f"127.0.0.1:{free_port()}", "topic": "images"},
        "model": model_section(),
        "calibration": str(calibration),
        "log": {"root": "log"},
    }
    path = folder / "monitor.yaml"
    path.write_text(yaml.safe_dump(tree | sections))
    return path


def _require_sentence(err: str, *names: str) -> None:
    assert "Traceback" not in err, err
    (sentence,) = [line for line in err.splitlines() if line.startswith("error: ")]
    for name in names:
        assert name in sentence


def test_missing_configuration(run: Run, tmp_path: Path) -> None:
    code, err = run("run", "--config", tmp_path / "none.yaml")
    assert code == USAGE
    _require_sentence(err, "none.yaml")


@pytest.mark.parametrize(
    ("sections", "names"),
    [
        ({"worker": {"cuont": 2}}, ("worker.cuont", "count")),
        ({"worker": {"count": "two"}}, ("worker.count", "two")),
        ({"log": {}}, ("log.root",)),
        ({"model": {"factory": "torchvision.models.resnet18"}}, ("model.factory",)),
    ],
)
def test_wrong_setting(
    run: Run, calibration: Path, tmp_path: Path, sections: dict[str, Any], names: tuple[str, ...]
) -> None:
    code, err = run("run", "--config", _config(tmp_path, calibration, **sections))
    assert code == USAGE
    assert "Traceback" not in err
    for name in names:
        assert name in err


def test_missing_calibration(run: Run, tmp_path: Path) -> None:
    code, err = run("run", "--config", _config(tmp_path, tmp_path / "nowhere"))
    assert code == USAGE
    _require_sentence(err, "calibration", "nowhere")


def test_empty_calibration(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    code, err = run("run", "--config", _config(tmp_path, empty))
    assert code == FAILED
    _require_sentence(err, str(empty))


def test_broker_down(run: Run, calibration: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    kafka = {"bootstrap_servers": address, "topic": "images", "connect_timeout_s": 1}
    code, err = run("run", "--config", _config(tmp_path, calibration, kafka=kafka))
    assert code == FAILED
    _require_sentence(err, address, "no broker answered", "kafka.bootstrap_servers")


@pytest.mark.embedded
def test_missing_topic(
    run: Run,
    embedded: str,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monitor = new_monitor(embedded, tmp_path / "monitor", calibration)
    monkeypatch.setenv("NAP_STREAM__KAFKA__TOPIC", "no-such-topic")
    code, err = run("run", "--config", monitor.config)
    assert code == FAILED
    _require_sentence(err, "no such topic: no-such-topic", embedded, "--create-topics")


def _calibrate(run: Run, folder: Path, model: dict[str, Any], images: Path) -> tuple[int, str]:
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump({"model": model_section() | model}))
    out = folder / "out"
    code, err = run("calibrate", "--model", path, "--images", images, "--out", out)
    assert not out.exists()
    return code, err


def test_factory_that_does_not_import(run: Run, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 20)
    code, err = _calibrate(run, tmp_path, {"factory": "no_such_package.nets:build"}, images)
    assert code == FAILED
    _require_sentence(err, "no_such_package")


def test_weights_that_do_not_fit(run: Run, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 20)
    weights = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"head.weight": torch.zeros(2, 2)}, weights)
    code, err = _calibrate(run, tmp_path, {"weights": str(weights)}, images)
    assert code == FAILED
    _require_sentence(err, "other.safetensors")


def test_no_calibration_images(run: Run, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    code, err = _calibrate(run, tmp_path, {}, images)
    assert code == FAILED
    _require_sentence(err, str(images))


def test_fewer_calibration_images_than_alpha_allows(run: Run, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 18)
    code, err = _calibrate(run, tmp_path, {}, images)
    assert code == FAILED
    _require_sentence(err, "18", "alpha = 0.05 needs at least 19")


class _Nobody:
    """A reporter that must hear nothing: the worker does not start."""

    def submit(self, summary: object) -> None:
        raise AssertionError(summary)

    def report(self, report: object) -> None:
        raise AssertionError(report)


def _work(settings: Settings, num_gpus: float, calibration: str | None = None) -> None:
    stop = StopRequest(SystemClock())
    stop.make()
    run_worker(
        settings,
        "worker-0",
        0,
        num_cpus=1,
        num_gpus=num_gpus,
        reporter=_Nobody(),
        stop=stop,
        clock=SystemClock(),
        calibration=calibration,
    )


def test_a_calibration_that_was_changed_since_the_run_began(
    calibration: Path, tmp_path: Path
) -> None:
    with pytest.raises(FingerprintMismatchError, match="changed since the run began") as caught:
        _work(load_settings(_config(tmp_path, calibration)), 0, "f" * 64)
    assert str(calibration) in caught.value.where


def test_calibration_for_another_model_below_ray(calibration: Path, tmp_path: Path) -> None:
    other = model_section() | {"kwargs": {"seed": 1}}
    with pytest.raises(FingerprintMismatchError) as caught:
        _work(load_settings(_config(tmp_path, calibration, model=other)), 0)
    assert caught.value.action


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPUs")
def test_gpus_that_torch_does_not_see(calibration: Path, tmp_path: Path) -> None:
    with pytest.raises(GpuUnavailableError, match=r"worker\.num_gpus is 1") as caught:
        _work(load_settings(_config(tmp_path, calibration)), 1)
    assert "worker.num_gpus: 0" in caught.value.action


@pytest.mark.ray
@pytest.mark.embedded
@pytest.mark.slow
def test_mistakes_that_show_on_the_cluster(
    embedded: str, calibration: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    """Three runs side by side, since each spends its time on starting processes."""
    (tmp_path / "file").write_text("not a folder")
    other = model_section() | {"kwargs": {"seed": 1}}
    cases: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "root": ({"log": {"root": str(tmp_path / "file" / "log")}}, (str(tmp_path / "file"),)),
        "gpu": ({"worker": {"count": 2, "num_gpus": 1}}, ("need 2 GPUs", "has 0")),
        "other": ({"model": other}, ("calibration", "tests.support.tiny_net:build")),
    }
    programs = {}
    with contextlib.ExitStack() as stack:
        for name, (sections, _) in cases.items():
            monitor = new_monitor(embedded, tmp_path / name, calibration, **sections)
            run = start_run(monitor, ray_head, tmp_path / f"{name}-run")
            programs[name] = stack.enter_context(run)
        for name, (_, names) in cases.items():
            program = programs[name]
            assert program.wait() == FAILED, program.tail
            _require_sentence(program.stderr, *names)
