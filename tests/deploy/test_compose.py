"""deploy/compose agrees with the repository, and Docker Compose's own loader takes it."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from deploy.compose.upload import AGAIN, main, upload
from nap_stream.clouds import parsed
from nap_stream.demo.setup import DemoFolder, write_configuration
from nap_stream.objects import ObjectStore
from nap_stream.settings.load import load_settings, masked_tree
from tests.support.apache_kafka import KAFKA_VERSION
from tests.support.prometheus import promtool
from tests.support.waiting import PATIENCE_S

PROJECT = Path(__file__).parents[2]
COMPOSE = PROJECT / "deploy/compose"
LOADER = "github.com/compose-spec/compose-go/v2/cmd@v2.16.2"
TREE: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = TREE["services"]
OWN = {name for name, service in SERVICES.items() if service["image"].startswith("nap-stream:")}


def config(name: str) -> Any:
    return yaml.safe_load(TREE["configs"][name]["content"])


def settings_of(folder: Path) -> dict[str, Any]:
    """The monitor's settings, beside files as setup uploads them."""
    (folder / "calibration").mkdir()
    (folder / "model.safetensors").touch()
    shutil.copy(COMPOSE / "monitor.yaml", folder)
    return masked_tree(load_settings(folder / "monitor.yaml", environ={}))


@pytest.mark.slow
def test_the_loader_of_docker_compose_takes_it() -> None:
    if shutil.which("go") is None:
        pytest.skip("go is not on the path: it runs the loader of Docker Compose")
    command = ["go", "run", LOADER, "-format", "json", str(COMPOSE / "compose.yaml")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S * 3, check=False
    )
    if "dial tcp" in done.stderr or "no such host" in done.stderr:
        pytest.skip(f"the loader cannot be had: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["services"].keys() == SERVICES.keys()


def test_images_of_others_have_versions_and_kafka_that_of_the_tests() -> None:
    for name in SERVICES.keys() - OWN:
        assert re.search(r":v?\d+\.\d+", SERVICES[name]["image"]), name
    assert SERVICES["kafka"]["image"].endswith(f":{KAFKA_VERSION}")
    build = SERVICES["monitor"]["build"]
    assert (COMPOSE / build["context"]).resolve() == PROJECT
    assert (PROJECT / build["dockerfile"]).is_file()


def test_what_is_mounted_is_there_and_nothing_is_published_to_others() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            if isinstance(volume, dict):
                assert volume["bind"] == {"create_host_path": False}, (name, volume)
                assert volume["source"] == "../../demo-run"
                continue
            source = volume.split(":")[0]
            there = source in TREE["volumes"] or (COMPOSE / source).resolve().exists()
            assert there, (name, volume)
        for each in service.get("configs", ()):
            assert each["source"] in TREE["configs"], (name, each)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert set(service.get("depends_on", ())) <= SERVICES.keys(), name
    assert DemoFolder(Path("demo-run")).stream.name in str(SERVICES["producer"]["command"])


def test_log_and_topics_outlive_the_containers_together() -> None:
    kept = {name: str(SERVICES[name]["volumes"][0]).split(":")[1] for name in ("kafka", "s3")}
    assert kept == {"kafka": SERVICES["kafka"]["environment"]["KAFKA_LOG_DIRS"], "s3": "/data"}


def test_setup_leaves_a_running_monitors_model_alone(s3_root: str, tmp_path: Path) -> None:
    (tmp_path / "calibration").mkdir()
    names = ("model.safetensors", "calibration/calibration.json", "calibration/scores.safetensors")
    config, store = tmp_path / "monitor.yaml", ObjectStore(s3_root)
    for text, put in ((b"first", 4), (b"second", 1)):
        for name in (*names, config.name):
            (tmp_path / name).write_bytes(text)
        assert upload(s3_root, tmp_path, config) == put
    assert [store.read(name) for name in (*names, config.name)] == [b"first"] * 3 + [b"second"]


@pytest.mark.parametrize(("root", "code"), [("s3://no-such-bucket/demo", AGAIN), ("", 1)])
def test_setup_tries_again_only_where_the_store_is_away(
    root: str, code: int, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a folder of the demo nothing is put, and no waiting helps.
    folder = tmp_path / "demo-run"
    if root:
        folder.mkdir()
        (folder / "model.safetensors").touch()
        (folder / "calibration").mkdir()
        for name in ("scores.safetensors", "calibration.json"):
            (folder / "calibration" / name).touch()
    arguments = [root or s3_root, str(folder), str(tmp_path / "monitor.yaml")]
    monkeypatch.setattr("sys.argv", ["upload.py", *arguments])
    assert main() == code
    assert f"[ $$code = {AGAIN} ] || exit" in SERVICES["setup"]["command"][0]


def test_programs_of_the_image_are_called_as_they_are() -> None:
    copied = (PROJECT / "deploy/Dockerfile").read_text()
    assert all(f"--tmpfs {SERVICES[name]['tmpfs'][0]} " in copied for name in OWN)
    for name in OWN:
        said = " ".join([*SERVICES[name]["entrypoint"], *SERVICES[name].get("command", [])])
        for path in re.findall(r"/opt/nap-stream/([\w.-]+)", said):
            assert f"deploy/{path}" in copied, (name, path)
        for command in re.findall(r"nap-stream (\w+) [^\n]*", said):
            assert command in {"doctor", "produce"}
    assert "--create-topics" in str(SERVICES["setup"]["command"])
    for option in ("--bootstrap-servers", "--topic", "--rate", "--label-header"):
        assert option in str(SERVICES["producer"]["command"])


def test_the_monitor_is_the_demos_among_these_containers(tmp_path: Path) -> None:
    folder = DemoFolder(tmp_path / "demo")
    folder.calibration.mkdir(parents=True)
    folder.weights.touch()
    write_configuration(folder, broker="kafka:9092", metrics_port=9464, workers=2)
    demo = masked_tree(load_settings(folder.config, environ={}))
    here = settings_of(tmp_path)
    changed = {
        f"{section}.{key}"
        for section in demo
        if isinstance(demo[section], dict)
        for key in demo[section]
        if here[section][key] != demo[section][key]
    }
    assert changed == {
        *("model.weights", "model.python_path", "log.root", "evidence.root"),
        *("alerts.webhook", "alerts.runbook_url", "metrics.host"),
    }


def test_addresses_are_those_of_the_services(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    environment = SERVICES["ray-head"]["environment"]
    assert settings["kafka"]["bootstrap_servers"] == ["kafka:9092"]
    assert "PLAINTEXT://kafka:9092" in str(SERVICES["kafka"]["environment"])
    port = settings["metrics"]["port"]
    assert f"127.0.0.1:{port}:{port}" in SERVICES["ray-head"]["ports"]
    (job,) = config("prometheus")["scrape_configs"]
    assert job["job_name"] == "nap-stream"
    assert job["static_configs"][0]["targets"] == [f"ray-head:{port}"]
    for address in (settings["alerts"]["webhook"]["url"], environment["AWS_ENDPOINT_URL"]):
        assert urlsplit(address).hostname in SERVICES
    (identity,) = config("s3")["identities"]
    (keys,) = identity["credentials"]
    assert keys["accessKey"] == environment["AWS_ACCESS_KEY_ID"]
    assert keys["secretKey"] == environment["AWS_SECRET_ACCESS_KEY"]
    (address,) = SERVICES["monitor"]["command"]
    assert parsed(address)
    assert address.removesuffix("/monitor.yaml") in str(SERVICES["setup"]["command"])


def test_prometheus_takes_its_configuration_with_the_rules(tmp_path: Path) -> None:
    shutil.copy(PROJECT / "deploy/prometheus-rules.yaml", tmp_path)
    (tmp_path / "prometheus.yml").write_text(TREE["configs"]["prometheus"]["content"])
    assert "SUCCESS" in promtool("check", "config", tmp_path / "prometheus.yml")
    assert config("alertmanager")["route"]["receiver"] == "nobody"
