import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from nap_stream.decode.arrow import ARROW_STREAM
from nap_stream.errors import ConfigError
from nap_stream.first_config import Asked, Learnt, learn, render, topic_words, write_config
from nap_stream.first_model import known_preprocessing
from nap_stream.settings.load import UncalibratedSettings, load_uncalibrated_settings
from nap_stream.settings.schema import KafkaSettings, ModelSettings, PreprocessingSettings
from tests.support.image_bytes import arrow_stream, encoded
from tests.support.images import smooth_image
from tests.support.outputs import some_outputs, stream_of
from tests.support.topics import PATIENT_PRODUCER, new_settings, settings_without_topic
from tests.support.waiting import PATIENCE_S

FACTORY = "tests.support.tiny_net:build"
JPEG = encoded(smooth_image(1))
Sent = tuple[bytes | None, bytes, list[tuple[str, bytes]]]


def send(kafka: KafkaSettings, messages: Sequence[Sent]) -> None:
    servers = list(kafka.bootstrap_servers)
    with closing(KafkaProducer(bootstrap_servers=servers, **PATIENT_PRODUCER)) as producer:
        for key, value, headers in messages:
            sent = producer.send(kafka.topic, key=key, value=value, headers=headers)
            sent.get(timeout=PATIENCE_S)


def asked_of(kafka: KafkaSettings, **changes: Any) -> Asked:
    given = {"factory": FACTORY, "bootstrap_servers": kafka.bootstrap_servers[0]}
    return Asked(**{**given, "topic": kafka.topic, **changes})


def made(kafka: KafkaSettings, out: Path, **changes: Any) -> tuple[Learnt, UncalibratedSettings]:
    """What is learnt, and the settings that are written, read again."""
    asked = asked_of(kafka, **changes)
    learnt = learn(asked, out)
    write_config(asked, learnt, out, force=False)
    assert [one.name for one in out.parent.iterdir() if one.name.startswith(".")] == []
    return learnt, load_uncalibrated_settings(out, {})


@pytest.fixture(scope="module")
def kafka(embedded: str) -> KafkaSettings:
    """A topic of which nothing repeats."""
    settings = new_settings(embedded)
    send(settings, [(b"id-%d" % number, JPEG, []) for number in range(3)])
    return settings


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "monitor.yaml"


@pytest.mark.embedded
def test_what_the_topic_and_the_model_tell_is_filled_in(embedded: str, out: Path) -> None:
    kafka = new_settings(embedded)
    send(kafka, [(b"camera-%d" % (n % 3), JPEG, [("site", b"x")]) for n in range(9)])
    folder = out.parent / "held-out"
    for name in ("nut", "bolt", "washer"):
        (folder / name).mkdir(parents=True)

    learnt, settings = made(kafka, out, kwargs={"seed": 3}, images=folder)

    assert settings.kafka.topic == kafka.topic
    assert settings.model.kwargs == {"seed": 3}
    assert settings.model.class_names == ("bolt", "nut", "washer")
    assert settings.drift.keys is not None
    assert settings.drift.keys.by == "key"
    assert settings.log.root == out.parent / "scored-log"
    assert settings.calibration == out.parent / "calibration"
    words = topic_words(learnt)
    assert words[0] == "1 partition, 9 offsets; the newest 9 hold:"
    assert words[1] == "single images: 9 jpeg, 16 x 16 pixels."
    assert words[2] == "Keys: camera-0, camera-1, camera-2"
    text = out.read_text()
    assert "# headers: [site]" in text
    assert "TinyNet, 3 classes" in text


@pytest.mark.embedded
def test_small_images_of_one_size_are_not_enlarged_without_a_reason(
    kafka: KafkaSettings, embedded: str, out: Path
) -> None:
    _, settings = made(kafka, out)
    assert settings.model.preprocessing == PreprocessingSettings(resize=None, crop=16)

    mixed = new_settings(embedded)
    for side in (16, 20):
        send(mixed, [(None, encoded(smooth_image(1).resize((side, side))), [])])
    other = out.with_name("other.yaml")
    _, settings = made(mixed, other)
    assert settings.model.preprocessing == PreprocessingSettings()
    assert "is the model made for enlarged ones?" in other.read_text()

    wide = new_settings(embedded)
    send(wide, [(None, encoded(smooth_image(1).resize((640, 480))), [])])
    third = out.with_name("third.yaml")
    _, settings = made(wide, third)
    assert settings.model.preprocessing == PreprocessingSettings()
    assert "enlarged" not in third.read_text()
    assert "scaled_decoding" not in third.read_text()


@pytest.mark.embedded
def test_keys_that_do_not_repeat_are_no_cameras(kafka: KafkaSettings, out: Path) -> None:
    _, settings = made(kafka, out)

    assert settings.drift.keys is None
    assert "#   keys: {by: key}" in out.read_text()


@pytest.mark.embedded
def test_a_header_that_repeats_names_the_cameras(embedded: str, out: Path) -> None:
    kafka = new_settings(embedded)
    headers = [[("content-type", b"image/jpeg"), ("camera", b"%d" % (n % 2))] for n in range(6)]
    send(kafka, [(b"id-%d" % number, JPEG, one) for number, one in enumerate(headers)])

    _, settings = made(kafka, out)

    assert settings.drift.keys is not None
    assert settings.drift.keys.by == "header:camera"
    assert settings.log.headers == ("camera",)


@pytest.mark.embedded
def test_a_header_that_is_always_the_same_tells_nothing_apart(embedded: str, out: Path) -> None:
    kafka = new_settings(embedded)
    send(kafka, [(None, JPEG, [("site", b"x"), ("content-type", b"image/jpeg")])] * 4)

    assert made(kafka, out)[1].drift.keys is None


@pytest.mark.embedded
def test_batches_are_told_with_the_keys_of_their_images(embedded: str, out: Path) -> None:
    kafka = new_settings(embedded)
    batch = arrow_stream({"image": [JPEG, JPEG, JPEG], "key": [b"left", b"right", b"left"]})
    send(kafka, [(None, batch, [("content-type", ARROW_STREAM.encode())])])

    learnt, settings = made(kafka, out)

    assert "Arrow batches (1) of images: 3 jpeg, 16 x 16 pixels." in topic_words(learnt)
    assert settings.drift.keys is not None


@pytest.mark.embedded
def test_outputs_of_a_model_elsewhere_are_told(embedded: str, out: Path) -> None:
    kafka = new_settings(embedded)
    headers = [("content-type", ARROW_STREAM.encode())]
    send(kafka, [(None, stream_of(some_outputs()), headers)])

    learnt, _ = made(kafka, out)

    (said,) = [line for line in topic_words(learnt) if "cannot be read" in line]
    assert "a model's outputs are read where model.elsewhere is set" in said


@pytest.mark.embedded
def test_what_cannot_be_read_is_said(embedded: str, out: Path) -> None:
    kafka = new_settings(embedded)
    send(kafka, [(None, b'{"image": "aGVsbG8="}', []), (None, JPEG, [])])

    learnt, _ = made(kafka, out)

    (said,) = [line for line in topic_words(learnt) if "cannot be read" in line]
    assert said.startswith("1 that cannot be read, first unsupported: ")
    assert "cannot be read" in out.read_text()


@pytest.mark.embedded
def test_a_topic_that_is_empty_or_not_there_is_said(embedded: str, out: Path) -> None:
    learnt, settings = made(new_settings(embedded, partitions=2), out)
    (said,) = topic_words(learnt)
    assert said == "The topic is empty (2 partitions): nothing is known of its messages."
    assert settings.drift.keys is None

    absent = settings_without_topic(embedded)
    learnt, settings = made(absent, out.with_name("other.yaml"))
    assert f"no such topic: {absent.topic}" in topic_words(learnt)[0]
    assert settings.kafka.topic == absent.topic


def test_a_broker_that_is_away_is_said(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAP_STREAM__KAFKA__CONNECT_TIMEOUT_S", "0.3")
    kafka = KafkaSettings(bootstrap_servers=("127.0.0.1:1",), topic="images")

    learnt, _ = made(kafka, out)

    assert learnt.peeked is None
    assert "no broker answered" in topic_words(learnt)[0]
    assert "no broker answered" in out.read_text()
    assert learnt.loaded is not None


@pytest.mark.embedded
def test_a_model_that_cannot_be_loaded_is_said(kafka: KafkaSettings, out: Path) -> None:
    learnt, settings = made(kafka, out, factory="tests.support.tiny_net:absent")

    assert learnt.loaded is None
    assert "has no 'absent'" in learnt.model_problem
    assert str(out.parent) not in learnt.model_problem
    assert settings.model.factory == "tests.support.tiny_net:absent"
    assert [one.prediction for one in learnt.images] == [None] * 3


@pytest.mark.embedded
def test_weights_that_do_not_fit_are_said_without_a_path_that_is_gone(
    kafka: KafkaSettings, out: Path
) -> None:
    (out.parent / "w.safetensors").write_bytes(b"no weights")
    learnt, settings = made(kafka, out, weights=out.parent / "w.safetensors")

    assert "w.safetensors" in learnt.model_problem
    assert settings.model.weights == out.parent / "w.safetensors"
    assert "weights: w.safetensors" in out.read_text()


@pytest.mark.embedded
def test_a_model_of_torchvision_brings_preprocessing_and_names(
    kafka: KafkaSettings, out: Path
) -> None:
    learnt, settings = made(kafka, out, factory="torchvision.models:regnet_y_400mf")

    assert learnt.preprocessing is not None
    assert learnt.preprocessing.source.endswith("RegNet_Y_400MF_Weights.IMAGENET1K_V2")
    assert settings.model.preprocessing == PreprocessingSettings(resize=232, crop=224)
    names = out.with_name("monitor-classes.txt")
    assert settings.model.class_names_file == names
    assert len(names.read_text().splitlines()) == 1_000
    assert names.read_text().startswith("tench\n")


@pytest.mark.embedded
def test_a_model_that_states_its_preprocessing_is_taken_at_its_word(
    kafka: KafkaSettings, out: Path
) -> None:
    pytest.importorskip("timm")
    kwargs = {"model_name": "resnet10t", "num_classes": 3}
    learnt, settings = made(kafka, out, factory="timm:create_model", kwargs=kwargs)

    assert learnt.loaded is not None
    assert learnt.loaded.preprocessing.crop == 176
    assert settings.model.preprocessing.model_fields_set == {"from_model"}
    text = out.read_text()
    assert "# By timm's data configuration of resnet10t. Compare it with training." in text
    assert "# resize: 201, crop: 176, interpolation: bicubic, mean: [0.485, " in text
    assert "  preprocessing:\n    from_model: true\n    # The images are smaller than" in text


def test_what_a_model_states_in_part_is_filled_up(tmp_path: Path) -> None:
    stated = {"size": 32, "resample": 1, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    known = known_preprocessing(ModelSettings(weights=tmp_path))

    assert known is not None
    assert known.written == {"from_model": True, "interpolation": "bilinear"}
    path = f"{tmp_path.name}/preprocessor_config.json"
    assert known.source == (
        f"{path}, but for interpolation, guessed as for ImageNet: {path} states interpolation 1"
    )
    assert (known.settings.crop, known.settings.mean) == (32, (0.5, 0.5, 0.5))


HOSTILE = (
    *("yes", "1: 2", "#x", "null", "- a", "{b}", "'q\"", "ü 名"),
    *("a\tb", "%", "&a *b", "2026-11-29", "1e3", "~", "line\nbreak"),
)


@pytest.mark.embedded
def test_names_of_folders_come_back_as_they_are(kafka: KafkaSettings, out: Path) -> None:
    folder = out.parent / "held: out #1"
    for name in HOSTILE:
        (folder / name).mkdir(parents=True)
    sized = "tests.support.small_models:sized"

    _, settings = made(kafka, out, factory=sized, kwargs={"classes": len(HOSTILE)}, images=folder)

    assert settings.model.class_names == tuple(sorted(HOSTILE))


@pytest.mark.embedded
def test_what_comes_from_the_topic_stays_in_its_comment(embedded: str, out: Path) -> None:
    kafka = new_settings(embedded)
    headers = [("evil\ncalibration: /etc", b"1"), ("a: b", b"2"), ("c]\r\u2028x", b"3")]
    keys = (b"k\nlog: {}", b"k\nlog: {}", b"\xff\x00", b"\xff\x00")
    send(kafka, [(key, JPEG, headers) for key in keys])
    send(kafka, [(keys[0], b"text\nmodel: x", headers)])

    _, settings = made(kafka, out)

    assert settings.calibration == out.parent / "calibration"
    assert settings.log.root == out.parent / "scored-log"
    assert settings.model.factory == FACTORY
    lines = out.read_text().splitlines()
    sections = [line.partition(":")[0] for line in lines if line[:1].isalpha()]
    assert sections == ["kafka", "model", "calibration", "log", "drift"]


@pytest.mark.embedded
def test_a_file_that_is_there_is_left_as_it_is(kafka: KafkaSettings, out: Path) -> None:
    out.write_text("mine")
    asked = asked_of(kafka)
    learnt = learn(asked, out)
    with pytest.raises(ConfigError, match="left as it is"):
        write_config(asked, learnt, out, force=False)
    assert out.read_text() == "mine"
    write_config(asked, learnt, out, force=True)
    assert out.read_text() == render(asked, learnt, out)


@pytest.mark.parametrize(("servers", "topic"), [("nohost", "images"), ("a:1", "no topic!")])
def test_what_cannot_stand_in_a_configuration_is_refused(
    out: Path, servers: str, topic: str
) -> None:
    with pytest.raises(ConfigError, match=r"^key (bootstrap_servers|topic): ") as caught:
        learn(Asked(servers, topic, FACTORY), out)
    assert str(out.parent) not in str(caught.value)
    assert list(out.parent.iterdir()) == []
