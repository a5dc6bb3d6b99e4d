from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nap_stream.errors import ConfigError
from nap_stream.scored_log.summary import summary_shape
from nap_stream.settings.load import (
    load_kafka_settings,
    load_model_settings,
    load_settings,
    masked_yaml,
    place_of,
)
from nap_stream.settings.log import hidden_keys

MINIMAL = """\
kafka:
  topic: images
  bootstrap_servers: broker-1:9092, broker-2:9092
model:
  factory: torchvision.models:resnet18
calibration: calibration
log:
  root: scored-log
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    (tmp_path / "calibration").mkdir()

    def write_text(text: str) -> Path:
        path = tmp_path / "monitor.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


def problem_of(path: Path, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, environ or {})
    return str(caught.value)


def test_minimal_file_with_paths_from_its_own_folder(write: Write, tmp_path: Path) -> None:
    settings = load_settings(write(MINIMAL), {})

    assert settings.kafka.bootstrap_servers == ("broker-1:9092", "broker-2:9092")
    assert settings.log.root == tmp_path / "scored-log"
    assert settings.calibration == tmp_path / "calibration"
    assert settings.model.python_path == (tmp_path,)
    assert settings.worker.count == 1


def test_a_link_is_followed_but_not_to_what_an_update_of_a_volume_deletes(tmp_path: Path) -> None:
    """As kubelet lays out a ConfigMap: a link for each file, by one that is swapped."""
    tree = MINIMAL.replace("calibration: calibration", f"calibration: {tmp_path}")
    for number in range(2):
        (tmp_path / f"..2026_{number}").mkdir()
        (tmp_path / f"..2026_{number}" / "monitor.yaml").write_text(f"{tree}# {number}\n")
    data, config = tmp_path / "..data", tmp_path / "monitor.yaml"
    data.symlink_to("..2026_0")
    config.symlink_to("..data/monitor.yaml")
    before, place = load_settings(config, {}), place_of(config)
    data.unlink()
    data.symlink_to("..2026_1")
    assert (load_settings(config, {}), place_of(config)) == (before, place)
    assert (place, before.model.python_path) == (config, (tmp_path,))

    other = tmp_path / "elsewhere" / "link.yaml"
    other.parent.mkdir()
    other.symlink_to(tmp_path / "..2026_1" / "monitor.yaml")
    assert place_of(other) == tmp_path / "..2026_1" / "monitor.yaml"
    assert load_settings(other, {}).log.root == tmp_path / "..2026_1" / "scored-log"


def test_environment_wins_over_the_file(write: Write) -> None:
    environ = {
        "NAP_STREAM__KAFKA__BOOTSTRAP_SERVERS": "other:9093",
        "NAP_STREAM__WORKER__COUNT": "3",
        "NAP_STREAM__MODEL__PREPROCESSING__MEAN": "[0.1, 0.2, 0.3]",
    }

    settings = load_settings(write(MINIMAL), environ)

    assert settings.kafka.bootstrap_servers == ("other:9093",)
    assert settings.worker.count == 3
    assert settings.model.preprocessing.mean == (0.1, 0.2, 0.3)


def test_unknown_key_is_named_with_its_line_and_the_nearest_known_key(write: Write) -> None:
    problem = problem_of(write(MINIMAL + "worker:\n  batchsize: 3\n"))

    assert "monitor.yaml:10, key worker.batchsize: unknown key" in problem
    assert "Did you mean batch_size?" in problem


def test_wrong_unit_is_named_with_what_was_expected(write: Write) -> None:
    problem = problem_of(write(MINIMAL + "worker:\n  linger_ms: 50ms\n"))

    assert "monitor.yaml:10, key worker.linger_ms" in problem
    assert "valid integer" in problem
    assert "'50ms'" in problem


def test_key_without_its_unit_is_answered_with_the_one_that_has_it(write: Write) -> None:
    problem = problem_of(write(MINIMAL + "driver:\n  stall_timeout: 10\n"))

    assert "Did you mean stall_timeout_s?" in problem


def test_missing_file_is_named_with_its_key(write: Write) -> None:
    problem = problem_of(write(MINIMAL.replace("calibration: calibration", "calibration: gone")))

    assert "monitor.yaml:6, key calibration: no such file or folder" in problem


def test_every_problem_is_reported_at_once(write: Write) -> None:
    problem = problem_of(write("kafka:\n  topic: a b\nlogg: {}\n"))

    assert "settings are wrong" in problem
    for part in ("kafka.topic", "key logg: unknown key", "key model: a value is missing"):
        assert part in problem


def test_unknown_environment_key_is_named(write: Write) -> None:
    problem = problem_of(write(MINIMAL), {"NAP_STREAM__KAFAK__TOPIC": "x"})

    assert "environment variable NAP_STREAM__KAFAK__TOPIC, key kafak: unknown key" in problem
    assert "Did you mean kafka?" in problem


def test_a_key_that_stands_twice_in_the_environment_is_refused(write: Write) -> None:
    name = "NAP_STREAM__MODEL__PREPROCESSING"

    problem = problem_of(write(MINIMAL), {name: "{resize: 3, resize: 4}"})

    assert f"environment variable {name}:1: the same key stands here" in problem


def test_a_key_that_stands_again_beside_what_is_merged_takes_its_place(write: Write) -> None:
    merged = MINIMAL + "worker:\n  <<: {count: 2, linger_ms: 7}\n  count: 3\n"
    worker = load_settings(write(merged), {}).worker
    assert (worker.count, worker.linger_ms) == (3, 7)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n- b\n", "expected keys and values at the top level"),
        ("kafka: [unclosed\n", "not valid YAML"),
        ("when: 2026-13-45\n", "not valid YAML"),
        ("", "a value is missing"),
        ("kafka: {topic: a}\nlog: {}\nkafka: {}\n", "monitor.yaml:3: the same key stands here and"),
        (
            "kafka:\n  topic: a\n  'topic': a\n",
            "monitor.yaml:3: the same key stands here and in line",
        ),
        ("log: {root: a, root: b}\n", "stands here and in line 1"),
        ("a: [{b: {c: 1}}, {b: 1, b: 2}]\n", "Remove one of them"),
    ],
)
def test_file_that_is_no_configuration(write: Write, text: str, expected: str) -> None:
    assert expected in problem_of(write(text))


def test_file_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot read the configuration" in problem_of(tmp_path / "gone.yaml")


SASL = MINIMAL.replace(
    "  topic: images",
    "  topic: images\n  security_protocol: SASL_SSL\n  sasl_mechanism: SCRAM-SHA-512\n"
    "  sasl_username: monitor",
)


def test_secret_comes_from_the_environment_and_is_never_shown(write: Write) -> None:
    environ = {"NAP_STREAM__KAFKA__SASL_PASSWORD": "hunter2"}

    settings = load_settings(write(SASL), environ)

    assert settings.kafka.sasl_password is not None
    assert settings.kafka.sasl_password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in masked_yaml(settings)


KEYS = MINIMAL + "  headers: [camera]\n  keys: {key: hashed, headers: {camera: hashed}%s}\n"


def test_the_secret_of_keys_comes_from_the_environment_or_a_file_and_is_never_shown(
    write: Write, tmp_path: Path
) -> None:
    environ = {"NAP_STREAM__LOG__KEYS__SECRET": " 0x1234567890abcdef\n"}
    settings = load_settings(write(KEYS % ""), environ)
    hidden = hidden_keys(settings.log.keys)
    assert hidden.secret == b"0x1234567890abcdef"
    shown = f"{settings!r} {hidden!r} {masked_yaml(settings)} {summary_shape(settings)!r}"
    assert "1234567890" not in shown
    (tmp_path / "secret").write_bytes(b"0x1234567890abcdef\n")
    settings = load_settings(write(KEYS % f", secret_file: {tmp_path / 'secret'}"))
    assert hidden_keys(settings.log.keys) == hidden
    (tmp_path / "secret").write_bytes(b"too short\n")
    with pytest.raises(ConfigError, match="16 to 4096 bytes") as caught:
        hidden_keys(settings.log.keys)
    (tmp_path / "secret").write_bytes(b"k" * 4_096 + b" more")
    with pytest.raises(ConfigError, match="16 to 4096 bytes"):
        hidden_keys(settings.log.keys)
    assert "too short" not in str(caught.value)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("keys: {key: hashed}", "expected one of secret"),
        ("keys: {key: dropped, secret_file: monitor.yaml}", "neither where nothing is"),
        ("keys: {headers: {camera: dropped}}", "which log.headers does not keep"),
        ("keys: {key: encrypted}", "encrypted"),
        ("keys: {key: dropped}", "log.keys drops that"),
        ("keys: {key: hashed, secret: hush}", "secrets are not read from this file"),
    ],
)
def test_what_cannot_be_meant_of_keys_is_refused(write: Write, log: str, expected: str) -> None:
    text = f"{MINIMAL}  {log}\ndrift: {{keys: {{by: key}}}}\n"
    assert expected in problem_of(write(text))


def test_secret_in_the_file_is_refused_without_showing_it(write: Write) -> None:
    problem = problem_of(write(SASL.replace("kafka:", "kafka:\n  sasl_password: hunter2")))

    assert "secrets are not read from this file" in problem
    assert "NAP_STREAM__KAFKA__SASL_PASSWORD" in problem
    assert "hunter2" not in problem


def test_secret_is_not_shown_when_it_is_invalid(write: Write) -> None:
    environ = {"NAP_STREAM__KAFKA__SASL_PASSWORD": "hunter2", "NAP_STREAM__KAFKA__TOPIC": "a b"}

    assert "hunter2" not in problem_of(write(SASL), environ)


@pytest.mark.parametrize("value", ["'hunter2", "*hunter2", "!hunter2", "hunter2: x"])
def test_text_that_is_no_yaml_is_not_quoted(write: Write, value: str) -> None:
    problem = problem_of(write(SASL.replace("kafka:", f"kafka:\n  sasl_password: {value}")))

    assert "monitor.yaml:2: not valid YAML: " in problem
    assert "hunter2" not in problem


@pytest.mark.parametrize("length", [1, 100], ids=["short", "longer than a name may be"])
@pytest.mark.parametrize(
    "key", ["kafka.sasl_password_file", "kafka.ssl_keyfile", "alerts.webhook.bearer_token_file"]
)
def test_a_secret_in_place_of_its_file_is_not_shown(write: Write, key: str, length: int) -> None:
    name = "NAP_STREAM__" + key.upper().replace(".", "__")
    environ = {name: "hunter2" * length, "NAP_STREAM__ALERTS__WEBHOOK__URL": "http://host/"}

    problem = problem_of(write(MINIMAL), environ)

    assert f"environment variable {name}, key {key}: no such file" in problem
    assert "hunter2" not in problem


FETCH = MINIMAL + "messages: {read: [{fetch: {allow_hosts: [images.example], ..}}]}\n"


@pytest.mark.parametrize(
    "part",
    [
        "bearer_token_files: {images.example: sk-77}",
        "bearer_token_files: {images.example: 77}",
        "bearer_token_files: {images.example: {a: sk-77}}",
        "bearer_token_files: {sk-77: images.example}",
        "bearer_token_files: {sk-77}",
        "bearer_token_files: {77: token}",
        "bearer_token_files: sk-77",
        "bearer_token_files: 77",
        "bearer_token_files: [sk-77]",
        "sk-77: token",
    ],
)
def test_a_token_in_place_of_its_file_or_host_is_not_shown(write: Write, part: str) -> None:
    text = FETCH.replace("..", part)
    problem = problem_of(write(text))
    assert "monitor.yaml:9, key messages.read.0.fetch" in problem
    assert "77" not in problem
    # Nor where a whole list stands in the environment, and no line is known.
    read = yaml.safe_dump(yaml.safe_load(text)["messages"]["read"])
    assert "77" not in problem_of(write(MINIMAL), {"NAP_STREAM__MESSAGES__READ": read})


@pytest.mark.parametrize("value", ["[sk-77]", "77", "{a: sk-77}", "{sk-77: a}", "[[sk-77]]"])
@pytest.mark.parametrize(
    "key",
    [
        *("KAFKA__SSL_KEYFILE", "KAFKA__SASL_PASSWORD_FILE", "KAFKA__SASL_PASSWORD__X"),
        *("ALERTS__WEBHOOK__URL", "ALERTS__WEBHOOK", "MESSAGES__REGISTRY__PASSWORD_FILE"),
        *("MESSAGES__REGISTRY", "MESSAGES__READ", "MESSAGES"),
    ],
)
def test_a_secret_of_another_type_is_not_shown(write: Write, key: str, value: str) -> None:
    assert "77" not in problem_of(write(MINIMAL), {f"NAP_STREAM__{key}": value})


def test_a_host_has_one_token_whatever_its_capitals(write: Write, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("sk-77")
    one = FETCH.replace("..", "bearer_token_files: {Images.Example: token}")
    fetch = load_settings(write(one), {}).messages.fetch
    assert fetch is not None
    assert fetch.bearer_token_files == {"images.example": tmp_path / "token"}
    two = one.replace("{Images", "{images.example: token, Images")
    assert "bearer_token_files: a host is named twice" in problem_of(write(two))


WEBHOOK = MINIMAL + "alerts:\n  webhook:\n    url: {}\n"


REGISTRY = "messages: {read: [{confluent_avro: {path: a}}], registry: {url: 'URL', SECRET}}"


@pytest.mark.parametrize(
    ("section", "secret"),
    [
        ("alerts: {webhook: {url: 'URL', bearer_token_file: token}}", "token"),
        ("tracing: {endpoint: 'URL', bearer_token_file: token}", "token"),
        (REGISTRY.replace("SECRET", "bearer_token_file: token"), "token"),
        (REGISTRY.replace("SECRET", "username: u, password_file: token"), "password"),
    ],
)
def test_a_secret_goes_over_https_or_stays_on_this_machine(
    write: Write, tmp_path: Path, section: str, secret: str
) -> None:
    (tmp_path / "token").write_text("s3cret")
    for url in ("https://elsewhere/a", "http://localhost:1/a", "http://[::1]:1/a"):
        load_settings(write(MINIMAL + section.replace("URL", url) + "\n"), environ={})
    for url in ("http://elsewhere/a", "http://10.0.0.1/a", "http://localhost.elsewhere/a"):
        with pytest.raises(ConfigError, match=f"expected https: the {secret} would go over"):
            load_settings(write(MINIMAL + section.replace("URL", url) + "\n"), environ={})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hooks.example:8443/services/hush", "https://hooks.example:8443/…"),
        ("http://host?token=hush", "http://host/…"),
        ("http://[::1]:80#hush", "http://[::1]:80/…"),
        ("https://host\\hush", "https://host/…"),
        ("http://host:9093", "http://host:9093"),
        ("http://host:9093/", "http://host:9093/"),
    ],
)
def test_of_the_address_of_a_webhook_only_the_origin_is_shown(
    write: Write, url: str, shown: str
) -> None:
    settings = load_settings(write(WEBHOOK.format(url)), {})

    assert settings.alerts.webhook is not None
    assert settings.alerts.webhook.url == url
    text = masked_yaml(settings)
    assert yaml.safe_load(text)["alerts"]["webhook"]["url"] == shown
    assert "hush" not in text + repr(settings)


def test_a_masked_address_must_be_filled_in_again(write: Write) -> None:
    text = masked_yaml(load_settings(write(WEBHOOK.format("https://host/hush")), {}))

    problem = problem_of(write(text))

    assert "key alerts.webhook.url: the address is masked: fill in what … stands for" in problem
    assert load_settings(
        write(text), {"NAP_STREAM__ALERTS__WEBHOOK__URL": "https://host/hush"}
    ) == load_settings(write(WEBHOOK.format("https://host/hush")), {})


@pytest.mark.parametrize(
    "root",
    ["S3:/bucket/log", "s3:bucket", "s3a:/bucket", "https:/a.net/b", "ABFSS:/c@a/b", "file:/tmp"],
)
def test_a_root_that_is_meant_for_a_store_is_no_folder(write: Write, root: str) -> None:
    problem = problem_of(write(MINIMAL), {"NAP_STREAM__LOG__ROOT": root})
    assert "key log.root: expected a path or s3://bucket/prefix" in problem


@pytest.mark.parametrize("root", ["data:2026", "./data:2026", "./s3:bucket", "a/s3:/b", "s3"])
def test_a_folder_may_have_a_colon_in_its_name(write: Write, root: str) -> None:
    config = write(MINIMAL)
    settings = load_settings(config, {"NAP_STREAM__LOG__ROOT": root})
    assert settings.log.root == config.parent / root


def test_a_user_and_a_password_in_an_address_are_not_shown(write: Write) -> None:
    environ = {
        "NAP_STREAM__LOG__ROOT": "s3://user:hunter2@bucket/log",
        "NAP_STREAM__KAFKA__BOOTSTRAP_SERVERS": "SASL://user:hunter2@broker",
    }

    problem = problem_of(write(MINIMAL), environ)

    assert "key log.root: expected a path or s3://bucket/prefix" in problem
    assert "expected host:port, got 'broker'" in problem
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("KAFKA__BOOTSTRAP_SERVERS", "user:hunter2@broker:9092"),
        ("ALERTS__RUNBOOK_URL", "https://user:hunter2@wiki/x"),
        ("ALERTS__DASHBOARD_URL", "https://hunter2@grafana"),
    ],
)
def test_an_address_with_a_password_is_refused_where_it_would_be_shown(
    write: Write, key: str, value: str
) -> None:
    problem = problem_of(write(MINIMAL), {f"NAP_STREAM__{key}": value})
    assert "expected" in problem
    assert "hunter2" not in problem


@pytest.mark.parametrize("key", ["LOG__ROOT", "CALIBRATION", "EVIDENCE__ROOT"])
def test_an_address_that_is_refused_is_shown_without_a_secret(write: Write, key: str) -> None:
    address = "https://a.blob.core.windows.net/c/p?sv=1&sig=hunter2"
    problem = problem_of(write(MINIMAL), {f"NAP_STREAM__{key}": address})
    assert "a.blob.core.windows.net/c/p?…'" in problem
    assert "hunter2" not in problem


def test_what_a_factory_takes_is_shown_without_secrets(write: Write) -> None:
    kwargs = (
        "{api_key: hush1, auth: {Password: hush2, depth: 18, token: 7}, "
        "tokens: [hush3], url: 'https://u:hush4@hub/m', parts: [{client_secret: hush5}]}"
    )
    model = "torchvision.models:resnet18\n"
    text = MINIMAL.replace(model, f"{model}  kwargs: {kwargs}\n")
    settings = load_settings(write(text), {})

    shown = masked_yaml(settings)

    assert settings.model.kwargs["api_key"] == "hush1"
    assert yaml.safe_load(shown)["model"]["kwargs"]["auth"]["depth"] == 18
    assert yaml.safe_load(shown)["model"]["kwargs"]["auth"]["token"] == 7
    assert "hush" not in shown
    assert "a value is masked" in problem_of(write(shown))
    assert "hush" not in repr(settings)


KWARGS_WITH_ADDRESSES = """
    weights: https://h/w?sig=hush
    more: [{from: 'S3://u:hush@b/k'}, ['HTTPS://h/x?X-Amz-Signature=hush']]
    mirrors: {'https://h/x?sig=hush1': 1, 'https://h/x?sig=hush2': 2}
    both: first http://a/b then https://u:hush@h/c
    broken: 'https:/u:hu sh@h'
    plain: {path: /data/x@2x.png, text: 'what? me@home', url: 's3://b/k', n: null, list: [1, a]}
"""


def test_an_address_anywhere_is_shown_without_what_may_be_a_secret(write: Write) -> None:
    model = "torchvision.models:resnet18\n"
    text = MINIMAL.replace(model, f"{model}  kwargs:{KWARGS_WITH_ADDRESSES}")
    alerts = "alerts: {labels: {from: 'https://h/x?sig=hush'}, dashboard_url: 'https://g/d?a=1'}\n"
    settings = load_settings(write(text + alerts), {})

    shown = masked_yaml(settings)

    assert "hush" not in shown
    tree = yaml.safe_load(shown)
    kwargs = tree["model"]["kwargs"]
    assert kwargs["plain"] == settings.model.kwargs["plain"]
    assert kwargs["weights"] == "https://h/w?**********"
    assert list(kwargs["mirrors"].values()) == [1, 2]
    assert tree["alerts"]["dashboard_url"] == "https://g/d?a=1"


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("alerts: {labels: {from: 'https://h/x?**********'}}\n", "alerts.labels"),
        ("tracing: {endpoint: 'https://h/x?**********'}\n", "tracing.endpoint"),
        ("alerts: {labels: {'**********': x}}\n", "alerts.labels"),
    ],
)
def test_any_value_that_is_masked_must_be_filled_in_again(
    write: Write, section: str, key: str
) -> None:
    problem = problem_of(write(MINIMAL + section))
    assert f"key {key}" in problem
    assert "a value is masked" in problem


def test_sasl_without_a_password_is_refused(write: Write) -> None:
    assert "needs sasl_mechanism, sasl_username and a password" in problem_of(write(SASL))


def test_settings_in_force_can_be_read_again(write: Write, tmp_path: Path) -> None:
    settings = load_settings(write(MINIMAL), {"NAP_STREAM__WORKER__COUNT": "2"})
    again = tmp_path / "again.yaml"
    again.write_text(masked_yaml(settings), encoding="utf-8")

    assert load_settings(again, {}) == settings


def test_revocation_must_fit_into_the_session(write: Write) -> None:
    problem = problem_of(write(MINIMAL + "worker:\n  revoke_deadline_s: 40\n"))

    assert "revoke_deadline_s must be at most half" in problem


def test_model_section_of_a_whole_configuration(write: Write, tmp_path: Path) -> None:
    settings = load_model_settings(write(MINIMAL), {"NAP_STREAM__MODEL__FEATURE_LAYER": "avgpool"})

    assert settings.factory == "torchvision.models:resnet18"
    assert settings.feature_layer == "avgpool"
    assert settings.python_path == (tmp_path,)


def test_model_file_that_holds_nothing_else(write: Write) -> None:
    assert load_model_settings(write("factory: a.b:c\n"), {}).factory == "a.b:c"


def test_model_factory_must_name_a_callable(write: Write) -> None:
    with pytest.raises(ConfigError, match="key factory"):
        load_model_settings(write("factory: torchvision.models.resnet18\n"), {})


def test_kafka_section_alone_needs_no_calibration(write: Write) -> None:
    path = write("kafka:\n  topic: images\n")

    assert load_kafka_settings(path, {}).topic == "images"


def test_settings_are_frozen(write: Write) -> None:
    settings = load_settings(write(MINIMAL), {})

    with pytest.raises(ValueError, match="frozen"):
        settings.calibration = Path("elsewhere")  # type: ignore[misc]  # that is the point
