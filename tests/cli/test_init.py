import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nap_stream import doctor as doctor_module
from nap_stream.cli import init as init_module
from tests.cli.program import Call
from tests.model.test_whole_models import as_onnx, exported, traced
from tests.support.image_bytes import encoded
from tests.support.images import smooth_image
from tests.support.small_models import SIZE, SmallNet
from tests.support.topics import new_settings, send

FACTORY = "tests.support.tiny_net:build"


def test_flags_alone_make_a_file_that_doctor_accepts(
    nap: Call, embedded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module, "cluster_resources", lambda _address: {"CPU": 2.0})
    kafka, out = new_settings(embedded), tmp_path / "monitor.yaml"
    for value in (encoded(smooth_image(1)), b"no image"):
        send(kafka, [value])
    flags = ("--bootstrap-servers", embedded, "--topic", kafka.topic, "--model", FACTORY)

    ended = nap("init", *flags, "--kwargs", "{seed: 2}", "--out", out)

    assert ended.exit_code == 0, ended.err
    said = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert "found single images: 1 jpeg, 16 x 16 pixels." in said
    assert [line for line in said if line.startswith("0:0 jpeg 16 x 16 ")]
    assert [line for line in said if line.startswith("0:1 unsupported: ")]
    assert [line for line in said if line.startswith("found TinyNet, 3 classes")]
    guess = "guessed preprocessing: the images are all of 16 x 16 pixels, and are not"
    assert [line for line in said if line.startswith(guess)]
    assert "not seen class names: classes show as numbers" in said
    assert f"written {out}" in said
    assert f"next nap-stream doctor --config {out} --create-topics" in said

    again = nap("init", *flags, "--out", out)
    assert again.exit_code == 2
    assert "left as it is" in again.err
    assert nap("init", *flags, "--out", out, "--force").exit_code == 0

    checked = nap("doctor", "--config", out, "--create-topics")
    assert checked.exit_code == 3, checked.out
    assert "failed" not in checked.out
    assert "1 of 2 images of the newest 2 messages" in checked.out


def hugging_face(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
    names = {"id2label": {0: "cat", 1: "dog", 2: "bird"}}
    config = transformers.AutoConfig.for_model("resnet", layer_type="basic", **sizes, **names)
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    stated = {"size": 32, "resample": 3, "image_mean": half, "image_std": half}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return folder


@pytest.mark.parametrize("save", [hugging_face, as_onnx, exported, traced])
@pytest.mark.filterwarnings("ignore")
def test_a_whole_model_needs_no_factory(
    nap: Call,
    embedded: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    save: Callable[..., Path],
) -> None:
    stated = save is hugging_face
    monkeypatch.setattr(doctor_module, "cluster_resources", lambda _address: {"CPU": 2.0})
    kafka, out = new_settings(embedded), tmp_path / "monitor.yaml"
    side = 32 if stated else SIZE
    send(kafka, [encoded(smooth_image(1).resize((side, side)))])
    model = save(tmp_path / "saved") if stated else save(SmallNet(), tmp_path)
    flags = ("--bootstrap-servers", embedded, "--topic", kafka.topic, "--model", model)

    ended = nap("init", *flags, "--out", out)

    assert ended.exit_code == 0, ended.err
    assert "could not be loaded" not in ended.out
    text = out.read_text()
    assert f"  weights: {model.name}\n" in text
    assert "factory" not in text
    assert ("  preprocessing: from_model\n" in text) == stated
    assert ("class names: those that come with the model" in ended.out) == stated
    assert ("# The model names its classes: cat, dog, bird\n" in text) == stated

    checked = nap("doctor", "--config", out, "--create-topics")
    assert checked.exit_code == 3, checked.out
    assert "failed" not in checked.out
    assert "warning" not in checked.out
    assert f"input {side} x {side}" in " ".join(checked.out.split())
    assert "1 of 1 images" in " ".join(checked.out.split())

    out.write_text(text.replace("preprocessing: from_model", "preprocessing: {crop: 32}"))
    checked = nap("doctor", "--config", out)
    assert checked.exit_code == 3
    warning = "warning: the preprocessing is not the one that saved/preprocessor_config.json states"
    assert (warning in " ".join(checked.out.split())) == stated


@pytest.mark.parametrize(
    ("flags", "option"),
    [
        ((), "--bootstrap-servers"),
        (("--bootstrap-servers", "a:1"), "--topic"),
        (("--bootstrap-servers", "a:1", "--topic", "t"), "--model"),
        (("--bootstrap-servers", "a:1", "--topic", "t", "--model", "a:b", "--kwargs", "x"),
         "--kwargs"),
        (("--bootstrap-servers", "a:1", "--topic", "t", "--model", "a:b", "--weights", "no.pt"),
         "--weights"),
        (("--bootstrap-servers", "a:1", "--topic", "t", "--model", "a:b", "--images", "none/"),
         "--images"),
        (("--bootstrap-servers", "a:1", "--topic", "t", "--model", "nothing"), "key factory"),
    ],
)  # fmt: skip
def test_what_is_missing_or_wrong_is_named(
    nap: Call, tmp_path: Path, flags: tuple[str, ...], option: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("NAP_STREAM__KAFKA__CONNECT_TIMEOUT_S", "0.3")
    out = tmp_path / "monitor.yaml"

    ended = nap("init", *flags, "--out", out)

    assert ended.exit_code == 2
    assert option in ended.err
    assert not out.exists()


def test_it_asks_a_person_for_what_is_not_given(
    nap: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAP_STREAM__KAFKA__CONNECT_TIMEOUT_S", "0.3")
    answers = {
        "Brokers": "127.0.0.1:1",
        "Topic of the images": " images ",
        "Model, package.module:name or a path": FACTORY,
        "Its arguments, as YAML": "{seed: 5}",
        "File of its weights, empty for none": "",
    }
    monkeypatch.setattr(init_module, "_is_terminal", lambda: True)
    monkeypatch.setattr("typer.prompt", lambda what, **_: answers.pop(what))
    out = tmp_path / "monitor.yaml"

    ended = nap("init", "--out", out)

    assert ended.exit_code == 0, ended.err
    assert answers == {}
    assert "not seen The topic could not be looked at" in " ".join(ended.out.split())
    assert "guessed preprocessing: as for ImageNet" in " ".join(ended.out.split())
    assert "kwargs: {seed: 5}" in out.read_text()


def test_a_folder_that_is_not_there_is_refused_before_anything_is_looked_at(
    nap: Call, tmp_path: Path
) -> None:
    flags = ("--bootstrap-servers", "a:1", "--topic", "t", "--model", "a:b")

    ended = nap("init", *flags, "--out", tmp_path / "absent" / "monitor.yaml")

    assert ended.exit_code == 2
    assert "a folder that is there" in ended.err
