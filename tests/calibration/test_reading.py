import gc
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from nap_stream.calibration import read as read_module
from nap_stream.calibration.artifact import versions
from nap_stream.calibration.cache import FeatureCache, cache_key
from nap_stream.calibration.fit import ALWAYS, unfitted
from nap_stream.calibration.pseudo_ood import transformed
from nap_stream.calibration.read import PSEUDO_SEED, Reader, Reading, ScoredImages
from nap_stream.core.base_scores import BaseScores
from nap_stream.core.prior import nap
from nap_stream.core.score_specs import ScoreParameters
from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Picture
from nap_stream.errors import CalibrationError, InputDataError
from nap_stream.image_files import ImageFile, iter_images
from nap_stream.model.forward import capture
from nap_stream.model.load import LoadedModel
from nap_stream.model.preprocessing import preprocess
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings
from tests.support.image_bytes import encoded, picture
from tests.support.small_calibration import write_images
from tests.support.small_models import OverflowNet, SmallNet, seeded
from tests.support.small_settings import load_small

COUNT = 10
BLOCK = 50
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class Runs:
    """Counts forward passes, in images, and the images of the largest."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.images = self.largest = 0
        loaded.module.register_forward_hook(self._add)

    def _add(self, _module: Any, inputs: tuple[torch.Tensor], _output: Any) -> None:
        self.images += len(inputs[0])
        self.largest = max(self.largest, len(inputs[0]))


class HotMapNet(SmallNet):
    """Its map overflows where an image's first pixel is white; features and logits do not."""

    def forward(self, x: torch.Tensor) -> Any:
        maps = self.features(x) + torch.where(x[:, :1, :1, :1] == 1, torch.inf, 0.0)
        return self.head(self.pool(maps).flatten(1).nan_to_num(posinf=1.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("reading") / "images", COUNT)


@pytest.fixture
def loaded() -> LoadedModel:
    return load_small("SmallNet")


def reader_of(source: Path, loaded: LoadedModel | None = None, **changes: Any) -> Reader:
    return Reader(loaded or load_small("SmallNet"), LimitSettings(), source, **changes)


def read(reader: Reader, batch_size: int = 4) -> Reading:
    return reader.read(reader.files(), batch_size, lambda _images: None)


def base_scores(loaded: LoadedModel) -> BaseScores:
    return unfitted(ALWAYS, loaded, ScoreParameters()).base_scores


def score(reader: Reader, batch_size: int = 4) -> ScoredImages:
    scores = base_scores(reader.loaded)
    return reader.score(reader.files(), scores, batch_size, lambda _images: None)


def score_transformed(
    reader: Reader, name: str, files: list[ImageFile] | None = None
) -> ScoredImages:
    chosen = list(reader.files()) if files is None else files
    blocks = [chosen[start : start + BLOCK] for start in range(0, len(chosen), BLOCK)]
    scores = [base_scores(reader.loaded)] * len(blocks)
    return reader.score_transformed(blocks, name, scores, lambda _images: None)


def pixels(folder: Path, loaded: LoadedModel) -> torch.Tensor:
    rows = []
    for file in iter_images(folder):
        found = decode_image(file.data, LimitSettings())
        assert isinstance(found, Picture)
        rows.append(preprocess(found.pixels, loaded.preprocessing))
    return torch.stack(rows)


def assert_identical(first: Reading, second: Reading) -> None:
    assert (first.names, first.labels) == (second.names, second.labels)
    assert (first.undecodable, first.first_problem) == (second.undecodable, second.first_problem)
    assert first.logits.tobytes() == second.logits.tobytes()
    assert first.nap.tobytes() == second.nap.tobytes()
    assert first.features is not None
    assert second.features is not None
    assert first.features.tobytes() == second.features.tobytes()


def assert_scored_alike(first: ScoredImages, second: ScoredImages) -> None:
    assert (first.names, first.labels) == (second.names, second.labels)
    assert (first.undecodable, first.first_problem) == (second.undecodable, second.first_problem)
    assert first.class_id.tobytes() == second.class_id.tobytes()
    assert first.values.keys() == second.values.keys()
    for name, column in first.values.items():
        assert column.tobytes() == second.values[name].tobytes()


def test_what_the_model_makes_of_images_of_differing_sizes(
    folder: Path, loaded: LoadedModel
) -> None:
    found = [decode_image(file.data, LimitSettings()) for file in iter_images(folder)]
    assert len({result.pixels.shape for result in found if isinstance(result, Picture)}) == 3
    reading = read(reader_of(folder, loaded))
    with torch.inference_mode():
        x = loaded.normalise(pixels(folder, loaded))
        maps = loaded.module.get_submodule("features")(x)
        logits = loaded.module(x).numpy()
    np.testing.assert_allclose(reading.logits, logits, rtol=1e-5)
    assert reading.features is not None
    np.testing.assert_allclose(reading.features, maps.mean((2, 3)).numpy(), rtol=1e-5)
    np.testing.assert_allclose(reading.nap, nap(maps).numpy(), rtol=1e-5)
    assert reading.class_id.tolist() == logits.argmax(1).tolist()
    assert reading.names == tuple(f"{number:04}.png" for number in range(COUNT))
    assert reading.labels == (None,) * COUNT
    assert (len(reading), reading.undecodable, reading.first_problem) == (COUNT, 0, "")


def test_labels_are_those_of_the_files(tmp_path: Path) -> None:
    write_images(tmp_path / "cat", 2)
    write_images(tmp_path / "dog", 1)
    assert read(reader_of(tmp_path)).labels == ("cat", "cat", "dog")


def test_features_of_a_model_without_a_linear_head_are_the_means_of_its_map(folder: Path) -> None:
    loaded = load_small("ReluHeadNet")
    assert loaded.head is None
    reading = read(reader_of(folder, loaded))
    assert reading.logits.shape == (COUNT, 3)
    with capture(loaded.module, loaded.feature_site, lambda found: found.clone()) as captured:
        loaded.module(loaded.normalise(pixels(folder, loaded)))
    assert captured.parts.get(0) is not None
    assert reading.features is not None
    np.testing.assert_allclose(reading.features, captured.parts[0].mean(dim=(2, 3)), rtol=1e-5)


def test_progress_counts_every_image_of_a_batch(tmp_path: Path) -> None:
    write_images(tmp_path, 7)
    (tmp_path / "0002.txt").write_text("a note")
    told: list[int] = []
    reader = reader_of(tmp_path)
    reader.read(reader.files(), 3, told.append)
    scores = base_scores(reader.loaded)
    reader.score(reader.files(), scores, 5, told.append)
    files = list(reader.files())
    reader.score_transformed([files, files[:5]], "solarize", [scores, scores], told.append)
    assert told == [3, 3, 2, 5, 3, 8, 5]


def test_large_jpegs_are_decoded_scaled_where_the_settings_say_so(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(encoded(picture(160, 120), "JPEG"))
    settings = PreprocessingSettings(resize=8, crop=8, scaled_decoding=True)
    loaded = load_small("SmallNet", preprocessing=settings)
    found = decode_image((tmp_path / "0.jpg").read_bytes(), LimitSettings(), (8, 8))
    assert isinstance(found, Picture)
    assert found.pixels.shape == (3, 15, 20)

    reading = read(reader_of(tmp_path, loaded))

    expected = loaded.forward(preprocess(found.pixels, settings)[None]).logits
    np.testing.assert_array_equal(reading.logits, expected.numpy())


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_some_undecodable_images_are_counted(tmp_path: Path, batch_size: int) -> None:
    write_images(tmp_path, 6)
    (tmp_path / "0001a.txt").write_text("a note")
    (tmp_path / "0004a.png").write_bytes(b"")
    reading = read(reader_of(tmp_path), batch_size)
    assert (len(reading), reading.undecodable) == (6, 2)
    assert reading.first_problem.startswith("0001a.txt: not a JPEG")
    assert reading.names == tuple(f"{number:04}.png" for number in range(6))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_images_that_are_decoded_with_a_warning_are_counted(
    tmp_path: Path, loaded: LoadedModel, batch_size: int
) -> None:
    images = write_images(tmp_path / "images", 6)
    for number in range(5):
        whole = encoded(picture(64, 64, number), "JPEG")
        (images / f"0002-{number}.jpg").write_bytes(whole[:-30] + whole[-2:])
    (images / "0003.jpg").write_bytes(encoded(picture(64, 64), "JPEG", quality=90))
    (images / "0004.txt").write_text("a note")
    reader, runs = reader_of(images, loaded, cache=FeatureCache(tmp_path / "cache")), Runs(loaded)
    for _ in ("computed", "kept"):
        for found in (read(reader, batch_size), score(reader, batch_size)):
            assert (len(found), found.undecodable, found.warned.images) == (12, 1, 5)
            assert [one[:29] for one in found.warned.examples] == [
                f"0002-{number}.jpg: Corrupt JPEG data" for number in range(3)
            ]
    assert runs.images == 12
    transformed_ones = score_transformed(reader, "solarize")
    assert (len(transformed_ones), transformed_ones.warned.images) == (12, 0)
    refusing = replace(reader, limits=LimitSettings(damaged="refuse"))
    found = read(refusing, batch_size)
    assert (len(found), found.undecodable, found.warned.images) == (7, 6, 0)


def test_outputs_that_were_kept_before_warnings_were_are_computed_anew(
    folder: Path, tmp_path: Path, loaded: LoadedModel
) -> None:
    reader, runs = reader_of(folder, loaded, cache=FeatureCache(tmp_path)), Runs(loaded)
    first = read(reader, 100)
    (kept,) = tmp_path.rglob("*.safetensors")
    save_file({n: a for n, a in load_file(kept).items() if n != "warned"}, kept)
    assert_identical(read(reader, 100), first)
    assert runs.images == 2 * COUNT


def test_a_whole_batch_that_is_undecodable_in_the_middle(tmp_path: Path) -> None:
    write_images(tmp_path, 8)
    for number in range(3):
        (tmp_path / f"0002-{number}.txt").write_text("a note")
    # Batches of three: 0000 to 0002, the notes, 0003 to 0005, 0006 and 0007.
    reader = reader_of(tmp_path)
    reading = read(reader, 3)
    assert (len(reading), reading.undecodable) == (8, 3)
    assert reading.features is not None
    assert (len(reading.logits), len(reading.features), len(reading.nap)) == (8, 8, 8)
    expected = ScoredImages.of(reading, base_scores(reader.loaded))
    assert_scored_alike(score(reader, 3), expected)
    # The first batch of pseudo-OOD images holds nothing that can be decoded.
    files = list(reader.files())
    notes = [file for file in files if file.name.endswith(".txt")]
    scored = score_transformed(reader, "elastic", notes * 17 + files * 12)
    assert (len(scored), scored.undecodable) == (96, 51 + 36)


@pytest.mark.parametrize("good", [1, 3])
def test_half_undecodable_is_refused(tmp_path: Path, good: int) -> None:
    write_images(tmp_path, good)
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("a note")
    problem = rf"3 of {good + 3} images cannot be decoded; first 0\.txt: not a JPEG"
    for reads in (read, score):
        with pytest.raises(CalibrationError, match=problem):
            reads(reader_of(tmp_path))


def test_no_image_at_all(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("a note")
    for reads in (read, score):
        problem = r"none of the 5 images.*first 0\.txt: not a JPEG"
        with pytest.raises(CalibrationError, match=problem):
            reads(reader_of(tmp_path), 2)
    with pytest.raises(CalibrationError, match=r"none of the 0 images.*there are none"):
        score_transformed(reader_of(tmp_path), "solarize", [])
    with pytest.raises(InputDataError, match="no such"):
        read(reader_of(tmp_path / "absent"))


def test_an_image_over_the_limits_is_undecodable(folder: Path) -> None:
    # 9 x 9 pixels pass, 10 x 9 and 11 x 9 do not.
    limits = LimitSettings(max_image_pixels=95)
    reading = read(replace(reader_of(folder), limits=limits))
    assert (len(reading), reading.undecodable) == (7, 3)


@pytest.mark.parametrize("network", [OverflowNet, HotMapNet])
def test_what_is_not_finite_is_refused_with_its_name(
    tmp_path: Path, network: type[SmallNet]
) -> None:
    plain = load_small("SmallNet").preprocessing.model_copy(update=PLAIN)
    loaded = replace(load_small("SmallNet", preprocessing=plain), module=seeded(network).eval())
    write_images(tmp_path, 9)
    assert len(read(reader_of(tmp_path, loaded))) == 9
    for number in (5, 7):
        Image.new("RGB", (9, 9), "white").save(tmp_path / f"000{number}.png")
    for reads in (read, score):
        with pytest.raises(CalibrationError, match=r"not finite for 2 of 9 images, first 0005\.p"):
            reads(reader_of(tmp_path, loaded))


def test_a_transform_that_the_model_overflows_on_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load_small("SmallNet").preprocessing.model_copy(update=PLAIN)
    module = seeded(OverflowNet).eval()
    loaded = replace(load_small("SmallNet", preprocessing=plain), module=module)
    reader = reader_of(write_images(tmp_path, 3), loaded)
    white = lambda _name, batch, _seed, _first: torch.full_like(batch, 255)  # noqa: E731
    monkeypatch.setattr("nap_stream.calibration.read.transformed", white)
    problem = (
        "not finite for 3 of 3 images that the transform shapes has made pseudo-OOD, first 0000"
    )
    with pytest.raises(CalibrationError, match=problem) as caught:
        score_transformed(reader, "shapes", list(reader.files()))
    assert "a method of one score" in caught.value.action


def test_a_hit_is_bit_identical_and_runs_no_model(
    folder: Path, tmp_path: Path, loaded: LoadedModel
) -> None:
    plain, runs = read(reader_of(folder, loaded)), Runs(loaded)
    reader = reader_of(folder, loaded, cache=FeatureCache(tmp_path))
    for expected in (COUNT, COUNT):
        assert_identical(read(reader), plain)
        assert runs.images == expected
    # Scores are taken from what was kept for a reading.
    assert_scored_alike(score(reader), score(reader_of(folder, load_small("SmallNet"))))
    assert runs.images == COUNT
    changed = score_transformed(reader, "elastic")
    assert runs.images == 2 * COUNT
    assert_scored_alike(score_transformed(reader, "elastic"), changed)
    assert runs.images == 2 * COUNT


def test_undecodable_images_are_kept_too(tmp_path: Path, loaded: LoadedModel) -> None:
    images = write_images(tmp_path / "images", 8)
    for number in range(3):
        (images / f"0002-{number}.txt").write_text("a note")
    runs = Runs(loaded)
    reader = reader_of(images, loaded, cache=FeatureCache(tmp_path / "cache"))
    first = read(reader, 3)
    assert_identical(read(reader, 3), first)
    assert (first.undecodable, runs.images) == (3, 8)
    assert first.first_problem.startswith("0002-0.txt: not a JPEG")


def test_a_damaged_file_is_computed_anew(folder: Path, tmp_path: Path, loaded: LoadedModel) -> None:
    reader = reader_of(folder, loaded, cache=FeatureCache(tmp_path))
    first, runs = read(reader), Runs(loaded)
    damaged = min(tmp_path.rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-4])
    with structlog.testing.capture_logs() as logs:
        assert_identical(read(reader), first)
    assert [event["event"] for event in logs] == ["feature_cache_file_unreadable"]
    assert 0 < runs.images <= 4
    before = runs.images
    assert_identical(read(reader), first)
    assert runs.images == before


@pytest.mark.parametrize(("device", "named"), [("cpu", None), ("cuda", "float32, contiguous")])
def test_plain_float32_on_a_gpu_is_not_what_it_was_before(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    named: str | None,
) -> None:
    loaded = load_small("SmallNet")
    keys: list[Mapping[str, Any]] = []

    def spied(parts: Mapping[str, Any]) -> str:
        keys.append(parts)
        return cache_key(parts)

    monkeypatch.setattr(read_module, "cache_key", spied)
    forward = LoadedModel.forward
    monkeypatch.setattr(LoadedModel, "forward", lambda _self, batch: forward(loaded, batch))
    there = replace(loaded, device=torch.device(device))
    read(reader_of(folder, there, cache=FeatureCache(tmp_path)))
    assert {parts.get("execution") for parts in keys} == {named}


def test_whatever_changes_the_outputs_is_another_key(folder: Path, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    plain = load_small("SmallNet")
    read(reader_of(folder, plain, cache=cache))
    others = [
        load_small("SmallNet", preprocessing=plain.preprocessing.model_copy(update=PLAIN)),
        load_small("SmallNet", feature_layer="features.0"),
        load_small("DropoutNet"),
        replace(plain, head=None),
    ]
    for other in others:
        runs = Runs(other)
        read(reader_of(folder, other, cache=cache))
        assert runs.images == COUNT
    runs = Runs(plain)
    runs.images = 0
    read(replace(reader_of(folder, plain, cache=cache), limits=LimitSettings(max_image_pixels=999)))
    assert runs.images == COUNT
    score_transformed(reader_of(folder, plain, cache=cache), "solarize")
    assert runs.images == 2 * COUNT
    score_transformed(reader_of(folder, plain, cache=cache), "quarter_size")
    assert runs.images == 3 * COUNT


@pytest.mark.parametrize("library", ["torch", "torchvision", "pillow", "numpy"])
def test_another_version_of_what_decodes_and_computes_is_another_key(
    folder: Path,
    tmp_path: Path,
    loaded: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    library: str,
) -> None:
    reader, runs = reader_of(folder, loaded, cache=FeatureCache(tmp_path)), Runs(loaded)
    read(reader)
    found = versions() | {library: "0.1"}
    monkeypatch.setattr(read_module, "versions", lambda: found)
    read(reader)
    assert runs.images == 2 * COUNT
    monkeypatch.setattr(read_module, "versions", lambda: found | {"scipy": "0.1"})
    read(reader)
    assert runs.images == 2 * COUNT


def test_other_images_or_batches_are_another_key(
    folder: Path, tmp_path: Path, loaded: LoadedModel
) -> None:
    reader, runs = reader_of(folder, loaded, cache=FeatureCache(tmp_path)), Runs(loaded)
    files = list(reader.files())
    reader.read(files[:4], 4, lambda _images: None)
    reader.read(files[:4][::-1], 4, lambda _images: None)
    reader.read(files[:3], 4, lambda _images: None)
    assert runs.images == 4 + 4 + 3
    # The first four are there.
    read(reader)
    assert runs.images == 11 + COUNT - 4
    # Random transforms depend on the place of a batch among all images.
    before = runs.images
    score_transformed(reader, "elastic", files[:5] * 20)
    assert runs.images == before + 100


def test_a_run_that_was_cut_off_is_resumed(
    folder: Path, tmp_path: Path, loaded: LoadedModel
) -> None:
    plain, runs = read(reader_of(folder, loaded)), Runs(loaded)
    reader = reader_of(folder, loaded, cache=FeatureCache(tmp_path))

    def cut_off() -> Iterator[ImageFile]:
        for number, file in enumerate(reader.files()):
            if number == 9:
                raise KeyboardInterrupt
            yield file

    with pytest.raises(KeyboardInterrupt):
        reader.read(cut_off(), 4, lambda _images: None)
    assert runs.images == 8
    assert_identical(read(reader), plain)
    assert runs.images == COUNT


def test_pseudo_ood_images_are_the_transformed_ones(folder: Path, loaded: LoadedModel) -> None:
    reader = reader_of(folder, loaded)
    scored = score_transformed(reader, "elastic", list(reader.files()) * 7)
    whole = pixels(folder, loaded).repeat(7, 1, 1, 1)
    for first in range(0, 70, BLOCK):
        batch = transformed("elastic", whole[first : first + 50], PSEUDO_SEED, first)
        expected = loaded.forward(batch)
        part = slice(first, first + 50)
        np.testing.assert_array_equal(scored.values["nap"][part], expected.nap.numpy())
        np.testing.assert_array_equal(
            scored.values["max_logit"][part], expected.logits.numpy().max(axis=1)
        )
        np.testing.assert_array_equal(scored.class_id[part], expected.logits.numpy().argmax(1))
    plain = read(reader)
    assert not np.array_equal(plain.nap, scored.values["nap"][:COUNT])


@pytest.mark.parametrize("transform", ["elastic", "plain_frame"])
def test_a_block_is_transformed_whole_and_goes_through_the_model_in_batches(
    folder: Path, transform: str
) -> None:
    loaded = load_small("SmallNet")
    runs, reader, scores = Runs(loaded), reader_of(folder, loaded), base_scores(loaded)
    block = list(reader.files())
    found = [
        reader.score_transformed([block], transform, [scores], lambda _images: None, size)
        for size in (3, None)
    ]
    assert (runs.images, runs.largest) == (2 * COUNT, COUNT)
    for name, column in found[0].values.items():
        np.testing.assert_allclose(column, found[1].values[name], rtol=1e-5)
    runs.largest = 0
    reader.score_transformed([block], transform, [scores], lambda _images: None, 3)
    reader.score_faulty([block], "sensor noise", scores, lambda _images: None, 3)
    assert runs.largest == 3


def test_scores_are_those_of_the_reading_in_any_batches(folder: Path, loaded: LoadedModel) -> None:
    reader = reader_of(folder, loaded)
    expected = ScoredImages.of(read(reader), base_scores(loaded))
    for batch_size in (1, 3, 100):
        scored = score(reader, batch_size)
        assert (scored.names, scored.labels, len(scored)) == (expected.names, expected.labels, 10)
        assert scored.class_id.dtype == np.int64
        assert scored.class_id.tolist() == expected.class_id.tolist()
        assert scored.values.keys() == {"nap", "msp", "max_logit", "energy"}
        for name, column in scored.values.items():
            assert column.dtype == np.float32
            assert column.shape == (COUNT,)
            # A batch of another size rounds otherwise, which a logit near 0 shows.
            np.testing.assert_allclose(column, expected.values[name], rtol=1e-5, atol=1e-7)


def test_scoring_keeps_the_outputs_of_one_batch_at_a_time(
    folder: Path, loaded: LoadedModel
) -> None:
    def alive() -> int:
        return sum(type(thing) is Reading for thing in gc.get_objects())

    reader, before, counts = reader_of(folder, loaded), alive(), list[int]()
    scores = base_scores(loaded)
    reader.score(reader.files(), scores, 2, lambda _images: counts.append(alive() - before))
    assert len(counts) == 5
    assert max(counts) <= 1
    reader.read(reader.files(), 2, lambda _images: counts.append(alive() - before))
    assert max(counts) == 5


def test_joining_takes_the_first_problem() -> None:
    def part(count: int, problem: str) -> Reading:
        logits = np.zeros((count, 3 if count else 0), np.float32)
        nap = np.zeros(count, np.float32)
        labels = (None,) * count
        positions = np.arange(count)
        return Reading(
            ("a",) * count, labels, positions, logits, None, nap, int(bool(problem)), problem
        )

    joined = Reading.join([part(0, ""), part(2, "first"), part(0, "second"), part(1, "")])
    assert (len(joined), joined.undecodable, joined.first_problem) == (3, 2, "first")
    assert (joined.logits.shape, joined.nap.shape) == ((3, 3), (3,))


def test_formats_other_than_png(tmp_path: Path) -> None:
    for name in ("JPEG", "PNG", "WEBP"):
        (tmp_path / f"{name}.bin").write_bytes(encoded(picture(), name))
    assert len(read(reader_of(tmp_path))) == 3


@pytest.mark.parametrize("lacking", ["decoded", "warned", "nap", "features", "rows"])
def test_a_cache_file_that_lacks_something_is_computed_anew(tmp_path: Path, lacking: str) -> None:
    images, cache = write_images(tmp_path / "images", 4), FeatureCache(tmp_path / "cache")
    reader = Reader(load_small("SmallNet"), LimitSettings(), images, cache)
    whole = reader.read(reader.files(), 4, lambda _: None)
    (path,) = (tmp_path / "cache").rglob("*.safetensors")
    arrays = load_file(path)
    if lacking == "rows":
        arrays["nap"] = arrays["nap"][:3]
    else:
        del arrays[lacking]
    save_file(arrays, path)
    again = reader.read(reader.files(), 4, lambda _: None)
    np.testing.assert_array_equal(again.nap, whole.nap)
    assert load_file(path).keys() == {"decoded", "warned", "logits", "nap", "features"}
