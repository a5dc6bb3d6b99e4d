from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.calibration import fit
from nap_stream.calibration.fit import ALWAYS, FitPart
from nap_stream.calibration.pseudo_ood import PSEUDO_OOD
from nap_stream.calibration.read import Advance, Reader, ScoredImages
from nap_stream.core.base_scores import BaseScores, evenly_spaced
from nap_stream.core.score_specs import BaseScore, ScoreParameters
from nap_stream.errors import InputDataError
from nap_stream.image_files import ImageFile
from nap_stream.settings.schema import LimitSettings
from tests.support.small_calibration import write_images
from tests.support.small_settings import load_small

ALL = 10_000


@dataclass(frozen=True, slots=True)
class Batches(Reader):
    """Remembers the images that were transformed, in blocks, and what each block is scored by."""

    seen: list[list[list[str]]] = field(default_factory=list)
    scored_by: list[list[BaseScores]] = field(default_factory=list)

    def score_transformed(
        self,
        blocks: Sequence[list[ImageFile]],
        transform: str,
        base_scores: Sequence[BaseScores],
        advance: Advance,
        batch_size: int | None = None,
    ) -> ScoredImages:
        self.seen.append([[file.name for file in block] for block in blocks])
        self.scored_by.append(list(base_scores))
        return Reader.score_transformed(self, blocks, transform, base_scores, advance, batch_size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("fit-part") / "images", 20)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("fit-part") / "training", 12, first_seed=100)


def numbers(part: FitPart, images: Path) -> tuple[list[int], list[int]]:
    """The images that are fitted on, and those that calibrate."""
    fitted = [int(file.name.removesuffix(".png")) for file in part.files()]
    others = [int(file.name.removesuffix(".png")) for file in part.others(images)]
    return fitted, others


def test_a_third_is_fitted_on_and_the_others_calibrate(folder: Path) -> None:
    part = FitPart.choose(folder, None, ALL)
    fitted, others = numbers(part, folder)
    # A third of 20 is 7, one of each block that begins here.
    starts = [0, 2, 5, 8, 11, 14, 17, 20]
    assert all(low <= n < high for n, low, high in zip(fitted, starts, starts[1:], strict=False))
    assert sorted(fitted + others) == list(range(20))
    assert (len(part), part.own, part.source) == (7, False, folder)
    assert numbers(FitPart.choose(folder, None, ALL), folder) == (fitted, others)


def test_at_most_as_many_as_the_limit(folder: Path) -> None:
    fitted, others = numbers(FitPart.choose(folder, None, 4), folder)
    assert [number // 5 for number in fitted] == [0, 1, 2, 3]
    assert len(others) == 16


def test_images_given_to_fit_on_leave_all_others(folder: Path, other: Path) -> None:
    part = FitPart.choose(folder, other, ALL)
    fitted, others = numbers(part, folder)
    assert (fitted, others) == (list(range(12)), list(range(20)))
    assert (part.own, part.source) == (True, other)
    fitted, others = numbers(FitPart.choose(folder, other, 3), folder)
    assert [number // 4 for number in fitted] == [0, 1, 2]
    assert others == list(range(20))


def test_copies_are_found_under_any_name(folder: Path, other: Path, tmp_path: Path) -> None:
    for file in other.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "0003.png").write_bytes((folder / "0007.png").read_bytes())
    (tmp_path / "empty.png").touch()
    assert FitPart.choose(folder, tmp_path, ALL).copies(folder) == [("0007.png", "0003.png")]
    assert FitPart.choose(folder, other, ALL).copies(folder) == []
    assert len(FitPart.choose(folder, folder, ALL).copies(folder)) == 20


def test_copies_within_a_folder_of_which_a_share_is_fitted_on(tmp_path: Path) -> None:
    write_images(tmp_path, 6)
    for number in range(6):
        data = (tmp_path / f"{number:04}.png").read_bytes()
        for copy in "ab":
            (tmp_path / f"{number:04}{copy}.png").write_bytes(data)
    part = FitPart.choose(tmp_path, None, ALL)
    # One of each three copies is fitted on, the other two calibrate.
    assert len(part.copies(tmp_path)) == 12


@given(st.integers(1, 200), st.integers(1, 100))
def test_as_many_as_a_third_or_the_limit(count: int, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "count_images", lambda _path: count)
        part = FitPart.choose(Path("any"), None, limit)
    assert part.rows.shape == (count,)
    assert len(part) == max(1, min(limit, round(count / 3)))


def test_the_classes_of_a_sorted_folder_keep_their_shares(tmp_path: Path) -> None:
    for name in ("cat", "dog", "owl"):
        write_images(tmp_path / name, 9)
    labels = [file.label for file in FitPart.choose(tmp_path, None, ALL).files()]
    assert labels == ["cat"] * 3 + ["dog"] * 3 + ["owl"] * 3


def test_a_folder_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="no such"):
        FitPart.choose(folder, tmp_path / "absent", ALL)


def test_pseudo_ood_values_of_every_transform(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_small("SmallNet")
    monkeypatch.setattr(fit, "PSEUDO_IMAGES", 5)
    part = FitPart.choose(folder, None, ALL)
    reader = Reader(loaded, LimitSettings(), folder)
    reading = reader.read(part.files(), 4, lambda _images: None)
    names = (*ALWAYS, BaseScore.KNN)
    folds = fit.Folds.choose(len(part))
    fitted = fit.fit(names, reading, folds, loaded, ScoreParameters(knn_k=2))
    told: list[int] = []
    found = fit.pseudo_values(part, folds, reader, fitted, told.append)

    assert tuple(found) == tuple(PSEUDO_OOD)
    assert sum(told) == fit.pseudo_passes(part) == 5 * len(PSEUDO_OOD)
    files = list(part.files())
    chosen = {files[number].name for number in evenly_spaced(7, 5)}
    for name, values in found.items():
        assert values.keys() == {"nap", "msp", "max_logit", "energy", "knn"}
        assert all(len(column) == 5 for column in values.values())
        if name not in ("solarize", "quarter_size"):
            continue
        # These do to each image what they do to it alone.
        picked = [file for file in files if file.name in chosen]
        scored = reader.score_transformed(
            [picked], name, [fitted.base_scores], lambda _images: None
        )
        expected = np.sort(scored.values["nap"])
        np.testing.assert_allclose(np.sort(values["nap"]), expected, rtol=1e-5)


def test_pseudo_ood_images_are_not_in_order_of_their_classes(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 12)
    part = FitPart.choose(tmp_path, tmp_path, ALL)
    reader = Batches(load_small("SmallNet"), LimitSettings(), tmp_path)
    reading = reader.read(part.files(), 8, lambda _images: None)
    folds = fit.Folds.choose(len(part))
    fitted = fit.fit(ALWAYS, reading, folds, reader.loaded, ScoreParameters())
    fit.pseudo_values(part, folds, reader, fitted, lambda _images: None)
    blocks = reader.seen[0]
    assert reader.seen == [blocks] * len(PSEUDO_OOD)
    names = [name for block in blocks for name in block]
    assert sorted(names) == sorted(file.name for file in part.files())
    assert [len(block) for block in blocks] == [5, 5, 5, 5, 4]
    for block in blocks:
        assert {name.split("/")[0] for name in block} == {"cat", "dog"}


def test_passes_are_counted_of_no_more_images_than_there_are(folder: Path) -> None:
    assert fit.pseudo_passes(FitPart.choose(folder, None, ALL)) == 7 * len(PSEUDO_OOD)
