"""What two setups differ in, and what may not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nap_stream.errors import ConfigError
from nap_stream.monitor.setup import (
    FIXED,
    MAX_FILE_BYTES,
    NOT_SHOWN,
    Setup,
    changes,
    clouds_of,
    file_digests,
    of_model,
    require_same_monitor,
)
from tests.support.summaries import FACTS, settings


def setup(**sections: dict[str, Any]) -> Setup:
    made = settings(**sections)
    return Setup(made, FACTS, (), file_digests(made))


def test_nothing_differs_from_itself() -> None:
    assert changes(setup(), setup()) == ()


def test_changed_settings_and_a_changed_calibration_are_named() -> None:
    new = setup(drift={"window_records": 50}, worker={"count": "auto"})
    new = replace(new, calibration=replace(FACTS, fingerprint="d" * 64))
    assert changes(setup(), new) == (
        ("calibration_fingerprint", f'"{"c" * 64}"', f'"{"d" * 64}"'),
        ("worker.count", "1", '"auto"'),
        ("drift.window_records", "40", "50"),
    )


def test_of_a_changed_secret_the_name_is_told_and_nothing_else() -> None:
    login = {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_username": "nap",
    }
    old, new = (setup(kafka={**login, "sasl_password": word}) for word in ("first", "second"))
    assert changes(old, new) == (("kafka.sasl_password", NOT_SHOWN, NOT_SHOWN),)


@pytest.mark.parametrize(
    ("sections", "clouds"),
    [
        ({}, set()),
        ({"log": {"root": "s3://bucket/log"}}, {"s3"}),
        ({"log": {"root": "gs://bucket/log"}, "evidence": {"root": "az://kept/x"}}, {"gs", "az"}),
        ({"model": {"weights": Path("az://bucket/w.safetensors")}}, {"az"}),
        ({"model": {"kwargs": {"parts": [{"at": "gs://bucket/w.pt"}]}}}, {"gs"}),
        (
            {
                "kafka": {
                    "security_protocol": "SASL_SSL",
                    "sasl_mechanism": "AWS_MSK_IAM",
                    "aws_region": "eu-central-1",
                }
            },
            {"s3"},
        ),
        ({"messages": {"read": [{"fetch": {"allow_buckets": ["images"]}}]}}, {"s3"}),
        ({"messages": {"read": [{"fetch": {"allow_buckets": ["gs://images"]}}]}}, {"gs"}),
        ({"messages": {"read": [{"fetch": {"allow_hosts": ["images.example"]}}]}}, set()),
    ],
)
def test_the_clouds_of_a_run_are_those_that_its_settings_name(
    sections: dict[str, Any], clouds: set[str]
) -> None:
    assert clouds_of(settings(**sections)) == clouds


def test_the_cloud_of_a_calibration_is_one_too() -> None:
    new = settings().model_copy(update={"calibration": Path("gs://bucket/calibration")})
    assert clouds_of(new) == {"gs"}


def test_another_content_of_a_file_that_settings_name_is_a_change(tmp_path: Path) -> None:
    path, large = tmp_path / "ca.pem", tmp_path / "large"
    path.write_text("first")
    large.write_bytes(bytes(MAX_FILE_BYTES + 1))
    sections: dict[str, Any] = {
        "kafka": {"security_protocol": "SSL", "ssl_cafile": path, "ssl_certfile": large},
        "metrics": {"discovery_file": path},
    }
    old = setup(**sections)
    assert old.files.keys() == {"kafka.ssl_cafile", "kafka.ssl_certfile"}
    assert changes(old, setup(**sections)) == ()
    path.write_text("second")
    large.write_bytes(bytes(MAX_FILE_BYTES + 2))
    told = tuple(
        (f"kafka.ssl_{name}, the file's content", NOT_SHOWN, NOT_SHOWN)
        for name in ("cafile", "certfile")
    )
    assert changes(old, setup(**sections)) == told


def test_a_file_that_is_there_only_now_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.touch()
    made = settings(kafka={"security_protocol": "SSL", "ssl_cafile": path})
    path.unlink()
    old = Setup(made, FACTS, (), file_digests(made))
    path.touch()
    new = Setup(made, FACTS, (), file_digests(made))
    told = (("kafka.ssl_cafile, the file's content", NOT_SHOWN, NOT_SHOWN),)
    assert changes(old, new) == changes(new, old) == told
    without = setup(kafka={"security_protocol": "SSL"})
    assert changes(without, new) == (("kafka.ssl_cafile", "null", f'"{path}"'),)


def test_a_file_that_is_read_for_each_use_is_no_change(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    sections: dict[str, Any] = {
        "alerts": {"webhook": {"url": "https://a.example", "bearer_token_file": token}},
        "tracing": {"endpoint": "https://a.example/v1/traces", "bearer_token_file": token},
    }
    old = setup(**sections)
    token.write_text("second")
    assert changes(old, setup(**sections)) == ()


def test_what_model_is_loaded_follows_from_its_settings_and_the_calibration() -> None:
    new = setup(drift={"window_records": 50}, worker={"count": "auto"})
    assert not of_model(changes(setup(), new))
    assert of_model(changes(setup(), replace(new, calibration=replace(FACTS, fingerprint="d"))))
    assert of_model(changes(setup(), setup(model={"precision": "float16"})))
    assert of_model(changes(replace(setup(), files={"model.weights": "1"}), setup()))


OTHERS: dict[str, Any] = {
    "kafka.bootstrap_servers": "elsewhere:9092",
    "kafka.topic": "other",
    "kafka.topics": ("a", "b"),
    "kafka.topic_pattern": "a.*",
    "kafka.group_id": "other",
    "log.root": Path("other"),
    "alerts.monitor": "other",
    "alerts.topic": "other",
    "metrics.host": "0.0.0.0",
    "metrics.port": 1,
    "metrics.discovery_file": Path("targets.json"),
}


@pytest.mark.parametrize("key", FIXED)
def test_what_makes_another_monitor_is_refused_by_name(key: str) -> None:
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=f"{key} is .* in the run: ") as caught:
        require_same_monitor(settings(), settings(**{section: {name: OTHERS[key]}}), "x.yaml")
    assert caught.value.where == "x.yaml"
    assert "stop the run" in caught.value.action


ENDS = [f"{'camera-' * 30}{number}" for number in range(2)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *[({"topic_pattern": end}, {"topic_pattern": "b"}) for end in ENDS],
        tuple({"topic_pattern": end} for end in ENDS),
        tuple({"topics": (*(f"camera-{n:03}" for n in range(30)), end)} for end in "ab"),
        tuple({"bootstrap_servers": (*["k:1"] * 40, f"{end}:1")} for end in "ab"),
    ],
)
def test_what_differs_far_behind_is_another_monitor_too(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=f"^x.yaml: kafka.{next(iter(new))} is "):
        require_same_monitor(settings(kafka=old), settings(kafka=new), "x.yaml")


def test_all_that_makes_another_monitor_is_named_at_once() -> None:
    new = settings(kafka={"group_id": "other"}, alerts={"monitor": "other"})
    with pytest.raises(ConfigError) as caught:
        require_same_monitor(settings(), new, "x.yaml")
    assert "kafka.group_id" in caught.value.problem
    assert "alerts.monitor" in caught.value.problem


def test_other_settings_are_no_other_monitor() -> None:
    new = settings(kafka={"max_fetch_bytes": 1_000_000}, drift={"window_records": 50})
    require_same_monitor(settings(), new, "x.yaml")
