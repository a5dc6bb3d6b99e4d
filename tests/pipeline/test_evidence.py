"""Which images are kept, how many bytes of them, and that nothing waits for them."""

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from structlog.testing import capture_logs

from nap_stream.clock import Clock, ManualClock, SystemClock
from nap_stream.errors import InputDataError, LogRootError, ScoredLogError
from nap_stream.pipeline.evidence import DAY_MS, HOUR_MS, DayBudget, EvidenceChoice, EvidenceKeeper
from nap_stream.pipeline.rows import MessageDecoder
from nap_stream.records import EvidenceOutcome, Fetched, ScoredRows, Status, TopicPartition
from nap_stream.scored_log.evidence import erase_evidence, evidence_path, find_evidence
from nap_stream.scored_log.format import rows_of, temporary_name
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.stores.s3 import ObjectStore
from nap_stream.settings.evidence import EvidenceSettings
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings
from tests.pipeline.bench import FIRST, SECOND, Bench
from tests.pipeline.test_scoring import score, stage
from tests.support.doubles import MemoryTopic
from tests.support.image_bytes import ARROW_HEADERS, arrow_stream, jpeg
from tests.support.log_files import rows_in
from tests.support.memory_store import MemoryStore
from tests.support.waiting import PATIENCE_S, wait_until

MIDNIGHT_MS = 1_780_272_000_000
DAY = "2026-06-01"
ALPHA = 0.05
NOTHING = EvidenceSettings(extremes_per_hour=0, sample=0)


def test_a_day_is_of_utc() -> None:
    assert evidence_path(MIDNIGHT_MS, "ab") == f"{DAY}/ab"
    assert MIDNIGHT_MS % DAY_MS == 0


def scored(
    p_values: Sequence[float | None],
    *,
    event_ms: Sequence[int] | None = None,
    scored_ms: int = MIDNIGHT_MS,
    size: int = 10,
    partition: TopicPartition = FIRST,
    first: int = 0,
    status: Status = Status.CORRUPT,
) -> ScoredRows:
    """Rows of these p-values; those without one have a status, and no file unless not finite."""
    count = len(p_values)
    files = [f"{partition}{first + row}".encode().ljust(size, b".") for row in range(count)]
    kept = [
        data if p is not None or status is Status.NOT_FINITE else None
        for data, p in zip(files, p_values, strict=True)
    ]
    columns: dict[str, Any] = {
        "offset": [first + row for row in range(count)],
        "index": [0] * count,
        "event_time": list(event_ms or [MIDNIGHT_MS] * count),
        "ingest_time": [MIDNIGHT_MS] * count,
        "scored_time": [scored_ms] * count,
        "status": [Status.OK if p is not None else status for p in p_values],
        "error": [None if p is not None else "bad" for p in p_values],
        "sha256": [hashlib.sha256(data).hexdigest() for data in files],
        "headers": [()] * count,
        "ood_p_value": pa.array(p_values, pa.float64()),
        "is_ood": pa.array([None if p is None else p <= ALPHA for p in p_values], pa.bool_()),
    }
    return ScoredRows(partition, 1, first + count, rows_of(columns, count), (), tuple(kept))


def chosen(settings: EvidenceSettings, *batches: ScoredRows) -> list[tuple[int, tuple[str, ...]]]:
    choice = EvidenceChoice(settings)
    return [
        (int(batch.rows.column("offset")[row].as_py()), reasons)
        for batch in batches
        for row, reasons in choice(batch)
    ]


def test_flagged_images_and_those_that_are_not_finite_are_chosen_and_unreadable_ones_not() -> None:
    assert chosen(NOTHING, scored([0.5, 0.05, None, 0.051])) == [(1, ("flagged",))]
    not_finite = scored([0.5, None], status=Status.NOT_FINITE)
    assert chosen(NOTHING, not_finite) == [(1, ("flagged",))]


def test_the_smallest_p_values_of_an_hour_are_chosen_as_they_come() -> None:
    """With two an hour: 0.9 and 0.8 come first, 0.7 beats 0.9, 0.8 again nothing, 0.01 beats."""
    settings = replace_settings(extremes_per_hour=2)
    hour = [0, 0, 0, 0, 0, HOUR_MS]
    events = [MIDNIGHT_MS + each for each in hour]
    p_values = [0.9, 0.8, 0.7, 0.8, 0.01, 0.95]
    expected = [
        *((offset, ("extreme",)) for offset in (0, 1, 2)),
        (4, ("extreme", "flagged")),
        (5, ("extreme",)),
    ]

    whole = scored(p_values, event_ms=events)
    assert chosen(settings, whole) == expected
    one_by_one = [
        scored([p], event_ms=[event], first=row)
        for row, (p, event) in enumerate(zip(p_values, events, strict=True))
    ]
    assert chosen(settings, *one_by_one) == expected
    other = scored([0.99], partition=SECOND, first=9)
    assert chosen(settings, whole, other)[-1] == (9, ("extreme",))


def replace_settings(**changes: Any) -> EvidenceSettings:
    return NOTHING.model_copy(update=changes)


def test_the_sample_is_of_the_share_and_the_same_again_and_another_with_another_seed() -> None:
    batch = scored([0.5] * 20_000)
    settings = replace_settings(sample=0.1)

    first = chosen(settings, batch)

    assert abs(len(first) - 2_000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5
    assert {reasons for _, reasons in first} == {("sample",)}
    assert (
        chosen(settings, *(scored([0.5], first=n) for n in range(500)))
        == first[: sum(offset < 500 for offset, _ in first)]
    )
    assert chosen(replace_settings(sample=0.1, seed="b"), batch) != first
    assert chosen(replace_settings(sample=1.0), scored([0.5, 0.01])) == [
        (0, ("sample",)),
        (1, ("flagged",)),
    ]


def test_a_days_budget_grows_with_the_day_and_has_a_share_for_each_reason() -> None:
    budget = DayBudget(25_000, used=0)
    # At midnight an hour of 25 is there to spend: 500 bytes for flagged images, 250 for extremes.
    assert budget.reason(("flagged",), 500, MIDNIGHT_MS) == "flagged"
    assert budget.reason(("flagged",), 501, MIDNIGHT_MS) is None
    assert budget.reason(("extreme", "flagged"), 300, MIDNIGHT_MS) == "flagged"
    budget.spend("flagged", 500)
    assert budget.reason(("flagged",), 1, MIDNIGHT_MS) is None
    assert budget.reason(("extreme",), 250, MIDNIGHT_MS) == "extreme"
    assert budget.reason(("flagged",), 500, MIDNIGHT_MS + HOUR_MS) == "flagged"
    assert budget.reason(("flagged",), 11_999, MIDNIGHT_MS + DAY_MS - 1) == "flagged"
    assert budget.reason(("flagged",), 12_001, MIDNIGHT_MS + DAY_MS - 1) is None
    # What lay there at the start counts for all of them alike.
    assert DayBudget(1_000, used=1_000).reason(("extreme",), 1, MIDNIGHT_MS + DAY_MS - 1) is None


class Noted(Counter[str]):
    """What became of images, and the bytes of those that were kept."""

    size = 0

    def __call__(self, outcome: EvidenceOutcome, size: int) -> None:
        self[outcome] += 1
        self.size += size


@pytest.fixture
def noted() -> Noted:
    return Noted()


def keeper(store: SegmentStore, noted: Noted, **changes: Any) -> EvidenceKeeper:
    options: dict[str, Any] = {"workers": 1, "clock": ManualClock(MIDNIGHT_MS)}
    settings = changes.pop("settings", NOTHING)
    return EvidenceKeeper(store, settings, note=noted, **options | changes)


@pytest.fixture(params=["local", "object"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SegmentStore:
    if request.param == "local":
        return LocalStore(tmp_path / "evidence")
    return ObjectStore(request.getfixturevalue("s3_root"))


def test_what_is_kept_is_found_by_its_rows_day_and_digest(
    store: SegmentStore, noted: Noted
) -> None:
    """A content that comes again is written once a day, also by another worker."""
    batch = scored([0.01, 0.5, 0.02])
    for _ in range(2):
        kept = keeper(store, noted)
        kept.offer(batch)
        kept.offer(batch)
        kept.close(PATIENCE_S)
        kept.close(PATIENCE_S)

    digests = batch.rows.column("sha256").to_pylist()
    found = [find_evidence(store, evidence_path(MIDNIGHT_MS, digest), 100) for digest in digests]
    assert found == [batch.files[0], None, batch.files[2]]
    assert noted == {"kept": 2}
    assert noted.size == 20
    assert store.sizes(DAY) == {digests[0]: 10, digests[2]: 10}
    assert store.sizes("2026-06-02") == {}


def test_the_budget_is_of_all_workers_and_of_the_whole_day_over_restarts(
    store: SegmentStore, noted: Noted
) -> None:
    """At the day's end half of 2,040 bytes are for flagged images: 25 of 20 bytes for each of 2."""
    late_ms = MIDNIGHT_MS + DAY_MS - 1
    settings = replace_settings(max_bytes_per_day=2_040)
    with capture_logs() as logs:
        first = keeper(store, noted, settings=settings, workers=2)
        first.offer(scored([0.01] * 40, size=20, scored_ms=late_ms))
        first.close(PATIENCE_S)
    assert noted == {"kept": 25, "over_budget": 15}
    assert [(log.get("outcome"), log.get("over_budget")) for log in logs] == [
        ("over_budget", None),
        (None, 15),
    ]
    assert "evidence.max_bytes_per_day = 2040" in logs[0]["cause"]

    # Half of the 500 bytes there counts as its own: half of that is of flagged images, so 19 more.
    again = keeper(store, noted, settings=settings, workers=2)
    again.offer(scored([0.01] * 40, size=20, scored_ms=late_ms, first=100))
    again.close(PATIENCE_S)
    assert noted["kept"] == 25 + 19
    # The next day is another one.
    third = keeper(store, noted, settings=settings, workers=2)
    third.offer(scored([0.01], scored_ms=MIDNIGHT_MS + DAY_MS, first=200, size=20))
    third.close(PATIENCE_S)
    assert noted["kept"] == 25 + 19 + 1


class Failing(MemoryStore):
    """Fails as often as it is told to."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error

    def create(self, path: str, content: bytes) -> bool:
        if self.error is not None:
            raise self.error
        return super().create(path, content)


@pytest.mark.parametrize(
    "error",
    [
        ScoredLogError("the disk is full", "/e"),
        LogRootError("gone", "/e"),
        RuntimeError("a defect"),
    ],
)
def test_a_store_that_fails_is_counted_said_and_tried_again(error: Exception, noted: Noted) -> None:
    store = Failing(error)
    kept = keeper(store, noted)
    with capture_logs() as logs:
        kept.offer(scored([0.01] * 3))
        wait_until(lambda: noted["failed"] == 3, "three that failed")
        store.error = None
        kept.offer(scored([0.01] * 3))
        kept.close(PATIENCE_S)

    assert noted == {"failed": 3, "kept": 3}
    assert str(error).splitlines()[0] in logs[0]["cause"]
    assert [(log.get("images"), log.get("failed")) for log in logs] == [(1, None), (None, 3)]


class Hanging(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = threading.Event(), threading.Event()

    def create(self, path: str, content: bytes) -> bool:
        self.asked.set()
        self.go_on.wait(PATIENCE_S)
        return super().create(path, content)


def test_a_store_that_hangs_holds_up_neither_rows_nor_the_end(noted: Noted) -> None:
    """Of 50 bytes' room five images wait; the one that is being written and four are given up."""
    store = Hanging()
    kept = keeper(store, noted, max_waiting_bytes=50)
    with capture_logs() as logs:
        kept.offer(scored([0.01] * 7))
        assert noted == {"queue_full": 2}
        assert store.asked.wait(PATIENCE_S)
        kept.close(0.0)
    assert noted == {"queue_full": 2, "failed": 5}
    assert [(log.get("outcome"), log.get("images")) for log in logs[:2]] == [
        ("queue_full", 1),
        ("failed", 5),
    ]
    assert (logs[2]["queue_full"], logs[2]["failed"]) == (2, 5)
    store.go_on.set()


def decoder(clock: Clock, *, keeps_files: bool = True) -> MessageDecoder:
    return MessageDecoder(
        preprocessing=PreprocessingSettings(resize=None, crop=4),
        limits=LimitSettings(),
        kept_headers=(),
        clock=clock,
        keeps_files=keeps_files,
    )


def test_the_line_keeps_the_files_of_the_rows_that_are_flagged(
    store: SegmentStore,
) -> None:
    """JPEGs one a message and in batches, of two partitions in one forward pass, some broken."""
    bench = Bench(MemoryTopic("images", 2), segment_max_rows=100)
    files = [jpeg(seed) for seed in range(12)]
    for file in files[:4]:
        bench.topic.append(FIRST, file)
    batch = [*files[4:6], b"no image", *files[6:8]]
    bench.topic.append(SECOND, arrow_stream({"image": batch}), headers=ARROW_HEADERS)
    for file in files[8:]:
        bench.topic.append(FIRST, file)
    bench.decode = decoder(SystemClock())
    flagged = {hashlib.sha256(file).hexdigest() for file in files[1::2]}

    def flag(decoded: Any) -> pa.RecordBatch:
        rows = score(decoded)
        digests = rows.column("sha256").to_pylist()
        is_ood = [None if one is None else one in flagged for one in digests]
        place = rows.schema.get_field_index("is_ood")
        return rows.set_column(place, rows.schema.field(place), pa.array(is_ood, pa.bool_()))

    bench.score = flag
    bench.evidence = lambda note: EvidenceKeeper(
        store, NOTHING, workers=1, note=note, clock=SystemClock()
    )
    bench.run(lambda: bench.topic.committed == {FIRST: 8, SECOND: 1})

    days = store.names("")
    assert {name for day in days for name in store.names(day)} == flagged
    for partition in (FIRST, SECOND):
        for row in rows_in(bench.store, partition).to_pylist():
            scored_ms = round(row["scored_time"].timestamp() * 1000)
            if row["status"] == "ok":
                found = find_evidence(store, evidence_path(scored_ms, row["sha256"]), 10**6)
                assert (found in files) == (row["sha256"] in flagged)
    assert bench.told.reports[-1].evidence == (6, 0, 0, 0)
    assert bench.told.reports[-1].evidence_bytes == sum(map(len, files[1::2]))


def test_nobody_keeps_bytes_that_nobody_asked_for() -> None:
    topic = MemoryTopic("images", 1)
    topic.append(FIRST, jpeg())
    message = topic.partitions[FIRST].messages[0]
    assert decoder(SystemClock(), keeps_files=False)(message).files == ()
    assert decoder(SystemClock())(message).files == (message.value,)
    unread = replace(message, value=b"no image")
    assert decoder(SystemClock())(unread).files == (None,)


@pytest.mark.parametrize(("keeps_files", "held"), [(False, 0), (True, 1)])
def test_bytes_that_wait_for_their_scores_count_as_in_hand(keeps_files: bool, held: int) -> None:
    """An image is 4 x 4 pixels, and its file beside them."""
    go_on, file = threading.Event(), jpeg()

    def hang(decoded: Any) -> pa.RecordBatch:
        go_on.wait(PATIENCE_S)
        return score(decoded)

    topic = MemoryTopic("images", 1)
    topic.append(FIRST, file)
    message = topic.partitions[FIRST].messages[0]
    decode = decoder(SystemClock(), keeps_files=keeps_files)
    with stage(decoder=decode, scorer=hang) as running:
        running.submit(Fetched(FIRST, (message,), 1), 1)
        expected = 3 * 4 * 4 + held * len(file)
        wait_until(lambda: running.in_flight() == (1, expected), f"{expected} bytes in hand")
        go_on.set()
        wait_until(lambda: running.in_flight() == (0, 0), "nothing in hand")


def test_an_image_is_erased_of_whatever_day(store: SegmentStore, noted: Noted) -> None:
    """The same image is kept on two days, and another one; what a dead writer left goes too."""
    batch = scored([0.01, 0.02])
    kept = keeper(store, noted)
    kept.offer(batch)
    kept.offer(scored([0.01], scored_ms=MIDNIGHT_MS + DAY_MS))
    kept.close(PATIENCE_S)
    first, second = batch.rows.column("sha256").to_pylist()
    left = f"{DAY}/{temporary_name()}"
    assert store.create(left, b"half an image")
    assert store.create("notes", b"no day")

    now_ms = SystemClock().now_ms()
    assert erase_evidence(store, {first, "0" * 64}, now_ms + DAY_MS) == 2
    assert erase_evidence(store, {first}, now_ms) == 0

    assert store.sizes(DAY).keys() - {left.rpartition("/")[2]} == {second}
    assert isinstance(store, ObjectStore) or store.read(left) is None
    assert store.sizes("2026-06-02") == {}
    assert store.read("notes") == b"no day"


@pytest.mark.parametrize(
    ("content", "told"), [(b"other", "has the SHA-256 d9298a10"), (b"x" * 11, "has more than")]
)
def test_what_is_not_the_image_of_its_name_is_refused(
    store: SegmentStore, content: bytes, told: str
) -> None:
    path = evidence_path(MIDNIGHT_MS, "0" * 64)
    store.prepare(DAY)
    assert store.create(path, content)
    with pytest.raises(InputDataError, match=told):
        find_evidence(store, path, 10)
