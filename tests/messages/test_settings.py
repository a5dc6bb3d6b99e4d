"""Chains that fit together, and those that cannot: refused where they are read, with what to do."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from nap_stream.errors import ConfigError
from nap_stream.settings.load import load_settings, masked_yaml
from nap_stream.settings.messages import steps_of
from nap_stream.settings.schema import Settings

REGISTRY = {"url": "https://registry:8081"}
FETCH = {"fetch": {"allow_buckets": ["images"]}}
JSON = {"json_field": {"path": "a"}}
AVRO = {"confluent_avro": {"path": "a"}}


def loaded(folder: Path, environ: dict[str, str] | None = None, **messages: Any) -> Settings:
    tree = {
        "kafka": {"topic": "images"},
        "model": {"factory": "a:b"},
        "calibration": str(folder),
        "log": {"root": "log"},
        "messages": messages,
    }
    path = folder / "monitor.yaml"
    path.write_text(yaml.safe_dump(tree))
    return load_settings(path, environ or {})


@pytest.mark.parametrize(
    ("read", "more"),
    [
        ([], {}),
        (["base64"], {}),
        ([{"base64": None}], {}),
        ([JSON, "base64"], {}),
        ([JSON, "data_uri"], {}),
        ([JSON, FETCH], {}),
        ([JSON, "s3_event", FETCH], {}),
        (["s3_event", FETCH], {}),
        ([JSON, JSON, "base64"], {}),
        (["base64", JSON, "base64"], {}),
        ([AVRO], {"registry": REGISTRY}),
        ([AVRO, "base64"], {"registry": REGISTRY}),
        ([AVRO, FETCH], {"registry": REGISTRY}),
        ([{"confluent_protobuf": {"path": "a"}}], {"registry": REGISTRY}),
    ],
)
def test_chains_that_fit_together(tmp_path: Path, read: list[Any], more: dict[str, Any]) -> None:
    settings = loaded(tmp_path, read=read, **more)
    assert len(settings.messages.read) == len(read)
    assert pickle.loads(pickle.dumps(settings)) == settings
    # What is shown can be read again.
    shown = yaml.safe_load(masked_yaml(settings))["messages"]
    assert loaded(tmp_path, **shown).messages == settings.messages


@pytest.mark.parametrize(
    ("messages", "telling"),
    [
        ({"read": [FETCH, "base64"]}, "nothing comes after fetch"),
        ({"read": ["s3_event"]}, "add fetch, with allow_buckets"),
        ({"read": ["s3_event", "base64"]}, "only fetch can follow"),
        ({"read": [JSON]}, "which gives text: add base64, data_uri or fetch"),
        ({"read": ["base64", AVRO], "registry": REGISTRY}, "put it first"),
        ({"read": [AVRO]}, "needs messages.registry.url"),
        ({"read": ["base64"], "registry": REGISTRY}, "nothing in read uses messages.registry"),
        ({"read": ["base64", "base64"]}, "gives bytes already"),
        ({"read": ["data_uri", "base64"]}, "gives bytes already"),
        ({"read": ["base46"]}, "got 'base46'"),
        ({"read": [{"base46": {}}]}, "Did you mean base64?"),
        ({"read": [{"base64": {}, "data_uri": {}}]}, "exactly one link"),
        ({"read": [{}]}, "exactly one link"),
        ({"read": "base64"}, "read"),
        ({"read": ["base64"] * 11}, "at most 10"),
        ({"read": [{"json_field": {}}]}, "name the field in path"),
        ({"read": [{"json_field": {"path": "a[*].b"}}]}, "named in each"),
        ({"read": [{"json_field": {"path": "a["}}]}, "not a path"),
        ({"read": [{"json_field": {"paht": "a"}}]}, "Did you mean path?"),
        ({"read": [{"json_field": {"path": "a", "event_time_unit": "h"}}]}, "event_time_unit"),
        ({"read": [{"avro_field": {"path": "a", "schema_file": "gone.avsc"}}]}, "gone.avsc"),
        ({"read": [{"fetch": {}}]}, "nothing is allowed"),
        ({"read": [{"fetch": {"allow_buckets": ["*"]}}]}, "or s3://bucket, gs://bucket, az://cont"),
        ({"read": [{"fetch": {"allow_buckets": ["s3://images/a"]}}]}, "without key and"),
        ({"read": [{"fetch": {"allow_buckets": ["gs://images/"]}}]}, "without key and"),
        ({"read": [{"fetch": {"allow_buckets": ["az://UPPER"]}}]}, "without key and"),
        ({"read": [{"fetch": {"allow_buckets": ["https://images"]}}]}, "without key and"),
        ({"read": [{"fetch": {"allow_buckets": ["s3://user:pw@images"]}}]}, "'s3://…@images'"),
        ({"read": [{"fetch": {"allow_hosts": ["*"]}}]}, "wildcards"),
        ({"read": [{"fetch": {"allow_hosts": ["*.example"]}}]}, "wildcards"),
        ({"read": [{"fetch": {"allow_hosts": ["http://a.example"]}}]}, "without scheme"),
        ({"read": [{"fetch": {"allow_hosts": ["a.example/x"]}}]}, "path"),
        (
            {"read": [{"fetch": {"allow_hosts": ["a"], "allow_networks": ["10.0.0.1/8"]}}]},
            "network",
        ),
        ({"read": [{"fetch": {"allow_hosts": ["a"], "timeout_s": 0}}]}, "timeout_s"),
        ({"read": [AVRO], "registry": {"url": "http://u:SECRET@r"}}, "without user"),
        ({"read": [AVRO], "registry": {"url": "ftp://r"}}, "url"),
        ({"read": [AVRO], "registry": {"url": "http://r", "username": "u"}}, "with a password"),
        ({"read": [AVRO], "registry": {"url": "http://r", "password": "SECRET"}}, "PASSWORD"),
        ({"wait_s": -1}, "wait_s"),
    ],
)
def test_chains_that_cannot_be(tmp_path: Path, messages: dict[str, Any], telling: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, **messages)
    assert telling in str(raised.value)
    assert "SECRET" not in str(raised.value)
    assert "messages" in str(raised.value)


def test_the_password_comes_from_the_environment_and_is_not_shown(tmp_path: Path) -> None:
    environ = {"NAP_STREAM__MESSAGES__REGISTRY__PASSWORD": "SECRET"}
    settings = loaded(tmp_path, environ, read=[AVRO], registry={**REGISTRY, "username": "u"})
    assert settings.messages.registry is not None
    assert settings.messages.registry.password is not None
    assert settings.messages.registry.password.get_secret_value() == "SECRET"
    assert "SECRET" not in masked_yaml(settings)
    assert "SECRET" not in repr(settings)


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        ("$", ()),
        ("", ()),
        ("a", ("a",)),
        ("$.a.b", ("a", "b")),
        ("a[0].b[12]", ("a", 0, "b", 12)),
        ('["a.b"].c', ("a.b", "c")),
        ("$[3]", (3,)),
        ("a-b.c_d.é", ("a-b", "c_d", "é")),
    ],
)
def test_steps_of_paths(path: str, steps: tuple[str | int, ...]) -> None:
    assert steps_of(path) == steps
