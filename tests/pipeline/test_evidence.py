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
from nap_stream.objects import ObjectStore
from nap_stream.pipeline.evidence import DAY_MS, HOUR_MS, DayBudget, EvidenceChoice, EvidenceKeeper
from nap_stream.pipeline.rows import MessageDecoder
from nap_stream.records import EvidenceOutcome, Fetched, ScoredRows, Status, TopicPartition
from nap_stream.scored_log.evidence import erase_evidence, evidence_path, find_evidence
from nap_stream.scored_log.format import rows_of, temporary_name
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.settings.evidence import EvidenceSettings
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings
from tests.pipeline.bench import FIRST, SECOND, Bench, FaultyStore
from tests.pipeline.test_scoring import score, stage, take_all
from tests.support.doubles import MemoryTopic
from tests.support.image_bytes import ARROW_HEADERS, arrow_stream, jpeg
from tests.support.log_files import rows_in
from tests.support.memory_store import MemoryStore
from tests.support.waiting import PATIENCE_S, wait_until

MIDNIGHT_MS = 1_780_272_000_000
DAY = "2026-06-01"
ALPHA = 0.05
NOTHING = EvidenceSettings(extremes_per_hour=0, sample=0)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the end of the line wait for the store as tests do: this machine may be slow."""
    monkeypatch.setattr("nap_stream.pipeline.line.EVIDENCE_TIMEOUT_S", PATIENCE_S)


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
    epoch: int = 1,
    ingest_ms: int | None = None,
) -> ScoredRows:
    """Rows of these p-values; those without one have a status, and no file unless not finite."""
    count = len(p_values)
    files = [f"{partition}{first + row}".encode().ljust(size, b".") for row in range(count)]
    kept = [
        data if p is not None or status is Status.NOT_FINITE else None
        for data, p in zip(files, p_values, strict=True)
    ]
    event_ms = list(event_ms or [MIDNIGHT_MS] * count)
    columns: dict[str, Any] = {
        "offset": [first + row for row in range(count)],
        "index": [0] * count,
        "event_time": event_ms,
        "ingest_time": [ingest_ms or max(event_ms)] * count,
        "scored_time": [scored_ms] * count,
        "status": [Status.OK if p is not None else status for p in p_values],
        "error": [None if p is not None else "bad" for p in p_values],
        "sha256": [hashlib.sha256(data).hexdigest() for data in files],
        "headers": [()] * count,
        "ood_p_value": pa.array(p_values, pa.float64()),
        "is_ood": pa.array([None if p is None else p <= ALPHA for p in p_values], pa.bool_()),
    }
    return ScoredRows(partition, epoch, first + count, rows_of(columns, count), (), tuple(kept))


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


def test_a_partition_that_is_placed_anew_has_its_extremes_chosen_again() -> None:
    """Its rows are offered twice; those that only the second time reach the log are kept too."""
    settings = replace_settings(extremes_per_hour=2)
    first = scored([0.9, 0.8, 0.7])
    extremes = [(offset, ("extreme",)) for offset in range(3)]
    assert chosen(settings, first, scored([0.9, 0.8, 0.7], epoch=2)) == [*extremes, *extremes]
    after = scored([0.75], first=3, epoch=2)
    assert chosen(settings, first, scored([0.9], epoch=2), after) == [
        *extremes,
        (0, ("extreme",)),
        (3, ("extreme",)),
    ]


def test_event_times_that_jump_choose_no_more_than_the_hours_that_pass() -> None:
    """Of 200 hours up and down, one by one; and of years, where the time of ingest stands."""
    settings = replace_settings(extremes_per_hour=1)
    now = MIDNIGHT_MS + 100 * HOUR_MS
    p_values = [0.5] * 200
    scattered = [now - (row * 37 % 100) * HOUR_MS for row in range(200)]
    assert chosen(settings, scored(p_values, event_ms=scattered, ingest_ms=now)) == [
        (0, ("extreme",))
    ]
    years = [row * 8760 * HOUR_MS for row in range(200)]
    batches = [
        scored([p], event_ms=[event], ingest_ms=now, first=row)
        for row, (p, event) in enumerate(zip(p_values, years, strict=True))
    ]
    assert chosen(settings, *batches) == [(0, ("extreme",))]
    late = scored([0.4], event_ms=[now - HOUR_MS], ingest_ms=now, first=200)
    assert chosen(settings, *batches, late)[1:] == [(200, ("extreme",))]


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


class Wavering(FaultyStore):
    """Fails one time of forty."""

    asked = 0

    def create(self, path: str, content: bytes) -> bool:
        self.is_broken, self.asked = self.asked % 40 == 0, self.asked + 1
        return super().create(path, content)


@pytest.mark.parametrize("is_too_late", [False, True])
def test_a_store_that_fails_now_and_then_gives_no_worker_more_than_its_part(
    is_too_late: bool, noted: Noted
) -> None:
    """One of eight has 10,020 bytes, half of them for flagged images, also after 7 failures.

    Where the file is there all the same, as it is when an answer is lost, it counts in the whole.
    """
    store, settings = Wavering(), replace_settings(max_bytes_per_day=80_160)
    store.too_late = is_too_late
    kept = keeper(store, noted, settings=settings, workers=8)
    kept.offer(scored([0.01] * 300, size=20, scored_ms=MIDNIGHT_MS + DAY_MS - 1))
    kept.close(PATIENCE_S)
    assert noted == {"kept": 250, "failed": 7, "over_budget": 43}
    assert sum(store.sizes(DAY).values()) == 5_000 + is_too_late * 7 * 20


def test_workers_that_start_again_and_again_do_not_exceed_the_budget_of_all(noted: Noted) -> None:
    """Two have 610 bytes. One begins anew for each image, until half of what is there is its part.

    That is 540 bytes. Of its own part the other has 132 left, of the whole there are 70.
    """
    store, settings = MemoryStore(), replace_settings(max_bytes_per_day=610)
    late_ms, clock = MIDNIGHT_MS + DAY_MS - 1, ManualClock(MIDNIGHT_MS)
    other = keeper(store, noted, settings=settings, workers=2, clock=clock)
    other.offer(scored([0.01], size=20, scored_ms=late_ms, first=10_000))
    wait_until(lambda: noted["kept"] == 1, "the other's first image")
    for number in range(50):
        kept = keeper(store, noted, settings=settings, workers=2)
        kept.offer(scored([0.01], size=20, scored_ms=late_ms, first=number))
        kept.close(PATIENCE_S)
    assert sum(store.sizes(DAY).values()) == 540
    clock.advance(600)
    other.offer(scored([0.01] * 6, size=20, scored_ms=late_ms, first=20_000))
    other.close(PATIENCE_S)
    assert sum(store.sizes(DAY).values()) == 600


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
    assert bench.told.reports[-1].evidence == (6, 0, 0, 0, 0)
    assert bench.told.reports[-1].evidence_bytes == sum(map(len, files[1::2]))


class Patient(EvidenceKeeper):
    """One whose store takes nothing before the line closes it."""

    def close(self, timeout_s: float) -> None:
        assert isinstance(self._store, Hanging)
        self._store.go_on.set()
        super().close(timeout_s)


def test_what_waits_for_the_store_is_written_when_an_error_ends_the_line() -> None:
    """Both images are flagged, as not finite ones are."""
    bench, store = Bench(MemoryTopic("images", 1)), Hanging()
    files = [jpeg(seed) for seed in range(2)]
    for file in files:
        bench.topic.append(FIRST, file)
    bench.decode, bench.score = decoder(SystemClock()), not_finite
    bench.evidence = lambda note: Patient(store, NOTHING, workers=1, note=note, clock=SystemClock())

    def enough() -> bool:
        if bench.topic.committed == {FIRST: 2}:
            raise RuntimeError("a defect")
        return False

    with pytest.raises(RuntimeError, match="a defect"):
        bench.run(enough)
    (day,) = store.names("")
    assert set(store.names(day)) == {hashlib.sha256(file).hexdigest() for file in files}


def not_finite(decoded: Any) -> pa.RecordBatch:
    rows = score(decoded)
    place = rows.schema.get_field_index("status")
    statuses = pa.array([Status.NOT_FINITE.value] * rows.num_rows, rows.schema.field(place).type)
    return rows.set_column(place, rows.schema.field(place), statuses)


def test_nobody_keeps_bytes_that_nobody_asked_for() -> None:
    topic = MemoryTopic("images", 1)
    topic.append(FIRST, jpeg())
    message = topic.partitions[FIRST].messages[0]
    assert decoder(SystemClock(), keeps_files=False)(message).files == ()
    assert decoder(SystemClock())(message).files == (message.value,)
    unread = replace(message, value=b"no image")
    assert decoder(SystemClock())(unread).files == (None,)


def test_what_is_kept_in_memory_for_evidence_holds_up_no_scores(noted: Noted) -> None:
    """An image is 48 bytes of pixels beside a file of 1,000; all 20 wait for one batch.

    Of 4,800 bytes' room four files take their part, and the others are not kept.
    """
    files = [jpeg(seed).ljust(1_000, b"\0") for seed in range(20)]
    topic = MemoryTopic("images", 1)
    for file in files:
        assert len(file) == 1_000
        topic.append(FIRST, file)
    messages = tuple(topic.partitions[FIRST].messages)
    gathered: list[int] = []

    def flag(decoded: Any) -> pa.RecordBatch:
        gathered.append(sum(map(len, decoded)))
        rows = score(decoded)
        place = rows.schema.get_field_index("is_ood")
        is_ood = pa.array([True] * rows.num_rows)
        return rows.set_column(place, rows.schema.field(place), is_ood)

    kept = keeper(MemoryStore(), noted)
    options: dict[str, Any] = {"batch_size": 20, "linger_s": PATIENCE_S, "decode_threads": 1}
    with stage(
        decoder=decoder(SystemClock()), scorer=flag, max_decoded_bytes=4_800, **options
    ) as running:
        for _ in range(2):
            running.submit(Fetched(FIRST, messages, 20), 1)
            (scored_rows,) = take_all(running, 20)
            assert running.in_flight() == (0, 0)
            kept.offer(scored_rows)
    kept.close(PATIENCE_S)
    assert gathered == [20, 20]
    assert [len(file or b"") for file in scored_rows.files] == [1_000] * 4 + [0] * 16
    assert noted == {"kept": 4, "memory_full": 32}


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
