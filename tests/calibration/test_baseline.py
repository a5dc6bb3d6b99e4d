import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nap_stream.calibration.artifact import load_calibration, write_calibration
from nap_stream.calibration.baseline import BLOCK_BINS, BLOCK_FLAGGED, BLOCK_KEY, BLOCK_START_MS
from nap_stream.calibration.calibration import Calibration, array_sha256
from nap_stream.core.blocks import Blocks
from nap_stream.core.conformal import Rule
from nap_stream.core.tails import Sides
from nap_stream.core.time_kinds import TimeKinds
from nap_stream.errors import CalibrationError
from tests.support.baseline_calibrations import blocks_of_stream, with_baseline
from tests.support.small_calibration import calibration_of

STREAM = [2.0, 3.0, 5.0, 6.0, 9.0]


def parent(**changes: Any) -> Calibration:
    # Scores of the images: 8, 1, 6, 4.
    return calibration_of([16, 1, 9, 4], [4, 1, 4, 4], **({"alpha": 0.4} | changes))


def made(**changes: Any) -> Calibration:
    return with_baseline(parent(), np.array(STREAM), **changes)


def keyed() -> Blocks:
    one = blocks_of_stream([2, 4, 6])
    return Blocks(
        np.repeat([0, 1], 3),
        np.tile(one.start_ms, 2),
        np.concatenate((2 * one.records, one.records)),
        np.tile(one.flagged, 2),
        np.concatenate((one.bins + one.bins * (np.arange(10) == 5) + _rest(one), one.bins)),
        ("", "north"),
        one.block_ms,
    )


def _rest(one: Blocks) -> np.ndarray[Any, np.dtype[np.int64]]:
    rest = np.zeros_like(one.bins)
    rest[:, 5] = one.flagged
    return rest


def test_images_are_judged_by_the_baseline_and_by_the_calibration_images() -> None:
    values = {"energy": np.array([4, 25], np.float32), "nap": np.array([4, 1], np.float32)}
    found = made().judge(values, np.zeros(2, np.int64))
    # Fused 4 and 5; of the stream's scores 2 and 3 are at most that, of the images' 2 of 4.
    assert found.fused.tolist() == pytest.approx([4, 5])
    assert found.ood_p_value.tolist() == pytest.approx([3 / 6, 4 / 6])
    assert found.calibration_p_value is not None
    assert found.calibration_p_value.tolist() == pytest.approx([3 / 5, 3 / 5])
    assert found.is_ood.tolist() == [False, False]
    plain = parent().judge(values, np.zeros(2, np.int64))
    assert plain.ood_p_value.tolist() == found.calibration_p_value.tolist()
    assert plain.calibration_p_value is None


def test_logged_scores_are_judged_alike() -> None:
    found = made(since_ms=-5).judge_fused(np.array([1.5, np.nan]), np.zeros(2, np.int64))
    # The smallest rank of six is flagged at 0.4, and so is the second.
    assert found.ood_p_value[0] == pytest.approx(1 / 6)
    assert found.is_ood.tolist() == [True, False]
    assert found.calibration_p_value is not None
    assert np.isnan(found.calibration_p_value).tolist() == [False, True]


def test_the_facts_hold_the_baseline() -> None:
    facts = made(blocks=keyed(), kinds=TimeKinds((6, 18), timezone="Europe/Berlin")).facts
    assert facts.baseline is not None
    assert (facts.baseline.name, facts.baseline.by) == ("scored-log", "key")
    assert (facts.baseline.made_by, facts.baseline.reason) == ("Ada", "it ran as it should")
    assert (facts.baseline.since_ms, facts.baseline.until_ms) == (0, 180_000)
    assert facts.baseline.made_ms == 1_700_000_000_000
    assert facts.baseline.blocks.keys == ("", "north")
    assert facts.baseline.blocks.of("north").flagged.tolist() == [2, 4, 6]
    assert facts.baseline.kinds.count == 2
    assert facts.size == 5
    assert parent().facts.baseline is None


def test_it_survives_the_disk_and_pickling(tmp_path: Path) -> None:
    calibration = made(blocks=keyed(), kinds=TimeKinds((0, 6), weekend_apart=True))
    write_calibration(calibration, tmp_path / "new")
    found = load_calibration(tmp_path / "new")
    assert found.fingerprint == calibration.fingerprint
    assert found.document == calibration.document
    assert {name: a.tolist() for name, a in found.arrays.items()} == {
        name: a.tolist() for name, a in calibration.arrays.items()
    }
    again = pickle.loads(pickle.dumps(found))
    assert again.facts.baseline.blocks.bins.tolist() == keyed().bins.tolist()
    tree = json.loads((tmp_path / "new" / "calibration.json").read_text())
    assert (tree["version"], tree["baseline"]["kinds"]["weekend_apart"]) == (6, True)


def test_the_fingerprint_is_of_the_baseline_too() -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"reason": "other"},
        {"made_by": "Bo"},
        {"until_ms": 10**9},
        {"kinds": TimeKinds((6, 18))},
        {"blocks": blocks_of_stream([3, 5, 5] * 4)},
    ]
    prints = {made(**changes).fingerprint for changes in kinds}
    assert len(prints | {parent().fingerprint}) == len(kinds) + 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"since_ms": 10**9}, "a stretch of"),
        ({"block_ms": 0}, "a stretch of"),
        ({"keys": ("", "north")}, "nothing that names them"),
        ({"kinds": TimeKinds(timezone="Mars/Base")}, "no time zone 'Mars/Base'"),
        (
            {"kinds": {"boundaries_h": [6], "weekend_apart": False, "timezone": "UTC"}},
            "two or more",
        ),
        ({"novelty": 1}, "Extra inputs"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        made(**changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [(BLOCK_BINS, -1), (BLOCK_FLAGGED, 101), (BLOCK_KEY, 1), (BLOCK_START_MS, 7)],
)
def test_blocks_that_contradict_themselves_are_refused(name: str, value: int) -> None:
    calibration = made()
    array = calibration.arrays[name].copy()
    array.flat[0] = value
    arrays = {**calibration.arrays, name: array}
    document = calibration.document.model_copy(update={"array_sha256": array_sha256(arrays)})
    with pytest.raises(ValueError, match="block"):
        Calibration(document, arrays)


def test_arrays_go_with_a_baseline_and_only_with_it() -> None:
    calibration = made()
    for arrays in (
        {k: a for k, a in calibration.arrays.items() if k != "parent.score"},
        {**calibration.arrays, "value.nap": np.ones(5, np.float32)},
    ):
        document = calibration.document.model_copy(update={"array_sha256": array_sha256(arrays)})
        with pytest.raises(ValueError, match="expected the arrays"):
            Calibration(document, arrays)


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    write_calibration(made(), tmp_path / "new")
    path = tmp_path / "new" / "calibration.json"
    path.write_text(path.read_text().replace('"Ada"', '"Eve"'))
    with pytest.raises(CalibrationError, match="does not have the fingerprint"):
        load_calibration(tmp_path / "new")


@pytest.mark.parametrize("sides", Sides)
def test_a_rule_per_class_holds_for_both(sides: Sides) -> None:
    images = calibration_of(
        list(range(1, 41)),
        list(range(1, 41)),
        rule=Rule(0.1, sides, per_class=True),
        class_id=[0, 1] * 20,
    )
    with pytest.raises(ValueError, match="class 1 has 0"):
        with_baseline(images, np.arange(40.0))
