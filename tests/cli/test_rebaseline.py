"""nap-stream rebaseline: what it writes, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from nap_stream.calibration.artifact import write_calibration
from nap_stream.calibration.calibration import Calibration
from nap_stream.cli.rebaseline import watched_again_ms
from nap_stream.clock import ManualClock
from nap_stream.core.blocks import blocks_of
from nap_stream.core.time_kinds import TimeKinds
from nap_stream.scored_log.acceptances import AcceptanceReader
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.summary import SummaryShape
from nap_stream.text import moment, rfc3339
from tests.cli.program import Call, Ended
from tests.support.baselines import calibration_with, cameras
from tests.support.drifting_log import START_MS, Publisher, drifting
from tests.support.small_calibration import calibration_of
from tests.support.summaries import partition, summary

KEY = "camera-0-1"
TYPED = {
    "--key": KEY,
    "--from": "2026-01-01T12:00:01",
    "--by": "Ann",
    "--reason": "the line was retooled",
}


def with_baseline() -> Calibration:
    blocks = blocks_of([summary(0, 0, cameras(0, 3_000)).panes], 50)
    return calibration_with(blocks, made_ms=1)


class Site:
    def __init__(self, folder: Path, nap: Call) -> None:
        self._folder, self._nap = folder, nap
        self.store = LocalStore(folder / "log")
        publisher = Publisher(self.store, "c" * 64, SummaryShape(1_000, 0))
        list(publisher.publish(partition(0), drifting(partition(0), 120, range(0)), [60]))

    def rebaseline(
        self,
        calibration: Calibration,
        drift: dict[str, Any] | None = None,
        **changes: str,
    ) -> Ended:
        write_calibration(calibration, self._folder / "calibration")
        tree = {
            "kafka": {"topic": "images"},
            "model": {"factory": "models:net"},
            "calibration": "calibration",
            "log": {"root": "log"},
            "drift": {"keys": {"by": "key"}} if drift is None else drift,
        }
        config = self._folder / "monitor.yaml"
        config.write_text(yaml.safe_dump(tree))
        typed = {**TYPED, **{f"--{name.rstrip('_')}": text for name, text in changes.items()}}
        options = [part for option in typed.items() for part in option]
        return self._nap("rebaseline", "--config", config, *options)


@pytest.fixture
def site(tmp_path: Path, nap: Call) -> Site:
    return Site(tmp_path, nap)


def test_what_is_accepted_stands_beside_the_log(site: Site) -> None:
    ended = site.rebaseline(with_baseline())
    assert ended.exit_code == 0
    assert ended.err == f"--from: {TYPED['--from']} is taken as UTC\n"
    assert f"accepted as event 0: {KEY} as it is since 2026-01-01 12:00:01 UTC" in ended.out
    (found,) = AcceptanceReader(site.store, "images", ManualClock()).read()
    until = moment(rfc3339((-(-found.effective_ms // 50) + 50) * 50))
    assert f"nothing watches {KEY}: until about {until}" in ended.out
    assert "(50 blocks of less than 1 s each)" in ended.out
    assert (found.key, found.from_ms) == (KEY, START_MS + 1_000)
    assert (found.by, found.reason) == ("Ann", "the line was retooled")
    assert found.effective_ms - found.made_ms == 90_000


HOUR_MS = 3_600_000
FRIDAY_MS = 86_400_000
"""1970-01-02."""


@pytest.mark.parametrize(
    ("kinds", "from_ms", "blocks"),
    [
        (TimeKinds(), 1, 51),
        # Twelve blocks a day from 8 to 20: the second of the fifth day is the last that is needed.
        (TimeKinds((8, 20)), 0, 4 * 24 + 10),
        # A weekend has 48 blocks: two of the next Saturday are needed too.
        (TimeKinds((), weekend_apart=True), FRIDAY_MS, 24 + 7 * 24 + 2),
    ],
)
def test_nothing_watches_until_each_kind_of_time_is_learned(
    kinds: TimeKinds, from_ms: int, blocks: int
) -> None:
    begun_ms = from_ms - from_ms % HOUR_MS
    assert watched_again_ms(kinds, HOUR_MS, from_ms) == begun_ms + blocks * HOUR_MS


def test_a_change_that_the_baseline_has_is_warned_of(site: Site) -> None:
    ended = site.rebaseline(with_baseline(), from_="1970-01-01T00:00:01")
    assert ended.exit_code == 0
    assert "warning: the baseline itself goes on to 1970-01-01 00:00:03 UTC" in ended.err


@pytest.mark.parametrize(
    ("changes", "drift", "said"),
    [
        ({"key": "kamera-0-1"}, None, "of 3 others, the nearest: 'camera-0-1', "),
        ({"key": ""}, None, "the whole stream cannot be accepted"),
        ({"from_": "2999-01-01"}, None, "--from: 2999-01-01 is not over yet"),
        ({"from_": "lately"}, None, "--from: not a time: 'lately'"),
        ({"by": ""}, None, "--by: expected 1 to 200 printable characters"),
        ({"from_": "2026-06-01"}, None, "of 0 others, the nearest: none"),
        ({}, {"keys": None}, "drift.keys: no blocks of keys are watched"),
        ({}, {"keys": {}, "blocks": "off"}, "drift.blocks: no blocks of keys are watched"),
    ],
)
def test_mistakes_are_refused(
    site: Site, changes: dict[str, str], drift: dict[str, Any] | None, said: str
) -> None:
    ended = site.rebaseline(with_baseline(), drift, **changes)
    assert ended.exit_code == 2
    assert said in ended.err
    assert AcceptanceReader(site.store, "images", ManualClock()).read() == ()


def test_without_a_baseline_there_is_nothing_to_accept_against(site: Site) -> None:
    scores = [float(i) for i in range(400)]
    ended = site.rebaseline(calibration_of(scores, scores, alpha=0.05))
    assert ended.exit_code == 2
    assert "the calibration holds no baseline" in ended.err
    assert "Make one with `nap-stream baseline`" in ended.err


def test_what_was_pruned_of_the_stretch_is_told_of(site: Site, nap: Call, tmp_path: Path) -> None:
    said = ("--before", "2026-02-01T00:00Z", "--by", "Ann", "--reason", "90 days")
    assert nap("prune", "--log", tmp_path / "log", *said).exit_code == 0
    ended = site.rebaseline(with_baseline(), from_="2026-01-01T12:00:00Z")
    assert ended.err.count("were pruned by Ann on ") == 1
