"""Configuration, weights and calibration that lie in an object store."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nap_stream.calibration.artifact import load_calibration, write_calibration
from nap_stream.calibration.calibration import Calibration, require_fingerprint
from nap_stream.errors import (
    CalibrationError,
    ConfigError,
    FingerprintMismatchError,
    ModelError,
    ScoredLogError,
)
from nap_stream.fetched import fetched, is_address, shown
from nap_stream.model.load import load_model
from nap_stream.monitor.run import run_monitor
from nap_stream.objects import ObjectStore
from nap_stream.settings.load import load_settings, masked_tree
from nap_stream.settings.schema import ModelSettings, Settings
from tests.support.clouds import EMULATED
from tests.support.s3 import SECRET_ACCESS_KEY, Fault, FaultProxy
from tests.support.small_calibration import calibration_of
from tests.support.tiny_net import CLASS_NAMES, build

CPU = torch.device("cpu")
CONFIG = """\
kafka: {bootstrap_servers: "localhost:1", topic: cars}
model:
  factory: tests.support.tiny_net:build
  weights: model.safetensors
  class_names_file: classes.txt
  preprocessing: {resize: null, crop: 16}
calibration: calibration
log: {root: log}
"""


@pytest.fixture
def calibration() -> Calibration:
    return calibration_of((0.5, 1.0, 1.5, 2.0), (1.0, 1.5, 2.0, 2.5))


@pytest.fixture
def store(s3_root: str, calibration: Calibration, tmp_path: Path) -> ObjectStore:
    """A store with all that a monitor is made of."""
    return filled(ObjectStore(s3_root), calibration, tmp_path)


def filled(store: ObjectStore, calibration: Calibration, folder: Path) -> ObjectStore:
    write_calibration(calibration, folder / "calibration")
    save_file(build(seed=7).state_dict(), folder / "model.safetensors")
    (folder / "classes.txt").write_text("\n".join(CLASS_NAMES))
    (folder / "monitor.yaml").write_text(CONFIG)
    for file in folder.rglob("*"):
        if file.is_file():
            store.create(str(file.relative_to(folder)), file.read_bytes())
    return store


def settings_in(store: ObjectStore) -> Settings:
    return load_settings(Path(f"{store.root}/monitor.yaml"), environ={})


def test_a_configuration_in_a_store_names_what_lies_beside_it(
    store: ObjectStore, calibration: Calibration
) -> None:
    settings = settings_in(store)
    tree = masked_tree(settings)
    assert tree["calibration"] == f"{store.root}/calibration"
    assert tree["model"]["weights"] == f"{store.root}/model.safetensors"
    assert settings.log.root == f"{store.root}/log"
    assert load_calibration(settings.calibration).fingerprint == calibration.fingerprint
    loaded = load_model(settings.model, CPU)
    assert loaded.class_names == CLASS_NAMES
    with fetched(settings.calibration, CalibrationError, max_bytes=2**20) as folder:
        here = folder
        assert {file.name for file in here.iterdir()} == {"calibration.json", "scores.safetensors"}
        assert stat.S_IMODE(here.parent.stat().st_mode) == 0o700
    assert not here.parent.exists()


@pytest.mark.parametrize("name", EMULATED)
def test_all_that_a_monitor_is_made_of_lies_in_each_cloud(
    request: pytest.FixtureRequest, name: str, calibration: Calibration, tmp_path: Path
) -> None:
    store = filled(ObjectStore(request.getfixturevalue(f"{name}_root")), calibration, tmp_path)
    settings = settings_in(store)
    assert settings.log.root == f"{store.root}/log"
    assert shown(settings.calibration) == f"{store.root}/calibration"
    assert load_calibration(settings.calibration).fingerprint == calibration.fingerprint
    assert load_model(settings.model, CPU).class_names == CLASS_NAMES
    with pytest.raises(CalibrationError, match="there is no such object, and none below it"):
        load_calibration(Path(f"{store.root}/nothing"))


def test_weights_in_a_store_are_the_same_model(store: ObjectStore, tmp_path: Path) -> None:
    settings = settings_in(store).model
    local = settings.model_copy(update={"weights": tmp_path / "model.safetensors"})
    assert load_model(settings, CPU).fingerprint == load_model(local, CPU).fingerprint


def test_a_model_in_a_store_that_is_another_one_is_refused(
    store: ObjectStore, calibration: Calibration
) -> None:
    with pytest.raises(FingerprintMismatchError):
        require_fingerprint(calibration, load_model(settings_in(store).model, CPU))


def test_a_folder_of_files_lies_in_a_store_next_to_a_local_configuration(
    store: ObjectStore, tmp_path: Path
) -> None:
    (tmp_path / "local.yaml").write_text(
        CONFIG.replace("calibration: calibration", f"calibration: {store.root}/calibration")
    )
    settings = load_settings(tmp_path / "local.yaml", environ={})
    assert shown(settings.calibration) == f"{store.root}/calibration"
    assert settings.model.weights == tmp_path / "model.safetensors"
    assert Settings.model_validate(masked_tree(settings)).calibration == settings.calibration


def _remove(name: str) -> Callable[[ObjectStore], None]:
    return lambda store: store.remove([name])


def _damage(name: str) -> Callable[[ObjectStore], None]:
    return lambda store: store.replace(name, b"{}")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_remove("calibration/scores.safetensors"), "scores.safetensors is missing"),
        (_damage("calibration/scores.safetensors"), "damaged"),
        (_damage("calibration/calibration.json"), "not a nap-stream calibration"),
    ],
)
def test_a_calibration_that_cannot_be_read_is_named_by_its_address(
    store: ObjectStore, harm: Callable[[ObjectStore], None], words: str
) -> None:
    harm(store)
    with pytest.raises(CalibrationError, match=words) as caught:
        run_monitor(
            settings_in(store),
            address=None,
            until_idle_s=None,
            max_records=None,
            on_status=lambda _: None,
        )
    assert f"{store.root}/calibration" in str(caught.value)
    assert "/tmp" not in str(caught.value)


def test_a_store_that_cannot_be_asked_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(CalibrationError, match="cannot be fetched: no storage account") as found:
        load_calibration(Path("az://models/calibration"))
    assert found.value.where == "az://models/calibration"
    assert "AZURE_STORAGE_ACCOUNT_NAME" in found.value.action


def test_what_is_not_there_or_not_allowed_says_so(store: ObjectStore, s3: FaultProxy) -> None:
    with pytest.raises(
        CalibrationError, match=r"s3://.*nothing: there is no such object, and none below"
    ):
        load_calibration(Path(f"{store.root}/nothing"))
    with pytest.raises(ConfigError, match=r"s3://.*other\.yaml: there is no such object"):
        load_settings(Path(f"{store.root}/other.yaml"), environ={})
    with pytest.raises(CalibrationError, match="there is no such bucket"):
        load_calibration(Path("s3://no-such-bucket/calibration"))
    s3.fail("GET", *[Fault.DENIED] * 4)
    with pytest.raises(CalibrationError, match="no permission: AccessDenied") as caught:
        load_calibration(Path(f"{store.root}/calibration"))
    assert SECRET_ACCESS_KEY not in str(caught.value)


def test_no_more_is_fetched_than_is_allowed(store: ObjectStore, tmp_path: Path) -> None:
    for name in ("model.safetensors", "calibration"):
        path = Path(f"{store.root}/{name}")
        with (
            pytest.raises(ModelError, match="100 are the most"),
            fetched(path, ModelError, max_bytes=100),
        ):
            pass
    assert list(tmp_path.glob("nap-stream-*")) == []


def test_an_object_that_is_read_in_ranges_comes_whole(store: ObjectStore) -> None:
    content = os.urandom(20 * 2**20)
    store.create("large.bin", content)
    with fetched(Path(f"{store.root}/large.bin"), ModelError, max_bytes=2**30) as file:
        assert file.name == "large.bin"
        assert file.read_bytes() == content


@pytest.mark.parametrize(
    "address",
    [
        "s3://UPPER/x",
        "s3://bucket/a b",
        "s3://bucket/../x",
        "gs://bucket/a?b",
        "az://my.container/x",
        "abfss://container@account.dfs.core.windows.net/x",
        "https://bucket/x",
    ],
)
def test_addresses_that_cannot_be_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="s3://bucket/key, gs://bucket/key or az://container/key"):
        ModelSettings(factory="a:b", weights=Path(address))


def test_a_configuration_at_another_kind_of_address_is_told_which_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^abfss://container/monitor\.yaml: no such kind of store.*or az://container/key",
    ):
        load_settings(Path("abfss://container/monitor.yaml"), environ={})
    monkeypatch.chdir(tmp_path)
    there = Path("odd:/monitor.yaml")
    there.parent.mkdir()
    there.write_text(CONFIG)
    with fetched(there, ConfigError, max_bytes=2**20) as same:
        assert same == there
    assert ModelSettings(factory="a:b", weights=there).weights == there
    with pytest.raises(ValueError, match="expected a path or s3://bucket/key"):
        ModelSettings(factory="a:b", weights=there.with_name("missing"))


@pytest.mark.parametrize(
    "address", ["az://c/p?sig=hush", "s3://k:hush@bucket/x", "https://a.net/c/p.yaml?sig=hush"]
)
def test_a_secret_in_an_address_is_not_shown_and_the_store_not_asked(address: str) -> None:
    with pytest.raises(ConfigError, match=r"Give (a path or )?s3://bucket/key, gs://") as caught:
        load_settings(Path(address), environ={})
    assert "hush" not in str(caught.value)


def test_paths_are_paths(tmp_path: Path) -> None:
    for path in (tmp_path, Path("s3"), Path("a/s3:/b"), Path()):
        assert not is_address(path)
        with fetched(path, ModelError, max_bytes=0) as same:
            assert same == path


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.CUT_BODY])
def test_a_store_that_is_away_is_worth_another_try(
    store: ObjectStore, s3: FaultProxy, fault: Fault
) -> None:
    s3.fail("GET", *[fault] * 30)
    with pytest.raises(ScoredLogError, match="cannot be fetched: the object store failed") as found:
        load_calibration(Path(f"{store.root}/calibration"))
    assert found.value.retriable
    s3.forget()
    load_calibration(Path(f"{store.root}/calibration"))


def test_an_object_that_changes_while_it_is_read_is_worth_another_try(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = bytes(20 * 2**20)
    store.create("large.bin", large)

    def replaces(*_: object) -> shutil._ntuple_diskusage:
        store.replace("large.bin", large + b"more")
        return shutil._ntuple_diskusage(2**40, 0, 2**40)

    monkeypatch.setattr(shutil, "disk_usage", replaces)
    with (
        pytest.raises(ScoredLogError, match="replaced or removed while it was read") as found,
        fetched(Path(f"{store.root}/large.bin"), ModelError, max_bytes=2**30),
    ):
        pass
    assert found.value.retriable


def test_a_folder_that_a_console_made_has_an_object_without_a_name(
    store: ObjectStore, s3: FaultProxy
) -> None:
    base = store.root.removeprefix("s3://")
    for folder in ("calibration/", "calibration/below/"):
        assert s3.forward("PUT", f"/{base}/{folder}", {}, b"")[0] == HTTPStatus.OK
    assert set(ObjectStore(f"{store.root}/calibration").sizes("")) == set(
        store.sizes("calibration")
    )
    assert set(store.sizes("calibration")) == {"calibration.json", "scores.safetensors"}
    assert set(store.names("calibration")) == {"below", "calibration.json", "scores.safetensors"}
    assert "" not in ObjectStore(f"{store.root}/calibration").names("", "a")
    load_calibration(Path(f"{store.root}/calibration"))


def test_what_a_process_that_died_had_fetched_goes_and_what_another_reads_stays(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    path = Path(f"{store.root}/classes.txt")
    code = (
        "import sys; from pathlib import Path; from nap_stream.fetched import fetched\n"
        "from nap_stream.errors import ModelError\n"
        f"with fetched(Path({str(path)!r}), ModelError, max_bytes=100_000) as file:\n"
        "    print(file, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        with fetched(path, ModelError, max_bytes=100_000):
            assert left.is_file()
        assert left.is_file()
        other.kill()
    assert left.is_file()
    with fetched(path, ModelError, max_bytes=100_000) as file:
        assert list(tmp_path.glob("nap-stream-*")) == [file.parent]
    assert not file.parent.exists()


def test_what_there_is_no_room_for_is_told_before_it_is_fetched(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil._ntuple_diskusage(2**40, 2**40, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    for name in ("model.safetensors", "calibration"):
        with (
            pytest.raises(ModelError, match=r"it holds [\d,]+ bytes, and .* has 0 free") as found,
            fetched(Path(f"{store.root}/{name}"), ModelError, max_bytes=2**30),
        ):
            pass
        assert f"{store.root}/{name}" in found.value.where
