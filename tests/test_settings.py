from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from nap_stream.core.methods import every_method
from nap_stream.core.score_specs import ScoreParameters
from nap_stream.errors import ConfigError
from nap_stream.settings.alerts import AlertSettings
from nap_stream.settings.drift import DriftSettings
from nap_stream.settings.load import load_scoring_settings, load_settings, masked_yaml
from nap_stream.settings.run import WorkerSettings
from nap_stream.settings.schema import PreprocessingSettings, ScoringSettings

MONITOR = """\
kafka:
  topic: images
model:
  factory: a:b
calibration: .
log:
  root: log
  headers: [site]
"""


def monitor(tmp_path: Path, more: str) -> Path:
    path = tmp_path / "monitor.yaml"
    path.write_text(MONITOR + more, encoding="utf-8")
    return path


def problem_of(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {})
    return str(caught.value)


def test_scoring_parameters_are_those_of_the_base_scores() -> None:
    assert ScoringSettings().parameters() == ScoreParameters()
    changed = ScoringSettings(knn_k=3, fit_limit=40, react_percentile=0.8, scores=("knn",))
    assert changed.parameters() == ScoreParameters(knn_k=3, knn_bank_size=40, react_percentile=0.8)


def test_fewer_images_to_fit_on_than_neighbours_are_refused() -> None:
    with pytest.raises(ValidationError, match="knn_k must be below fit_limit"):
        ScoringSettings(knn_k=10, fit_limit=10)
    assert ScoringSettings(knn_k=10, fit_limit=11).fit_limit == 11


def test_scaled_decoding_needs_a_size_to_scale_to() -> None:
    assert PreprocessingSettings(scaled_decoding=True).scaled_decoding
    with pytest.raises(ValidationError, match="scaled_decoding needs resize"):
        PreprocessingSettings(scaled_decoding=True, resize=None)


def test_preprocessing_is_written_without_later_keys_at_their_defaults() -> None:
    first = {"resize", "crop", "interpolation", "mean", "std"}
    assert set(PreprocessingSettings().model_dump(mode="json")) == first
    scaled = PreprocessingSettings(scaled_decoding=True)
    assert set(scaled.model_dump(mode="json")) == first | {"scaled_decoding"}
    assert PreprocessingSettings(**scaled.model_dump()) == scaled


LATER: dict[str, object] = {
    "bits": 12,
    "exif_orientation": "apply",
    "channel_order": "bgr",
    "raw": {"format": "bayer_rggb12", "width": 640, "height": 480},
}


@pytest.mark.parametrize("key", LATER)
def test_how_pixels_are_read_is_a_part_of_what_fingerprints_cover(key: str) -> None:
    settings = PreprocessingSettings.model_validate({key: LATER[key]})
    assert settings.model_dump(mode="json")[key] == LATER[key]
    assert PreprocessingSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize("key", ["exif_orientation", "channel_order"])
def test_what_nvjpeg_does_not_do_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="jpeg_decoder is nvjpeg"):
        PreprocessingSettings.model_validate({key: LATER[key], "jpeg_decoder": "nvjpeg"})


@pytest.mark.parametrize("tree", [{"bits": 9}, {"bits": 8.5}, {"channel_order": "gbr"}])
def test_what_is_no_way_to_read_pixels(tree: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PreprocessingSettings.model_validate(tree)


def test_a_printed_configuration_has_every_key(tmp_path: Path) -> None:
    printed = yaml.safe_load(masked_yaml(load_settings(monitor(tmp_path, ""), {})))
    keys = set(printed["model"]["preprocessing"])
    assert keys == set(PreprocessingSettings.model_fields)


ELSEWHERE = MONITOR.replace("  factory: a:b\n", "  elsewhere: {name: parts/1}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            ELSEWHERE.replace("parts/1}", "parts/1}\n  factory: a:b"),
            "the model runs elsewhere, and factory would say how it runs here",
        ),
        (
            ELSEWHERE.replace("parts/1}", "parts/1}\n  precision: bfloat16\n  weights: ."),
            "the model runs elsewhere, and precision, weights would say",
        ),
        (
            ELSEWHERE.replace("parts/1}", "parts/1}\n  preprocessing: {resize: 256}"),
            "the model runs elsewhere, and preprocessing would say",
        ),
        (
            ELSEWHERE.replace("parts/1}", "parts/1, head: .}\n  output_kind: sigmoid"),
            "output_kind is sigmoid: the scores that take the layer are left out",
        ),
        (ELSEWHERE.replace("parts/1}", "parts/1, head_layer: fc}"), "head_layer names a layer"),
        (ELSEWHERE.replace("parts/1", "' '"), "it is blank"),
        (ELSEWHERE.replace("{name: parts/1}", "{}"), "key model.elsewhere.name"),
        (f"{ELSEWHERE}evidence: {{root: images}}\n", "with model.elsewhere there are none"),
        (ELSEWHERE + "messages: {read: [base64]}\n", "messages.read finds images"),
        (ELSEWHERE + "worker: {num_gpus: 1}\n", "worker.num_gpus asks for a GPU"),
        (MONITOR.replace("  factory: a:b\n", "  output_kind: logits\n"), "or elsewhere"),
    ],
)
def test_a_model_elsewhere_is_in_place_of_one_here(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "monitor.yaml"
    path.write_text(text, encoding="utf-8")
    assert expected in problem_of(path)


def test_a_printed_configuration_of_a_model_elsewhere_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "monitor.yaml"
    path.write_text(ELSEWHERE, encoding="utf-8")
    settings = load_settings(path, {})
    assert (settings.model.origin, settings.model.where) == (
        "parts/1",
        "model.elsewhere.name = 'parts/1'",
    )
    path.write_text(masked_yaml(settings), encoding="utf-8")
    assert load_settings(path, {}) == settings


def test_beside_a_model_elsewhere_what_says_nothing_is_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "monitor.yaml"
    path.write_text(ELSEWHERE, encoding="utf-8")
    plain = load_settings(path, {})
    unset = "factory: null\n  kwargs: {}\n  weights: null\n  feature_layer: null\n"
    path.write_text(ELSEWHERE.replace("1}\n", f"1}}\n  {unset}  preprocessing: {{}}\n"))
    assert load_settings(path, {}) == plain
    path.write_text(MONITOR)
    environ = {
        "NAP_STREAM__MODEL__FACTORY": "null",
        "NAP_STREAM__MODEL__ELSEWHERE__NAME": "parts/1",
    }
    assert load_settings(path, environ) == plain
    path.write_text(ELSEWHERE.replace("1}\n", "1}\n  channels_last: false\n"))
    assert "channels_last would say how it runs here" in problem_of(path)


def test_every_method_is_a_setting() -> None:
    for method in every_method():
        assert ScoringSettings(method=str(method)).method == str(method)


def test_an_unknown_method_in_a_file_is_named_once_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "monitor.yaml"
    path.write_text("model:\n  factory: a:b\nscoring:\n  method: knnn\n")
    with pytest.raises(ConfigError) as caught:
        load_scoring_settings(path, {})
    message = str(caught.value)
    assert caught.value.where == f"{path}:4, key method"
    assert message.count("knnn") == 1
    assert "expected one of auto, nap, msp" in message
    assert "\n" not in message


def test_one_false_alarm_in_30_days_is_asked_for_by_default() -> None:
    assert DriftSettings().run_length == 30 * 86_400 * 50
    assert DriftSettings(false_alarms="one per week at 2 images/s").run_length == 7 * 86_400 * 2
    assert DriftSettings(expected_run_length=1e6).run_length == 1e6


def test_the_promise_is_given_once() -> None:
    with pytest.raises(ValidationError, match="false_alarms or expected_run_length, not both"):
        DriftSettings(false_alarms="one per week at 2 images/s", expected_run_length=1e6)


def test_drift_from_a_file_and_the_environment(tmp_path: Path) -> None:
    path = monitor(
        tmp_path,
        "drift:\n  false_alarms: one per day at 10 images/s\n  keys:\n    by: header:site\n",
    )
    environ = {
        "NAP_STREAM__DRIFT__CONFIDENCE": "0.99",
        "NAP_STREAM__DRIFT__KEYS__MAX_KEYS": "500",
        "NAP_STREAM__ALERTS__WEBHOOK__URL": "http://alertmanager:9093/api/v2/alerts",
    }
    settings = load_settings(path, environ)
    assert settings.drift.run_length == 864_000
    assert settings.drift.confidence == 0.99
    assert settings.drift.keys is not None
    assert (settings.drift.keys.by, settings.drift.keys.max_keys) == ("header:site", 500)
    assert settings.drift.keys.one_per_pane is False
    assert settings.alerts.webhook is not None
    assert settings.alerts.webhook.attempts == 4


def test_neither_keys_nor_a_webhook_by_default(tmp_path: Path) -> None:
    settings = load_settings(monitor(tmp_path, ""), {})
    assert settings.drift.keys is None
    assert settings.alerts.webhook is None
    assert settings.alerts.labels == {}


def test_a_sentence_that_is_not_understood_is_answered_with_examples(tmp_path: Path) -> None:
    problem = problem_of(monitor(tmp_path, "drift:\n  false_alarms: once in a blue moon\n"))
    assert "monitor.yaml:10, key drift.false_alarms: expected" in problem
    assert '"one per 30 days at 50 images/s"' in problem
    assert problem.count("blue moon") == 1
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "drift:\n  false_alarms: one per 9999999999999999 years at 1 image/s\n",
            "key drift.false_alarms: expected 100 to 1e+15 records",
        ),
        ("drift:\n  false_alarm_probability: 0.01\n", "Did you mean false_alarms?"),
        ("drift:\n  expected_run_length: 99\n", "key drift.expected_run_length"),
        ("drift:\n  expected_run_length: .nan\n", "key drift.expected_run_length"),
        ("drift:\n  confidence: 1.0\n", "key drift.confidence"),
        ("drift:\n  keys:\n    by: site\n", "key drift.keys.by"),
        ("drift:\n  keys:\n    by: 'header:'\n", "key drift.keys.by"),
        (
            "drift:\n  keys:\n    by: header:camera\n",
            "drift.keys.by names the header 'camera': add it to log.headers",
        ),
        ("drift:\n  keys:\n    max_key: 3\n", "Did you mean max_keys?"),
        ("drift:\n  keys:\n    max_keys: 0\n", "key drift.keys.max_keys"),
        ("alerts:\n  critical_fraction: 30\n", "key alerts.critical_fraction"),
        ("alerts:\n  repeat_interval: 60\n", "Did you mean repeat_interval_s?"),
        ("alerts:\n  webhook: {}\n", "key alerts.webhook.url: a value is missing"),
        ("alerts:\n  webhook:\n    url: ftp://host/\n", "key alerts.webhook.url"),
        (
            "alerts:\n  webhook:\n    url: http://host/\n    ca_file: gone.pem\n",
            "key alerts.webhook.ca_file: no such file or folder",
        ),
        ("alerts:\n  runbook_url: wiki\n", "key alerts.runbook_url"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problem_of(monitor(tmp_path, text))


def test_a_webhook_with_a_password_in_its_address_is_refused(tmp_path: Path) -> None:
    text = "alerts:\n  webhook:\n    url: https://user:secret@host/\n"
    problem = problem_of(monitor(tmp_path, text))
    assert "key alerts.webhook.url" in problem
    assert "secret" not in problem


@pytest.mark.parametrize("secret", ["?apikey=hush", "?hush", "@hush/"])
def test_the_address_of_a_tsa_holds_no_secret(tmp_path: Path, secret: str) -> None:
    signed = f"  checkpoints: {{key_file: k, timestamp_url: 'https://tsa/tsr{secret}'}}\n"
    path = tmp_path / "monitor.yaml"
    path.write_text(MONITOR.replace("log:\n", f"log:\n{signed}"))
    problem = problem_of(path)
    assert "key log.checkpoints.timestamp_url" in problem
    assert "hush" not in problem


@pytest.mark.parametrize(
    "url",
    [
        *("htp://host/hush", "http://host/a b?token=hush", "hush" * 600, "http://[::1/hush"),
        *("http:///hush", "http://host:hush/"),
    ],
)
def test_a_wrong_address_of_a_webhook_is_not_shown(tmp_path: Path, url: str) -> None:
    """Its path or query may be what lets one in."""
    problem = problem_of(monitor(tmp_path, f"alerts:\n  webhook:\n    url: {url}\n"))
    assert "key alerts.webhook.url" in problem
    assert "hush" not in problem


@pytest.mark.parametrize(
    ("key", "section", "text"),
    [
        ("alerts.webhook", "", "alerts: {webhook: 'https://hush/'}\n"),
        ("alerts", "", "alerts: 'https://hush/'\n"),
        ("kafka", "kafka:\n  topic: images\n", "kafka: hush\n"),
    ],
)
def test_what_stands_in_place_of_a_section_with_secrets_is_not_shown(
    tmp_path: Path, key: str, section: str, text: str
) -> None:
    path = tmp_path / "monitor.yaml"
    path.write_text(MONITOR.replace(section, "", 1) + text)
    problem = problem_of(path)
    assert f"key {key}: expected keys: " in problem
    assert "hush" not in problem


@pytest.mark.parametrize("key", ["alerts.webhook", "alerts", "kafka"])
def test_nor_is_it_where_it_comes_from_the_environment(tmp_path: Path, key: str) -> None:
    name = "NAP_STREAM__" + key.upper().replace(".", "__")
    with pytest.raises(ConfigError, match=f"variable {name}, key {key}: expected keys: ") as caught:
        load_settings(monitor(tmp_path, ""), {name: "https://hush/"})
    assert "hush" not in str(caught.value)


def test_a_section_without_secrets_shows_what_stands_in_its_place(tmp_path: Path) -> None:
    problem = problem_of(monitor(tmp_path, "worker: 3\n"))
    assert "key worker: expected keys: count, min_count, " in problem
    assert problem.endswith("got 3")


def test_an_address_in_place_of_a_key_is_not_shown(tmp_path: Path) -> None:
    problem = problem_of(monitor(tmp_path, "alerts: {webhook: {https://hooks.example/hush}}\n"))
    assert "key alerts.webhook.url: a value is missing" in problem
    assert "key alerts.webhook: a key is not a name. Known here: attempts, " in problem
    assert "hush" not in problem


@pytest.mark.parametrize(
    "labels",
    [
        {"": "x"},
        {"2nd": "x"},
        {"team-a": "x"},
        {"n" * 101: "x"},
        {"team": "x" * 1_001},
        {"alertname": "x"},
        {"severity": "x"},
        {"key": "x"},
    ],
)
def test_labels_that_alertmanager_would_refuse_or_that_are_taken_are_refused(
    labels: dict[str, Any],
) -> None:
    with pytest.raises(ValidationError, match="expected letters, digits and _"):
        AlertSettings(labels=labels)


def test_labels_of_all_allowed_letters_are_kept() -> None:
    labels = {"team": "vision", "_Site2": "x" * 1_000, "n" * 100: ""}
    assert AlertSettings(labels=labels).labels == labels


def test_scaled_decoding_is_of_the_cpus_decoder() -> None:
    with pytest.raises(ValidationError, match="jpeg_decoder is nvjpeg"):
        PreprocessingSettings(scaled_decoding=True, jpeg_decoder="nvjpeg")


def test_the_decoder_is_a_part_of_what_fingerprints_cover() -> None:
    dumped = PreprocessingSettings(jpeg_decoder="nvjpeg").model_dump(mode="json")
    assert dumped["jpeg_decoder"] == "nvjpeg"
    assert "jpeg_decoder" not in PreprocessingSettings().model_dump(mode="json")


@pytest.mark.parametrize(
    ("root", "is_refused"),
    [
        *((root, True) for root in ("log", "log/images", ".", "log2/../log/images", "link/images")),
        *((root, False) for root in ("log2", "log/../images", "s3://images/log")),
    ],
)
def test_evidence_lies_apart_from_the_log(tmp_path: Path, root: str, is_refused: bool) -> None:
    (tmp_path / "link").symlink_to("log")
    path = monitor(tmp_path, f"evidence: {{root: '{root}'}}\n")
    if is_refused:
        assert "evidence.root and log.root must lie apart" in problem_of(path)
    else:
        assert load_settings(path, {}).evidence.root in {root, tmp_path / root}


@pytest.mark.parametrize(
    ("worker", "problem"),
    [
        ({"count": "auto", "autoscaled": True}, "autoscaled needs num_gpus"),
        ({"count": "auto", "min_count": 5, "max_count": 4}, "min_count must be at most max_count"),
        ({"count": "many"}, "Input should be 'auto'"),
    ],
)
def test_counts_of_workers_that_contradict_each_other(
    worker: dict[str, object], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        WorkerSettings.model_validate(worker)


WRITTEN = """\
alerts: {topic: images-alerts}
dead_letters: {topic: images-dead-letters}
"""


@pytest.mark.parametrize(
    ("kafka", "read"),
    [
        ("topic: images", ["images"]),
        ("{topic: images, topics: [b, a]}", ["a", "b"]),
        ("{topic: all, topic_pattern: images.*}", ["images", "images-2"]),
        ("{topic: all, topic_pattern: images}", ["images"]),
        ("{topic: all, topic_pattern: '(?i:A|IMAGES)'}", ["a", "images"]),
        ("{topic: all, topic_pattern: '([a-z]+-)*(a|b|images)'}", ["a", "b", "images"]),
        ("{topic: all, topic_pattern: '[a-z]*-[0-9]*-[a-z]*-.*|.*-2.*'}", ["images-2"]),
        ("{topic: all, topic_pattern: a|.*}", ["a", "b", "images", "images-2"]),
    ],
)
def test_which_topics_are_read(tmp_path: Path, kafka: str, read: list[str]) -> None:
    path = monitor(tmp_path, WRITTEN)
    path.write_text(path.read_text().replace("\n  topic: images", f" {kafka}"))
    if kafka == "topic: images":
        path.write_text(MONITOR + WRITTEN)
    settings = load_settings(path)
    there = ["images", "images-2", "images-alerts", "images-dead-letters", "a", "b", "__own"]
    assert list(settings.reads.among(there)) == read
    path.write_text(masked_yaml(settings))
    assert load_settings(path).reads == settings.reads


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("topics: [a, a]", "topics has a name twice"),
        ("topics: [a, __consumer_offsets]", "__consumer_offsets is Kafka's own"),
        ("topics: [a, ..]", "Kafka has no topic .."),
        (f'topic_pattern: "{"(" * 499}{")" * 499}"', "no regular expression"),
        ('topic_pattern: "a{99999999999}"', "no regular expression"),
        ("topics: [a]\nalerts: {topic: z}\ndead_letters: {topic: z}", "need a topic each"),
        ("topics: [a, nap-stream-alerts]", "which this monitor writes"),
        ("topics: [a/b]", "pattern"),
        ("topic_pattern: null\nalerts: {topic: images}", "kafka.topic is images, which this"),
        ('topic_pattern: "("', "no regular expression"),
        ('topic_pattern: "a)|(b"', "no regular expression"),
        ('topic_pattern: "(?i)cam.*"', r"write \(\?i:cam\.\*\)"),
        ('topic_pattern: "(a+)+b"', "it takes very long"),
        ('topic_pattern: "(cam|cam-|-)*x"', "it takes very long"),
        ('topic_pattern: "([a-z]+-?)*_"', "it takes very long"),
        ('topic_pattern: ".*a.*a.*a.*a.*a"', "it takes very long"),
        ("topic_pattern: a\n  topics: [a]", "topics or topic_pattern, not both"),
    ],
)
def test_topics_that_cannot_be_meant(tmp_path: Path, more: str, problem: str) -> None:
    path = monitor(tmp_path, "")
    path.write_text(path.read_text().replace("topic: images", f"topic: images\n  {more}"))
    with pytest.raises(ConfigError, match=problem):
        load_settings(path)
