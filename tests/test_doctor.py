import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_stream import doctor
from nap_stream.calibration.artifact import load_calibration, write_calibration
from nap_stream.calibration.calibration import Calibration
from nap_stream.cli.run import doctor as command
from nap_stream.decode.arrow import ARROW_STREAM
from nap_stream.doctor import CHECKS, Finding, Outcome, examine
from nap_stream.feed import Input, model_inputs
from nap_stream.kafka.client import create_topics, topics_missing
from nap_stream.model import execution as execution_module
from nap_stream.model.facts import Execution
from nap_stream.model.load import load_model
from nap_stream.records import Status
from nap_stream.scored_log.proof.note import create_key
from nap_stream.settings.alerts import AlertSettings
from nap_stream.settings.elsewhere import ElsewhereSettings
from nap_stream.settings.log import SignedCheckpointSettings
from nap_stream.settings.schema import (
    DeadLetterSettings,
    ModelSettings,
    PreprocessingSettings,
    ScoringSettings,
    Settings,
)
from tests.support.image_bytes import arrow_stream, encoded
from tests.support.images import smooth_image, write_images
from tests.support.outputs import outputs_of, stream_of
from tests.support.small_calibration import write_calibrated
from tests.support.tiny_net import build
from tests.support.topics import new_settings, send


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own answer is tested with Ray."""
    monkeypatch.setattr(doctor, "cluster_resources", lambda _address: {"CPU": 2.0})


@pytest.fixture
def settings(tmp_path: Path, broker: str) -> Settings:
    return _on_own_topic(broker, tmp_path)


def findings(settings: Settings | None, *, make_topics: bool = False) -> dict[str, Finding]:
    found = examine(settings, address=None, make_topics=make_topics)
    return {finding.check: finding for finding in found}


def test_without_a_configuration_the_installation_alone_is_checked() -> None:
    found = findings(None)

    assert found["versions"].outcome is Outcome.OK
    assert f"torch {torch.__version__.partition('+')[0]}" in found["versions"].detail
    assert found["crc32c"].outcome is Outcome.OK
    assert "compiled" in found["crc32c"].detail
    assert found["broker"].outcome is Outcome.SKIPPED


def test_missing_topics_are_named_and_made_on_request(settings: Settings) -> None:
    missing = findings(settings)["topics"]
    assert missing.outcome is Outcome.FAILED
    assert settings.alerts.topic in missing.detail
    assert "--create-topics" in missing.action

    assert findings(settings, make_topics=True)["topics"].outcome is Outcome.OK
    names = [settings.alerts.topic, settings.dead_letters.topic]
    assert topics_missing(settings.kafka, names) == ()


def test_all_is_well(settings: Settings) -> None:
    found = findings(settings, make_topics=True)

    assert {finding.outcome for finding in found.values()} == {Outcome.OK}


@pytest.mark.embedded
def test_the_warnings_of_a_calibration_are_told_and_fail_nothing(
    embedded: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = _settings(embedded, tmp_path)
    plain = load_calibration(settings.calibration)
    warnings = ("few images to fit on", "poorly separated")
    document = plain.document.model_copy(update={"warnings": warnings})
    write_calibration(Calibration(document, plain.arrays), settings.calibration, force=True)

    found = findings(settings)["calibration"]

    assert (found.outcome, found.warnings) == (Outcome.OK, warnings)
    assert findings(settings)["log root"].warnings == ()
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: iter([found]))
    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "warning: few images to fit on\n" in shown
    assert "warning: poorly separated\n" in shown


def test_what_is_doubtful_about_the_model_is_told_once(tmp_path: Path) -> None:
    weights = tmp_path / "checkpoint.pt"
    torch.save({"state_dict": build().state_dict(), "epoch": 3}, weights)
    settings = _settings("127.0.0.1:1", tmp_path, connect_timeout_s=0.3, weights=weights)
    note = "the weights are those under 'state_dict' in the file"

    found = findings(settings)

    assert note in load_calibration(settings.calibration).document.warnings
    assert found["model"].warnings == (note,)
    assert found["calibration"].outcome is Outcome.OK
    assert note not in found["calibration"].warnings


@pytest.mark.embedded
def test_a_calibration_of_another_model_is_found(embedded: str, tmp_path: Path) -> None:
    settings = _settings(embedded, tmp_path)
    other = settings.model.model_copy(update={"kwargs": {"seed": 1}})

    found = findings(settings.model_copy(update={"model": other}))["calibration"]

    assert found.outcome is Outcome.FAILED
    assert "differ" in found.detail


def test_what_this_machine_cannot_compute_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings("127.0.0.1:1", tmp_path, connect_timeout_s=0.3)
    settings = settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"precision": "auto"}),
            "worker": settings.worker.model_copy(update={"num_gpus": 0.0}),
        }
    )
    assert findings(settings)["execution"].detail == "float32, contiguous, on cpu"

    def recalibrated(precision: Any) -> Finding:
        plain = load_calibration(settings.calibration)
        document = plain.document.model_copy(update={"execution": Execution(precision)})
        write_calibration(Calibration(document, plain.arrays), settings.calibration, force=True)
        return findings(settings)["execution"]

    found = recalibrated("tf32")
    assert found.outcome is Outcome.FAILED
    assert "TF32 is of NVIDIA GPUs" in found.detail
    assert "calibrate on this one" in found.action
    monkeypatch.setattr(execution_module, "_cpu_has_bfloat16", lambda: False)
    found = recalibrated("bfloat16")
    assert found.outcome is Outcome.OK
    assert "slow here" in found.warnings[0]


def test_a_model_section_of_another_execution_is_found(tmp_path: Path) -> None:
    settings = _settings("127.0.0.1:1", tmp_path, connect_timeout_s=0.3)
    model = settings.model.model_copy(update={"precision": "bfloat16"})

    found = findings(settings.model_copy(update={"model": model}))["execution"]

    assert found.outcome is Outcome.FAILED
    assert "model.precision is bfloat16, not float32" in found.detail


@pytest.mark.embedded
def test_a_calibration_of_another_scoring_section_is_found(embedded: str, tmp_path: Path) -> None:
    settings = _settings(embedded, tmp_path)
    other = ScoringSettings(method="fisher-energy")

    found = findings(settings.model_copy(update={"scoring": other}))["calibration"]

    assert found.outcome is Outcome.FAILED
    assert "the method is nap-energy, not fisher-energy" in found.detail


@pytest.mark.embedded
@pytest.mark.parametrize("section", ["log", "evidence"])
def test_a_root_that_cannot_be_made_is_found(embedded: str, tmp_path: Path, section: str) -> None:
    (tmp_path / "file").write_text("in the way")
    settings = _settings(embedded, tmp_path)
    changed = getattr(settings, section).model_copy(update={"root": tmp_path / "file" / "log"})

    found = findings(settings.model_copy(update={section: changed}))["log root"]

    assert found.outcome is Outcome.FAILED
    assert str(tmp_path / "file") in found.detail


@pytest.mark.embedded
def test_a_signing_key_that_others_may_read_and_a_missing_topic_of_copies(
    embedded: str, tmp_path: Path
) -> None:
    settings, key = _settings(embedded, tmp_path), tmp_path / "signing.key"
    create_key(key, "line-3")
    signed = SignedCheckpointSettings(key_file=key, topic="copies-of-nobody")
    log = settings.log.model_copy(update={"checkpoints": signed})
    said = doctor._log_root(settings.model_copy(update={"log": log}))
    assert said.endswith("line-3 signs the log")
    key.chmod(0o644)

    found = findings(settings.model_copy(update={"log": log}))

    assert found["log root"].outcome is Outcome.FAILED
    assert "log.checkpoints.key_file: others may use the key" in found["log root"].detail
    assert "copies-of-nobody" in found["topics"].detail


def test_a_broker_that_is_down_is_found_and_topics_are_not_asked_for(tmp_path: Path) -> None:
    settings = _settings("127.0.0.1:1", tmp_path, connect_timeout_s=0.3)

    found = findings(settings)

    assert found["broker"].outcome is Outcome.FAILED
    assert found["topics"].outcome is Outcome.SKIPPED


def test_gpus_that_are_asked_for_and_not_there_are_found(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    settings = _settings("127.0.0.1:1", tmp_path, connect_timeout_s=0.3)
    worker = settings.worker.model_copy(update={"num_gpus": 1.0})

    found = findings(settings.model_copy(update={"worker": worker}))

    assert found["GPU, torch"].outcome is Outcome.FAILED
    assert found["GPU, Ray"].outcome is Outcome.FAILED
    assert "worker.num_gpus: 0" in found["GPU, torch"].action


@pytest.mark.embedded
def test_the_newest_messages_are_shown_with_what_the_model_predicts(
    embedded: str, tmp_path: Path
) -> None:
    settings = _on_own_topic(embedded, tmp_path)
    batch = arrow_stream({"image": [encoded(smooth_image(4)), b"no image"]})
    send(settings.kafka, [encoded(smooth_image(1))])
    send(settings.kafka, [encoded(smooth_image(2), "PNG")])
    send(settings.kafka, [b"neither is this"])
    send(settings.kafka, [batch], headers=[("content-type", ARROW_STREAM.encode())])
    send(settings.kafka, [None])

    found = findings(settings, make_topics=True)["messages"]

    assert found.outcome is Outcome.OK
    assert "3 of 6 images of the newest 5 messages" in found.detail
    assert found.warnings == ("3 cannot be read",)
    rows = [(one.origin.offset, one.origin.index, one.status, one.format) for one in found.images]
    assert rows == [
        (0, 0, Status.OK, "jpeg"),
        (1, 0, Status.OK, "png"),
        (2, 0, Status.UNSUPPORTED, None),
        (3, 0, Status.OK, "jpeg"),
        (3, 1, Status.UNSUPPORTED, None),
        (4, 0, Status.TOMBSTONE, None),
    ]
    assert [one.width for one in found.images] == [16, 16, None, 16, None, None]
    for one in found.images:
        if one.status is Status.OK:
            assert one.prediction is not None
            assert one.prediction.class_name in {"0", "1", "2"}
            assert 1 / 3 <= one.prediction.confidence <= 1
        else:
            assert one.prediction is None
            assert one.error


@pytest.mark.embedded
@pytest.mark.parametrize("is_calibrated", [True, False])
def test_messages_of_a_model_that_runs_elsewhere(
    embedded: str, tmp_path: Path, *, is_calibrated: bool
) -> None:
    settings = _on_own_topic(embedded, tmp_path)
    elsewhere = ElsewhereSettings(name="tiny/1", calibrated_on_images=True)
    changes = {"model": ModelSettings(elsewhere=elsewhere)}
    settings = settings.model_copy(update=changes)
    if not is_calibrated:
        settings = settings.model_copy(update={"calibration": tmp_path / "none"})
    good = outputs_of(build().eval(), torch.randn(2, 3, 16, 16))
    send(settings.kafka, [stream_of(good, "channels", key=["left", "right"])])
    send(settings.kafka, [encoded(smooth_image(1))])

    found = findings(settings, make_topics=True)

    assert list(found) == list(CHECKS)
    assert "tiny/1 runs elsewhere: nothing is loaded" in found["model"].detail
    assert found["execution"].outcome is Outcome.SKIPPED
    assert "2 of 3 images of the newest 2 messages" in found["messages"].detail
    seen = found["messages"].images
    assert [one.status for one in seen] == [Status.OK, Status.OK, Status.BAD_BATCH]
    names = [one.prediction.class_name for one in seen if one.prediction]
    assert names == [str(number) for number in good["logits"].argmax(axis=1)]
    calibration = found["calibration"]
    if is_calibrated:
        assert calibration.outcome is Outcome.OK
        assert "made from images: that the model is the same cannot" in calibration.detail
        assert "3 logits, 16 features, map input of pool" in calibration.detail
        plain = elsewhere.model_copy(update={"calibrated_on_images": False})
        update = {"model": ModelSettings(elsewhere=plain)}
        refused = findings(settings.model_copy(update=update))["calibration"]
        assert refused.outcome is Outcome.FAILED
        assert "calibrated_on_images: true" in refused.action
    else:
        assert calibration.outcome is Outcome.NOT_YET
        assert "--images outputs/" in calibration.action


@pytest.mark.embedded
def test_predictions_are_those_of_a_worker(embedded: str, tmp_path: Path) -> None:
    settings = _on_own_topic(embedded, tmp_path)
    files = [encoded(smooth_image(seed)) for seed in range(5)]
    for file in files:
        send(settings.kafka, [file])

    found = findings(settings, make_topics=True)["messages"]

    loaded = load_model(settings.model, torch.device("cpu"))
    pixels = [
        one.pixels
        for one in model_inputs(files, settings.limits, settings.model.preprocessing, None)
        if isinstance(one, Input)
    ]
    share, number = loaded.forward(torch.stack(pixels)).logits.softmax(1).max(1)
    predicted = [one.prediction for one in found.images]
    assert [one.class_name for one in predicted if one] == [str(n) for n in number.tolist()]
    assert [one.confidence for one in predicted if one] == pytest.approx(share.tolist())


@pytest.mark.embedded
def test_a_topic_of_nothing_that_can_be_read_is_a_failure(embedded: str, tmp_path: Path) -> None:
    settings = _on_own_topic(embedded, tmp_path)
    for text in (b'{"image": "/9j/4AAQ"}', b"iVBORw0KGgo="):
        send(settings.kafka, [text])

    found = findings(settings, make_topics=True)["messages"]

    assert found.outcome is Outcome.FAILED
    assert "0 of 2" in found.detail
    assert found.action
    assert all(one.error for one in found.images)


@pytest.mark.embedded
def test_an_empty_topic_is_said_and_fails_nothing(embedded: str, tmp_path: Path) -> None:
    settings = _on_own_topic(embedded, tmp_path)

    found = findings(settings, make_topics=True)["messages"]

    assert found.outcome is Outcome.OK
    assert "is empty" in found.detail


@pytest.mark.embedded
def test_each_of_several_topics_is_looked_at(embedded: str, tmp_path: Path) -> None:
    settings = _on_own_topic(embedded, tmp_path)
    first = settings.kafka.topic
    names = tuple(f"{first}-{number}" for number in range(12))
    create_topics(settings.kafka, names, 1)
    send(settings.kafka, [encoded(smooth_image(1))], topic=names[0])
    kafka = settings.kafka.model_copy(update={"topics": names})

    found = findings(settings.model_copy(update={"kafka": kafka}), make_topics=True)["messages"]

    assert found.outcome is Outcome.OK
    assert f"newest 1 messages of {names[0]} can be read; {names[1]}, " in found.detail
    assert found.detail.endswith("empty; 2 more topics were not looked at")


@pytest.mark.embedded
def test_a_model_that_cannot_be_loaded_leaves_the_messages_without_predictions(
    embedded: str, tmp_path: Path
) -> None:
    settings = _on_own_topic(embedded, tmp_path)
    send(settings.kafka, [encoded(smooth_image(1))])
    model = settings.model.model_copy(update={"factory": "tests.support.tiny_net:absent"})

    found = findings(settings.model_copy(update={"model": model}), make_topics=True)

    assert found["model"].outcome is Outcome.FAILED
    assert found["calibration"].outcome is Outcome.SKIPPED
    assert found["execution"].outcome is Outcome.SKIPPED
    assert found["messages"].outcome is Outcome.OK
    assert [one.prediction for one in found["messages"].images] == [None]


def test_every_check_has_one_finding_in_the_stated_order(tmp_path: Path) -> None:
    settings = _settings("127.0.0.1:1", tmp_path, connect_timeout_s=0.3)
    for given in (None, settings):
        found = [one.check for one in examine(given, address=None, make_topics=False)]
        assert tuple(found) == CHECKS


YAML = """
kafka: {{bootstrap_servers: '{broker}', topic: {topic}, connect_timeout_s: 300}}
model:
  factory: tests.support.tiny_net:build
  precision: float32
  channels_last: false
  preprocessing: {{resize: null, crop: 16}}
{calibration}
log: {{root: log}}
alerts: {{topic: {topic}-alerts}}
dead_letters: {{topic: {topic}-dead}}
"""


@pytest.mark.embedded
@pytest.mark.parametrize("line", ["calibration: calibration", ""])
def test_before_a_calibration_all_else_is_checked(
    embedded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    kafka = new_settings(embedded)
    send(kafka, [encoded(smooth_image(1))])
    config = tmp_path / "monitor.yaml"
    config.write_text(YAML.format(broker=embedded, topic=kafka.topic, calibration=line))

    with pytest.raises(SystemExit) as ended:
        command(config, create_topics=True)

    assert ended.value.code == 3
    shown = capsys.readouterr().out
    assert "ok      model       TinyNet, 3 classes, input 16 x 16" in shown
    assert "not yet calibration" in shown
    assert f"nap-stream calibrate --model {config}" in shown
    assert "1 of 1 images" in shown
    assert re.search(r"0:0 +jpeg +16 x 16 +[012] \(\d", shown)
    assert ("Write calibration: calibration into it" in shown) is (not line)


def test_a_failure_beside_a_missing_calibration_is_a_failure(tmp_path: Path) -> None:
    config = tmp_path / "monitor.yaml"
    text = YAML.format(broker="127.0.0.1:1", topic="t", calibration="")
    config.write_text(text.replace("connect_timeout_s: 300", "connect_timeout_s: 0.3"))

    with pytest.raises(SystemExit) as ended:
        command(config)

    assert ended.value.code == 1


def test_a_calibration_folder_without_one_is_a_failure(tmp_path: Path) -> None:
    settings = _settings("127.0.0.1:1", tmp_path, connect_timeout_s=0.3)
    (tmp_path / "empty").mkdir()

    found = findings(settings.model_copy(update={"calibration": tmp_path / "empty"}))

    assert found["calibration"].outcome is Outcome.FAILED


def _on_own_topic(broker: str, folder: Path) -> Settings:
    kafka = new_settings(broker)
    changes = {
        "kafka": kafka,
        "alerts": AlertSettings(topic=f"{kafka.topic}-alerts"),
        "dead_letters": DeadLetterSettings(topic=f"{kafka.topic}-dead"),
    }
    return _settings(broker, folder).model_copy(update=changes)


def _settings(
    broker: str, folder: Path, *, weights: Path | None = None, **kafka: float
) -> Settings:
    model = ModelSettings(
        factory="tests.support.tiny_net:build",
        weights=weights,
        precision="float32",
        channels_last=False,
        preprocessing=PreprocessingSettings(resize=None, crop=16),
    )
    images = write_images(folder / "held-out", 30)
    return Settings.model_validate(
        {
            "kafka": {"bootstrap_servers": broker, "topic": "images", **kafka},
            "model": model.model_dump(),
            "scoring": {"method": "nap-energy"},
            "calibration": write_calibrated(folder / "calibration", images, model=model),
            "log": {"root": folder / "log"},
        }
    )
